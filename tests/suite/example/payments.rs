//! Payments: an order is paid exactly once. Also declines, the visibility of payments, audit events, retries, locks,
//! leases and attempts.
use dev::{
    example::gateway::ChargeStatus,
    harness::{Order, Service, eventually},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{builder, service};

pub const NO_PAYMENTS: [Uuid; 0] = [];

/// Returns the number of successful charges of a payment.
pub async fn charges(service: &Service, payment: Uuid) -> usize {
    let charges = service.charges_for(payment).await;
    charges.iter().filter(|charge| charge.status == ChargeStatus::Succeeded).count()
}

/// Waits until the gateway has charged an order, even if it has sent no response. Returns the id of the payment.
pub async fn wait_until_charged(service: &Service, order: &Order) -> Uuid {
    let payment = order.wait_for_payment().await;
    eventually("the gateway has charged", async || (charges(service, payment).await > 0).then_some(())).await;
    payment
}

#[tokio::test]
async fn a_card_that_works_pays_the_order() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;

    let paid = order.pay("pm_card_ok").await.assert_status(201);

    let payment = paid.json();
    assert_eq!(payment["order_id"], json!(order.id));
    assert_eq!(payment["status"], "succeeded");
    assert_eq!((&payment["amount"], &payment["currency"]), (&json!(2580), &json!("EUR")));
    assert_eq!((&payment["refunded_amount"], &payment["failure_reason"]), (&json!(0), &Value::Null));
    assert_eq!(paid.header("location"), Some(format!("/v1/payments/{}", paid.id()).as_str()));
    assert_eq!(order.status().await, "paid");
    assert_eq!(charges(&service, paid.id()).await, 1);
    assert_eq!(service.metric("payments_total{outcome=\"succeeded\"}").await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_declined_payment_has_a_reason() {
    let service = service().await;
    let customer = service.customer().await;
    for (card, reason) in [
        ("pm_card_declined", "insufficient_funds"),
        ("pm_card_expired", "card_expired"),
        ("pm_card_fraud", "fraud_suspected"),
    ] {
        let order = customer.places_an_order().await;
        let payment = customer.pays(&order, card).await.assert_status(201).json();
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
    let payment = order.pay("pm_card_from_another_gateway").await.assert_status(201).json();
    assert_eq!(
        (&payment["status"], &payment["failure_reason"]),
        (&json!("failed"), &json!("gateway_rejected"))
    );
    order.pay_successfully().await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_order_can_be_paid_with_another_card_after_a_decline() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let _declined = order.pay("pm_card_declined").await.assert_status(201);
    let payment = order.pay_successfully().await;
    assert_eq!(order.status().await, "paid");
    assert_eq!(charges(&service, payment).await, 1);
    assert_eq!(order.payments().await.len(), 2);
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_order_is_paid_once() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let _rejected = order.pay("pm_card_ok").await.assert_problem(409, "conflict");
    assert_eq!(order.payments().await, [payment]);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_cancelled_order_is_not_paid() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let _cancelled = order.cancel().await.assert_status(200);
    let _rejected = order.pay("pm_card_ok").await.assert_problem(409, "conflict");
    assert_eq!(service.gateway().ledger().charges.len(), 0);
}

#[tokio::test]
async fn an_order_in_payment_rejects_cancellation_and_payment() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    wait_until_charged(&service, &order).await;

    let _rejected = order.cancel().await.assert_problem(409, "conflict");
    let _rejected = order.pay("pm_card_ok").await.assert_problem(409, "conflict");

    service.gateway().release();
    let _paid = attempt.response().await.assert_status(201);
    service.invariants_hold().await;
}

#[tokio::test]
async fn twenty_concurrent_payments_of_one_order_charge_once() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let attempts: Vec<_> = (0..20).map(|_| order.pay("pm_card_ok").in_background()).collect();
    let mut paid = 0;
    for attempt in attempts {
        match attempt.response().await {
            response if response.status == 201 => paid += 1,
            response => drop(response.assert_problem(409, "conflict")),
        }
    }
    assert_eq!(paid, 1);
    assert_eq!(service.gateway().ledger().charges.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_is_visible_to_its_customer_and_audited_staff() {
    let service = service().await;
    let customer = service.customer().await;
    let order = customer.places_an_order().await;
    let payment = order.pay_successfully().await;
    let path = format!("/v1/payments/{payment}");

    assert_eq!(customer.get(&path).await.assert_status(200).id(), payment);
    let _foreign = service.customer().await.get(&path).await.assert_problem(404, "not-found");
    for staff in [service.support().await, service.admin().await] {
        assert_eq!(staff.get(&path).await.assert_status(200).id(), payment);
        let read =
            format!("event_type = 'data_access' and resource = 'payments' and user_id = '{}'", staff.id);
        assert_eq!(service.audit_events(&read).await[0]["metadata"]["record_ids"], json!([payment]));
    }
}

#[tokio::test]
async fn the_audit_log_records_a_payments_start_and_settlement() {
    let service = service().await;
    let customer = service.customer().await;
    let order = customer.places_an_order().await;
    let paying = order.pay("pm_card_ok").header("x-correlation-id", "checkout-7");
    let payment = paying.await.assert_status(201).id();
    let events = service.audit_events(&format!("metadata -> 'record_ids' ? '{payment}'")).await;
    let action_and_id = |event: &Value| (event["action"].clone(), event["correlation_id"].clone());
    assert_eq!(
        events.iter().map(action_and_id).collect::<Vec<_>>(),
        [(json!("create"), json!("checkout-7")), (json!("settle"), json!("checkout-7"))]
    );
}

#[tokio::test]
async fn a_payment_method_has_a_valid_form() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    for method in ["", "pm card ok", "pm_card_\u{e4}", &"x".repeat(256)] {
        let _rejected = order.pay(method).await.assert_invalid_at(&["/payment_method"]);
    }
    assert_eq!(order.payments().await, NO_PAYMENTS);
}

#[tokio::test]
async fn a_retry_does_not_charge_again_after_its_row_is_lost() {
    let mut service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.terminate().await;
    service.database().back_up().await;
    service.restart().await;
    let request = order.pay("pm_card_ok");
    let lost = request.clone().await.assert_status(201);

    service.terminate().await;
    service.database().restore().await;
    service.restart().await;
    assert_eq!(order.payments().await, NO_PAYMENTS);
    let retried = request.clone().await.assert_status(201);

    assert!(!retried.is_replayed());
    assert_ne!(retried.id(), lost.id());
    assert_eq!(service.gateway().ledger().charges.len(), 1);
    let sent = service.gateway().requests();
    let sent: Vec<_> = sent.iter().filter(|request| request.method == "POST").collect();
    assert_eq!(sent.len(), 2);
    assert_eq!((&sent[0].idempotency_key, &sent[0].body), (&sent[1].idempotency_key, &sent[1].body));
    assert_eq!(order.status().await, "paid");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_retry_after_its_key_has_expired_finds_the_payment() {
    let service = service().await;
    let customer = service.customer().await;
    for (card, status) in [("pm_card_ok", "succeeded"), ("pm_card_declined", "declined")] {
        let order = customer.places_an_order().await;
        let request = order.pay(card);
        let first = request.clone().await.assert_status(201);
        // This simulates the sweeper, which deletes an idempotency key one day after its request is complete.
        service.database().execute("delete from idempotency_keys where scope <> 'gateway'").await;
        let again = request.await.assert_status(201);
        assert!(again.is_replayed());
        assert_eq!((again.id(), again.text("status")), (first.id(), status.to_owned()));
        assert_eq!(order.payments().await, [first.id()]);
    }
    assert_eq!(service.gateway().ledger().charges.len(), 2);
}

#[tokio::test]
async fn another_key_after_a_decline_is_another_charge() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let first = order.pay("pm_card_declined").await.assert_status(201).id();
    let second = order.pay("pm_card_declined").await.assert_status(201).id();
    assert_ne!(service.gateway_key(first).await, service.gateway_key(second).await);
    assert_eq!(service.gateway().ledger().charges.len(), 2);
    service.invariants_hold().await;
}

/// Starts a service with a gateway timeout of nine seconds, so that a call waits while the gateway holds its response.
/// Recovery runs at the start of the service, and not again during the test.
async fn service_with_long_gateway_timeout() -> Service {
    builder()
        .setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600")
        .setting("GATEWAY_TIMEOUT_MS", "9000")
        .start()
        .await
}

#[tokio::test]
async fn no_transaction_and_no_row_lock_is_open_during_a_gateway_call() {
    let service = service_with_long_gateway_timeout().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    let payment = wait_until_charged(&service, &order).await;
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";
    assert_eq!(service.database().number(open).await, 0);
    for (table, id) in [("payments", payment), ("orders", order.id)] {
        let lock = format!("select from {table} where id = '{id}' for update nowait");
        service.database().execute(lock).await;
    }
    service.gateway().release();
    let _paid = attempt.response().await.assert_status(201);
    service.invariants_hold().await;
}

#[tokio::test]
async fn waiting_for_the_order_lock_does_not_shorten_the_lease() {
    let service = service_with_long_gateway_timeout().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let lock =
        service.database().hold(&format!("select from orders where id = '{}' for update", order.id)).await;
    let attempt = order.pay("pm_card_ok").in_background();
    eventually("the payment has waited for two seconds", async || {
        let waiting = "select count(*) from pg_locks where waitstart < now() - interval '2 seconds'
                       and pid in (select pid from pg_stat_activity where datname = current_database())";
        (service.database().number(waiting).await > 0).then_some(())
    })
    .await;
    lock.release().await;
    let payment = wait_until_charged(&service, &order).await;
    let lease = format!(
        "select extract(epoch from lease_expires_at - created_at)::bigint from payments where id = '{payment}'"
    );
    // `created_at` is the time at which the statement began. The lease of three recovery intervals (600 s each) must
    // count from the end of the wait for the lock.
    let lease = service.database().number(lease).await;
    assert!(lease >= 1800 + 2, "the lease ends too early: {lease} s after the start of the statement");
    service.gateway().release();
    let _paid = attempt.response().await.assert_status(201);
    service.invariants_hold().await;
}

#[tokio::test]
async fn attempts_are_counted_and_committed_before_each_send() {
    let service = service_with_long_gateway_timeout().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_flaky").await.assert_status(201).id();
    let attempts = format!("select attempts::bigint from payments where id = '{payment}'");
    let sends = service.count_requests_for(payment).await;
    assert!(sends >= 2);
    assert_eq!(service.database().number(attempts).await, i64::try_from(sends).unwrap());

    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    let payment = wait_until_charged(&service, &order).await;
    let attempts = format!("select attempts::bigint from payments where id = '{payment}'");
    assert_eq!(
        service.database().number(attempts).await,
        1,
        "the attempt must be committed before the response"
    );
    service.gateway().release();
    let _paid = attempt.response().await.assert_status(201);
}
