//! Payments with several replicas of one service. A replica takes over the work of a crashed one.
use std::time::Duration;

use dev::{
    example::gateway::{Faults, Webhooks},
    harness::{MUG, Service, User, eventually, within},
};

use crate::service;

#[tokio::test]
async fn duplicates_at_two_replicas_have_one_effect() {
    let one = service().await;
    let two = one.replica().await;
    let here = one.customer().await;
    let there = two.user_through(&here);
    let order = here.places_an_order().await;
    let duplicates: Vec<_> = (0..20)
        .map(|n| {
            let customer = if n % 2 == 0 { &here } else { &there };
            let payment = customer.pay(order.id, "pm_card_ok").key("one-payment");
            let purchase = customer.orders(&[(MUG, 1)]).key("one-order");
            (payment.in_background(), purchase.in_background())
        })
        .collect();
    let (mut paid, mut placed) = (Vec::new(), Vec::new());
    for (payment, purchase) in duplicates {
        match payment.response().await {
            response if response.status == 201 => paid.push(response.text),
            response => drop(response.assert_problem(409, "request-under-way")),
        }
        placed.push(purchase.response().await.assert_status(201).text);
    }
    for bodies in [&mut paid, &mut placed] {
        bodies.sort();
        bodies.dedup();
        assert_eq!(bodies.len(), 1);
    }
    assert_eq!(one.gateway().ledger().charges.len(), 1);
    assert_eq!(one.database().number("select count(*) from orders").await, 2);
    one.invariants_hold().await;
}

#[tokio::test]
async fn another_replica_settles_payments_of_a_crashed_one() {
    let one = service().await;
    let two = one.replica().await;
    one.disable_webhooks();
    let order = one.customer().await.places_an_order().await;
    one.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    let payment = order.wait_for_payment().await;
    eventually("the payment is charged", async || (!one.charges_for(payment).await.is_empty()).then_some(()))
        .await;
    one.kill_9().await;
    let _cut_off = attempt.give_up().await;
    one.gateway().release();

    let at_the_other_replica = two.user_through(&order.customer);
    eventually("the order is paid", async || {
        (at_the_other_replica.get(order.path()).await.text("status") == "paid").then_some(())
    })
    .await;
    assert_eq!(one.charges_for(payment).await.len(), 1);
    two.invariants_hold().await;
}

/// Places an order and pays it. Sends each request until the response is final, and checks that its status is 201. A
/// declined payment also gets 201.
async fn order_and_pay(customer: User, card: &'static str) {
    let order = customer.orders(&[(MUG, 2)]).send_until_final().await.assert_status(201).id();
    let _paid_or_not = customer.pay(order, card).send_until_final().await.assert_status(201);
}

#[tokio::test]
async fn no_payment_is_lost_or_duplicated_under_combined_faults() {
    let mut services: Vec<Service> = vec![service().await];
    services.push(services[0].replica().await);
    services.push(services[0].replica().await);
    let customer = services[0].customer().await;
    services[0].gateway().faults().set(Faults {
        error_rate: 0.15,
        error_rate_after_charge: 0.15,
        cut_rate: 0.15,
        decline_rate: 0.1,
        latency_ms: 30,
        webhooks: Webhooks::Twice,
        seed: 7,
        ..Faults::default()
    });
    let cards =
        ["pm_card_ok", "pm_card_flaky", "pm_card_error", "pm_card_error_after_charge", "pm_card_declined"];
    let customers: Vec<_> = (0..45)
        .map(|n| tokio::spawn(order_and_pay(services[n % 3].user_through(&customer), cards[n % cards.len()])))
        .collect();

    for killed in 0..3 {
        let minimum = 5 * (killed + 1);
        let payments = "select count(*) from payments";
        eventually("the next five payments have begun", async || {
            (services[0].database().number(payments).await >= minimum).then_some(())
        })
        .await;
        let killed = usize::try_from(killed).unwrap();
        services[killed].kill_9().await;
        services[killed].restart().await;
    }
    services[0].gateway().faults().clear();

    for customer in customers {
        customer.await.unwrap();
    }
    within(Duration::from_mins(1), "every payment is settled", async || {
        let unsettled = "select count(*) from payments where status = 'processing'";
        (services[0].database().number(unsettled).await == 0).then_some(())
    })
    .await;
    assert_eq!(services[0].database().number("select count(*) from orders").await, 45);
    let counts = services[0].gateway().ledger().counts();
    assert_eq!(counts.charges_succeeded, counts.payments_charged);
    services[0].invariants_hold().await;
}

#[tokio::test]
async fn several_replicas_poll_once_for_each_payment() {
    let one = service().await;
    let _others = (one.replica().await, one.replica().await);
    one.disable_webhooks();
    let customer = one.customer().await;
    let mut attempts = Vec::new();
    for _ in 0..12 {
        let order = customer.places_an_order().await;
        attempts.push((order.pay("pm_card_timeout").in_background(), order));
    }
    for (attempt, order) in attempts {
        let payment = one.gateway_key(attempt.response().await.assert_status(202).id()).await.to_string();
        order.wait_until("paid").await;
        let poll = one
            .gateway()
            .requests()
            .into_iter()
            .filter(|request| request.method == "GET" && request.path.contains(&payment));
        assert_eq!(poll.count(), 1, "payment {payment} must be polled once");
    }
    let settled = "select count(*) from audit_events where resource = 'payments' and action = 'settle'";
    assert_eq!(one.database().number(settled).await, 12);
    one.invariants_hold().await;
}
