//! Payments during failures of the gateway, the network, the database or the service, and after a client disconnects.
use dev::{
    example::gateway::{Event, Faults, Webhooks},
    harness::{Service, User, eventually},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    payments::{NO_PAYMENTS, charges, wait_until_charged},
    recovery::outage,
};
use crate::{builder, operations::page, service};

#[tokio::test]
async fn a_flaky_gateway_is_retried_and_charges_once() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_flaky").await.assert_status(201);
    assert_eq!(payment.text("status"), "succeeded");
    assert_eq!(charges(&service, payment.id()).await, 1);
    assert!(service.count_requests_for(payment.id()).await >= 2);
    service.invariants_hold().await;
}

/// Returns the number of calls of the gateway with this outcome.
async fn calls(service: &Service, outcome: &str) -> i64 {
    let series = format!(
        "http_client_request_duration_seconds_count{{outcome=\"{outcome}\",service=\"payment_gateway\"}}"
    );
    service.metric(&series).await
}

/// Pays with a card that the gateway charges without a usable response, so the service responds with 202. Checks that
/// recovery settles the payment without a webhook, and returns the service.
async fn pay_and_recover(card: &str) -> Service {
    let service = service().await;
    service.disable_webhooks();
    let customer = service.customer().await;
    let order = customer.places_an_order().await;

    let accepted = order.pay(card).await.assert_status(202);
    let payment = accepted.json();
    assert_eq!((&payment["status"], &payment["failure_reason"]), (&json!("processing"), &Value::Null));
    assert_eq!(accepted.header("location"), Some(format!("/v1/payments/{}", accepted.id()).as_str()));

    order.wait_until("paid").await;
    let payment = customer.get(format!("/v1/payments/{}", accepted.id())).await.assert_status(200).json();
    assert_eq!(payment["status"], "succeeded");
    assert_eq!(charges(&service, accepted.id()).await, 1);
    service.invariants_hold().await;
    service
}

#[tokio::test]
async fn a_charge_without_response_is_settled_by_polling() {
    let service = pay_and_recover("pm_card_timeout").await;
    assert_eq!(calls(&service, "timeout").await, 1);
}

#[tokio::test]
async fn a_charge_with_a_late_response_is_settled_by_polling() {
    pay_and_recover("pm_card_slow").await;
}

#[tokio::test]
async fn a_charge_reported_as_an_error_is_settled_by_polling() {
    pay_and_recover("pm_card_error_after_charge").await;
}

#[tokio::test]
async fn a_failing_gateway_is_retried_until_it_charges() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let response = order.pay("pm_card_error").await;
    assert!([201, 202].contains(&response.status), "{response}");
    assert!(calls(&service, "error").await > 0);
    assert_eq!(calls(&service, "timeout").await, 0);
    order.wait_until("paid").await;
    assert_eq!(charges(&service, response.id()).await, 1);
    service.invariants_hold().await;
}

/// Starts a service, pays an order, and then lets the gateway respond with 503. Recovery sends nothing, because its
/// interval is longer than a test. Returns the service, the customer and the id of the payment.
async fn service_with_a_failing_gateway() -> (Service, User, Uuid) {
    let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await;
    let customer = service.customer().await;
    let paid = customer.places_an_order().await.pay_successfully().await;
    service.gateway().faults().set(outage());
    (service, customer, paid)
}

#[tokio::test]
async fn a_failing_charge_is_retried_three_times() {
    let (service, customer, _) = service_with_a_failing_gateway().await;
    let payment = customer.places_an_order().await.pay("pm_card_ok").await.assert_status(202).id();
    assert_eq!(service.count_requests_for(payment).await, 4);
}

#[tokio::test]
async fn a_failing_refund_is_retried_three_times() {
    let (service, _, paid) = service_with_a_failing_gateway().await;
    let refund = service.support().await.refund(paid, None).await.assert_status(202).id();
    assert_eq!(service.count_requests_for(refund).await, 4);
}

