//! Paying an order, once.
use dev::{
    example::gateway::ChargeStatus,
    harness::{Order, Service, eventually},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::service;

pub const NO_PAYMENTS: [Uuid; 0] = [];

/// What the gateway has charged successfully for a payment.
pub fn charges(service: &Service, payment: Uuid) -> usize {
    let charges = service.gateway().charges_for(payment);
    charges.iter().filter(|charge| charge.status == ChargeStatus::Succeeded).count()
}

/// Waits until the gateway has charged an order, answered or not.
pub async fn is_charged(service: &Service, order: &Order) -> Uuid {
    let payment = order.has_a_payment().await;
    eventually("the gateway has charged", async || (charges(service, payment) > 0).then_some(())).await;
    payment
}

#[tokio::test]
async fn a_card_that_works_pays_the_order() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;

    let paid = order.pay("pm_card_ok").await.is(201);

    let payment = paid.json();
    assert_eq!(payment["order_id"], json!(order.id));
    assert_eq!(payment["status"], "succeeded");
    assert_eq!((&payment["amount"], &payment["currency"]), (&json!(2580), &json!("EUR")));
    assert_eq!((&payment["refunded_amount"], &payment["failure_reason"]), (&json!(0), &Value::Null));
    assert_eq!(paid.header("location"), Some(format!("/v1/payments/{}", paid.id()).as_str()));
    assert_eq!(order.status().await, "paid");
    assert_eq!(charges(&service, paid.id()), 1);
    assert_eq!(service.metric("payments_total{outcome=\"succeeded\"}").await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_refusal_of_the_bank_is_an_outcome_and_says_why() {
    let service = service().await;
    let customer = service.customer().await;
    for (card, reason) in [
        ("pm_card_declined", "insufficient_funds"),
        ("pm_card_expired", "card_expired"),
        ("pm_card_fraud", "fraud_suspected"),
    ] {
        let order = customer.places_an_order().await;
        let payment = customer.pays(&order, card).await.is(201).json();
        assert_eq!((&payment["status"], &payment["failure_reason"]), (&json!("declined"), &json!(reason)));
        assert_eq!(order.status().await, "pending_payment");
        let counted = format!("payment_failures_total{{reason=\"{reason}\"}}");
        assert_eq!(service.metric(&counted).await, 1);
    }
    assert_eq!(service.metric("payments_total{outcome=\"declined\"}").await, 3);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_card_that_the_gateway_does_not_know_fails_the_payment() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_from_another_gateway").await.is(201).json();
    assert_eq!(
        (&payment["status"], &payment["failure_reason"]),
        (&json!("failed"), &json!("gateway_rejected"))
    );
    order.is_paid().await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_order_can_be_paid_with_another_card_after_a_decline() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let _declined = order.pay("pm_card_declined").await.is(201);
    let payment = order.is_paid().await;
    assert_eq!(order.status().await, "paid");
    assert_eq!(charges(&service, payment), 1);
    assert_eq!(order.payments().await.len(), 2);
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_order_is_paid_once() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.is_paid().await;
    let _refused = order.pay("pm_card_ok").await.is_problem(409, "conflict");
    assert_eq!(order.payments().await, [payment]);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_cancelled_order_is_not_paid() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let _cancelled = order.cancel().await.is(200);
    let _refused = order.pay("pm_card_ok").await.is_problem(409, "conflict");
    assert_eq!(service.gateway().ledger().charges.len(), 0);
}

#[tokio::test]
async fn while_a_payment_is_under_way_the_order_is_neither_cancelled_nor_paid_again() {
    let service = service().await;
    service.gateway_sends_no_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    is_charged(&service, &order).await;

    let _refused = order.cancel().await.is_problem(409, "conflict");
    let _refused = order.pay("pm_card_ok").await.is_problem(409, "conflict");

    service.gateway().release();
    let _paid = attempt.answer().await.is(201);
    service.invariants_hold().await;
}

#[tokio::test]
async fn twenty_people_at_one_checkout_pay_once() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let attempts: Vec<_> = (0..20).map(|_| order.pay("pm_card_ok").in_background()).collect();
    let mut paid = 0;
    for attempt in attempts {
        match attempt.answer().await {
            answer if answer.status == 201 => paid += 1,
            answer => drop(answer.is_problem(409, "conflict")),
        }
    }
    assert_eq!(paid, 1);
    assert_eq!(service.gateway().ledger().charges.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_is_seen_by_its_customer_and_by_staff_whose_reading_is_audited() {
    let service = service().await;
    let customer = service.customer().await;
    let order = customer.places_an_order().await;
    let payment = order.is_paid().await;
    let path = format!("/v1/payments/{payment}");

    assert_eq!(customer.get(&path).await.is(200).id(), payment);
    let _theirs = service.customer().await.get(&path).await.is_problem(404, "not-found");
    for staff in [service.support().await, service.admin().await] {
        assert_eq!(staff.get(&path).await.is(200).id(), payment);
        let read =
            format!("event_type = 'data_access' and resource = 'payments' and user_id = '{}'", staff.id);
        assert_eq!(service.audit_events(&read).await[0]["metadata"]["record_ids"], json!([payment]));
    }
}

#[tokio::test]
async fn a_payment_is_told_in_the_audit_trail_from_beginning_to_settlement() {
    let service = service().await;
    let customer = service.customer().await;
    let order = customer.places_an_order().await;
    let paying = order.pay("pm_card_ok").header("x-correlation-id", "checkout-7");
    let payment = paying.await.is(201).id();
    let told = service.audit_events(&format!("metadata -> 'record_ids' ? '{payment}'")).await;
    let of = |event: &Value| (event["action"].clone(), event["correlation_id"].clone());
    assert_eq!(
        told.iter().map(of).collect::<Vec<_>>(),
        [(json!("create"), json!("checkout-7")), (json!("settle"), json!("checkout-7"))]
    );
}

#[tokio::test]
async fn a_payment_method_has_a_form() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    for method in ["", "pm card ok", "pm_card_\u{e4}", &"x".repeat(256)] {
        let _refused = order.pay(method).await.is_invalid_at(&["/payment_method"]);
    }
    assert_eq!(order.payments().await, NO_PAYMENTS);
}