#[tokio::test]
async fn a_webhook_settles_a_payment_during_its_request() {
    let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    order.wait_until("paid").await;
    service.gateway().release();
    assert_eq!(attempt.response().await.assert_status(201).text("status"), "succeeded");
    assert_eq!(
        service.metric("payments_total{outcome=\"succeeded\"}").await,
        1,
        "the payment must be counted once"
    );
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_webhook_settles_a_payment_without_polling() {
    let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(Faults { webhooks: Webhooks::Late, ..Faults::default() });
    let payment = order.pay("pm_card_timeout").await.assert_status(202).id();
    let charge = service.charges_for(payment).await.remove(0);
    let event = Event::of_charge(&charge).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&event).await.unwrap(), 204);
    assert_eq!(order.status().await, "paid");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_survives_a_crash_between_charge_and_settlement() {
    let mut service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;

    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    let payment = wait_until_charged(&service, &order).await;
    let retry = attempt.again();
    service.kill_9().await;
    let _cut_off = attempt.give_up().await;
    service.gateway().release();
    service.restart().await;

    order.wait_until("paid").await;
    assert_eq!(charges(&service, payment).await, 1);
    let repeated = retry.await.assert_status(201);
    assert!(repeated.is_replayed());
    assert_eq!((repeated.id(), repeated.text("status")), (payment, "succeeded".to_owned()));
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_client_disconnect_does_not_cancel_the_charge() {
    let service = builder()
        // Recovery runs at the start of the service, and not again during the test. So only the request itself can
        // settle the payment.
        .setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600")
        .setting("GATEWAY_TIMEOUT_MS", "9000")
        .start()
        .await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    let payment = wait_until_charged(&service, &order).await;
    let _response = attempt.give_up().await;
    let abandoned = "http_requests_total{method=\"POST\",path=\"/v1/orders/{id}/payments\",status=\"499\"}";
    eventually("the client's request is recorded as abandoned", async || {
        service.metrics().await.contains(abandoned).then_some(())
    })
    .await;

    service.gateway().release();
    order.wait_until("paid").await;
    assert_eq!(charges(&service, payment).await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_at_its_deadline_responds_with_processing() {
    let service =
        builder().setting("REQUEST_TIMEOUT_MS", "2500").setting("GATEWAY_TIMEOUT_MS", "2450").start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let accepted = order.pay("pm_card_timeout").await.assert_status(202);
    assert_eq!(accepted.text("status"), "processing");
    order.wait_until("paid").await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_past_its_deadline_moves_no_money() {
    let service =
        builder().setting("REQUEST_TIMEOUT_MS", "2500").setting("GATEWAY_TIMEOUT_MS", "2450").start().await;
    let order = service.customer().await.places_an_order().await;
    let paid = service.customer().await.places_an_order().await.pay_successfully().await;
    let support = service.support().await;
    let lock = service.database().hold("lock table orders, payments in access exclusive mode").await;
    for request in [order.pay("pm_card_ok"), support.refund(paid, None)] {
        let response = request.await.assert_problem(503, "unavailable");
        assert!(response.header("retry-after").is_some(), "{response}");
    }
    lock.release().await;
    assert_eq!(order.payments().await, NO_PAYMENTS);
    order.pay_successfully().await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_open_breaker_rejects_and_keeps_the_key_usable() {
    let service = service().await;
    service.gateway().faults().set(outage());
    let customer = service.customer().await;
    let rejected = eventually("the breaker opens", async || {
        let order = customer.places_an_order().await;
        let request = order.pay("pm_card_ok").key(&format!("checkout-{}", order.id));
        let response = request.clone().await;
        (response.status == 503).then_some((order, request, response))
    })
    .await;
    let (order, request, response) = rejected;

    let response = response.assert_problem(503, "unavailable");
    let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds), "{response}");
    assert_eq!(order.payments().await, NO_PAYMENTS, "no payment must be stored");
    let keys = format!("select count(*) from idempotency_keys where key = 'checkout-{}'", order.id);
    assert_eq!(service.database().number(keys).await, 0, "the key must not be stored");
    assert_eq!(service.metric("circuit_breaker_state{service=\"payment_gateway\"}").await, 2);

    service.gateway().faults().clear();
    let paid = eventually("the breaker admits the retry", async || {
        let response = request.clone().await;
        (response.status == 201).then_some(response)
    })
    .await;
    assert!(!paid.is_replayed());
    assert_eq!(order.status().await, "paid");
    eventually("every payment of the outage is settled", async || {
        let unsettled = "select count(*) from payments where status = 'processing'";
        (service.database().number(unsettled).await == 0).then_some(())
    })
    .await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_slow_gateway_does_not_starve_other_routes() {
    let service = builder()
        .setting("MAX_REQUESTS_IN_FLIGHT", "4")
        .setting("GATEWAY_TIMEOUT_MS", "9000")
        .setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600")
        .start()
        .await;
    service.disable_webhooks();
    let customer = service.customer().await;
    let (first, second, third) = (
        customer.places_an_order().await,
        customer.places_an_order().await,
        customer.places_an_order().await,
    );
    service.gateway().hold_responses();
    let waiting = [first.pay("pm_card_ok").in_background(), second.pay("pm_card_ok").in_background()];
    for order in [&first, &second] {
        wait_until_charged(&service, order).await;
    }

    let rejected = third.pay("pm_card_ok").await.assert_problem(503, "unavailable");
    assert_eq!(rejected.header("retry-after"), Some("1"));
    assert_eq!(third.payments().await, NO_PAYMENTS, "no payment must be stored");
    customer.places_an_order().await;
    assert_eq!(third.status().await, "pending_payment");

    service.gateway().release();
    for attempt in waiting {
        let _paid = attempt.response().await.assert_status(201);
    }
    let _paid = third.pay("pm_card_ok").await.assert_status(201);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_known_key_is_replayed_while_the_gateway_is_down() {
    let service = service().await;
    let customer = service.customer().await;
    let paid = customer.places_an_order().await;
    let payment = paid.pay("pm_card_ok");
    let first = payment.clone().await.assert_status(201);
    let refund = service.support().await.refund(first.id(), Some(100));
    let refunded = refund.clone().await.assert_status(201);
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the breaker opens", async || {
        let order = customer.places_an_order().await;
        (order.pay("pm_card_ok").await.status == 503).then_some(())
    })
    .await;
    for (request, first) in [(payment, first), (refund, refunded)] {
        let replayed = request.await.assert_status(201);
        assert!(replayed.is_replayed());
        assert_eq!(replayed.text, first.text);
    }
}

#[tokio::test]
async fn a_payment_is_not_charged_if_its_commit_is_unconfirmed() {
    let service = builder().with_database_proxy().start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    // The payment's first transaction waits for a lock. The test cuts the database connection before the commit is
    // confirmed.
    let lock =
        service.database().hold(&format!("select from orders where id = '{}' for update", order.id)).await;
    let request = order.pay("pm_card_ok");
    let attempt = request.clone().in_background();
    eventually("the transaction of the payment waits for the lock", async || {
        let waiting =
            "select count(*) from pg_locks where not granted and locktype in ('transactionid', 'tuple')
                       and pid in (select pid from pg_stat_activity where datname = current_database())";
        (service.database().number(waiting).await > 0).then_some(())
    })
    .await;
    service.database_proxy().interrupt();
    let response = attempt.response().await.assert_problem(503, "unavailable");
    assert!(response.header("retry-after").is_some(), "{response}");
    let sends =
        |service: &Service| service.gateway().requests().iter().filter(|sent| sent.method == "POST").count();
    assert_eq!(sends(&service), 0, "a payment whose commit is unconfirmed must not be charged");

    lock.release().await;
    let paid = eventually("the retry has the outcome", async || {
        let response = request.clone().await;
        (response.status == 201).then_some(response)
    })
    .await;
    order.wait_until("paid").await;
    assert_eq!(service.charges_for(paid.id()).await.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_unreachable_gateway_degrades_the_service() {
    let service = service().await;
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the gateway is reported as unreachable", async || {
        let (status, body) = page(&service, "/readyz").await;
        (status == 200 && body["checks"]["external_api"] == "degraded").then_some(())
    })
    .await;
    assert_eq!(page(&service, "/health").await.1["status"], "degraded");
    service.gateway().faults().clear();
    eventually("the gateway is reported as reachable", async || {
        (page(&service, "/readyz").await.1["checks"]["external_api"] == "healthy").then_some(())
    })
    .await;
}
