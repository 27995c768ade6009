//! Recovery of payments and refunds with an unknown outcome: the service polls the gateway, and resends the request if
//! necessary. A contradictory response or a rejection settles nothing. A payment fails if the gateway has no charge
//! after 25 hours. A refund that the gateway does not have stays in progress.
use dev::{
    example::gateway::{Charge, ChargeStatus, Event, Faults, Webhooks},
    harness::{Order, Service, eventually},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{builder, service};

/// Returns the faults of a gateway that responds with 503 without a charge or refund, and sends no webhooks.
pub(super) fn outage() -> Faults {
    Faults { error_rate: 1.0, error_status: 503, webhooks: Webhooks::Never, ..Faults::default() }
}

pub(super) fn no_webhooks() -> Faults {
    Faults { webhooks: Webhooks::Never, ..Faults::default() }
}

/// Pays a new order while the gateway is down, so the gateway has not charged it. The gateway stays down. Returns the
/// order and the id of the payment.
async fn pay_during_outage(service: &Service, card: &str) -> (Order, Uuid) {
    service.gateway().faults().set(outage());
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay(card).await.assert_status(202).id();
    (order, payment)
}

/// Backdates the first send of a payment or refund, and ends its lease, so that recovery processes it.
async fn backdate_first_send(service: &Service, table: &str, id: Uuid, ago: &str) {
    let backdate = format!(
        "update {table} set first_sent_at = now() - interval '{ago}', lease_expires_at = now() where id = '{id}'"
    );
    service.database().execute(backdate).await;
}

/// Returns how often the gateway was polled for a payment or refund.
async fn polls_of(service: &Service, id: Uuid) -> usize {
    let query = format!("reference={}", service.gateway_key(id).await);
    service.gateway().requests().iter().filter(|request| request.path.ends_with(&query)).count()
}

async fn wait_for_another_poll(service: &Service, id: Uuid) {
    let before = polls_of(service, id).await;
    // The first poll may have begun before the test prepared the gateway. The second poll begins afterwards, so its
    // response has all prepared records.
    eventually("the gateway is polled again", async || {
        (polls_of(service, id).await > before + 1).then_some(())
    })
    .await;
}

async fn payment(service: &Service, id: Uuid) -> Value {
    service.database().rows(format!("select * from payments where id = '{id}'")).await.remove(0)
}

async fn discrepancies(service: &Service, id: Uuid) -> Vec<Value> {
    let condition = format!("action = 'discrepancy' and metadata -> 'record_ids' ? '{id}'");
    service.audit_events(&condition).await
}

#[tokio::test]
async fn a_charge_is_resent_with_identical_bytes_and_key() {
    let service = service().await;
    service.gateway().faults().set(outage());
    let order = service.customer().await.places_an_order().await;
    let accepted =
        order.pay("pm_card_ok").header("x-correlation-id", "the-first-request").await.assert_status(202);
    let key = service.gateway_key(accepted.id()).await.to_string();
    let sends_by_request = service.gateway().calls_for(&key);
    service.gateway().faults().set(no_webhooks());
    order.wait_until("paid").await;

    let sent = service.gateway().requests();
    let sent: Vec<_> = sent.iter().filter(|request| request.idempotency_key.as_ref() == Some(&key)).collect();
    assert!(sends_by_request >= 1 && sent.len() > sends_by_request, "recovery has not resent the charge");
    for request in &sent {
        assert_eq!((&request.path, &request.body), (&sent[0].path, &sent[0].body));
        assert_eq!(request.correlation_id.as_deref(), Some("the-first-request"));
        assert!(request.traceparent.is_some());
    }
    let body: Value = serde_json::from_str(&sent[0].body).unwrap();
    let expected =
        json!({ "amount": 2580, "currency": "EUR", "payment_method": "pm_card_ok", "reference": key });
    assert_eq!(body, expected);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_cut_connection_does_not_repeat_the_charge() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(Faults { cut_rate: 1.0, ..no_webhooks() });
    let payment = order.pay("pm_card_ok").await.assert_status(202).id();
    service.gateway().faults().set(no_webhooks());
    order.wait_until("paid").await;
    assert_eq!(service.charges_for(payment).await.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_known_charge_is_not_resent() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_timeout").await.assert_status(202).id();
    // From now on, a resend with the same key would create a second charge.
    service.gateway().expire_keys();
    order.wait_until("paid").await;
    assert_eq!(service.charges_for(payment).await.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn recovery_skips_payments_that_a_request_processes() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let payment = order.pay("pm_card_ok").await.assert_status(202).id();
    assert_eq!(polls_of(&service, payment).await, 0);
    assert_eq!(service.count_requests_for(payment).await, 1);
    service.gateway().release();
    order.wait_until("paid").await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_without_a_charge_fails_only_after_25_hours() {
    let service = service().await;
    let (order, id) = pay_during_outage(&service, "pm_card_ok").await;
    backdate_first_send(&service, "payments", id, "24 hours").await;
    service.gateway().faults().set(no_webhooks());
    let sent = service.count_requests_for(id).await;
    eventually("the gateway is polled", async || {
        backdate_first_send(&service, "payments", id, "24 hours").await;
        (polls_of(&service, id).await > 3).then_some(())
    })
    .await;
    assert_eq!(
        payment(&service, id).await["status"],
        "processing",
        "an empty response must fail no payment before 25 hours"
    );
    assert_eq!(
        service.count_requests_for(id).await,
        sent,
        "a key that may have expired must not be used again"
    );

    eventually("the payment has failed", async || {
        backdate_first_send(&service, "payments", id, "25 hours 1 minute").await;
        (payment(&service, id).await["status"] == "failed").then_some(())
    })
    .await;
    assert_eq!(payment(&service, id).await["failure_reason"], "gateway_timeout");
    assert_eq!(service.metric("payments_total{outcome=\"failed\"}").await, 1);
    assert_eq!(order.status().await, "pending_payment");
    order.pay_successfully().await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_empty_response_never_fails_a_refund() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let paid = order.pay_successfully().await;
    let support = service.support().await;
    service.gateway().faults().set(outage());
    let refund = support.refund(paid, Some(500)).await.assert_status(202).id();
    backdate_first_send(&service, "refunds", refund, "3 days").await;
    service.gateway().faults().set(no_webhooks());
    let sent = service.count_requests_for(refund).await;
    eventually("the gateway is polled", async || {
        backdate_first_send(&service, "refunds", refund, "3 days").await;
        (polls_of(&service, refund).await > 3).then_some(())
    })
    .await;
    let row = service.database().rows(format!("select * from refunds where id = '{refund}'")).await.remove(0);
    assert_eq!(row["status"], "processing");
    assert_eq!(payment(&service, paid).await["refund_reserved_amount"], 500, "the amount must stay reserved");
    assert_eq!(service.count_requests_for(refund).await, sent);
    service.invariants_hold().await;
}

#[tokio::test]
async fn recovery_does_not_fail_a_payment_on_a_rejection() {
    let service = service().await;
    let (order, id) = pay_during_outage(&service, "pm_card_from_another_gateway").await;
    let sent = service.count_requests_for(id).await;
    service.gateway().faults().set(no_webhooks());
    eventually("the charge is resent and rejected", async || {
        (service.count_requests_for(id).await > sent).then_some(())
    })
    .await;
    wait_for_another_poll(&service, id).await;
    let sent = service.count_requests_for(id).await;
    let open = payment(&service, id).await;
    assert_eq!(open["status"], "processing");
    let attempts = usize::try_from(open["attempts"].as_i64().unwrap()).unwrap();
    assert!(attempts >= sent, "{attempts} attempts are counted, and {sent} were sent");
    let _still_taken = order.pay("pm_card_ok").await.assert_problem(409, "conflict");
    service.invariants_hold().await;
}

#[tokio::test]
async fn two_charges_for_one_payment_settle_nothing_and_are_reported() {
    let service = service().await;
    let (order, id) = pay_during_outage(&service, "pm_card_ok").await;
    for name in ["one", "two"] {
        let charge = Charge {
            id: format!("ch_{name}"),
            reference: service.gateway_key(id).await,
            status: ChargeStatus::Succeeded,
            decline_code: None,
            amount: 2580,
            currency: "EUR".to_owned(),
        };
        service.gateway().record(charge).unwrap();
    }
    service.gateway().faults().set(no_webhooks());
    eventually("the discrepancy is reported", async || {
        (!discrepancies(&service, id).await.is_empty()).then_some(())
    })
    .await;
    wait_for_another_poll(&service, id).await;
    assert_eq!(payment(&service, id).await["status"], "processing");
    assert_eq!(order.status().await, "pending_payment");
}

#[tokio::test]
async fn a_charge_of_another_amount_settles_nothing_and_is_reported() {
    let service = service().await;
    let (order, id) = pay_during_outage(&service, "pm_card_ok").await;
    let wrong = Charge {
        id: "ch_wrong".to_owned(),
        reference: service.gateway_key(id).await,
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 258_000,
        currency: "EUR".to_owned(),
    };
    service.gateway().record(wrong.clone()).unwrap();
    service.gateway().faults().set(no_webhooks());
    eventually("the discrepancy is reported", async || {
        (!discrepancies(&service, id).await.is_empty()).then_some(())
    })
    .await;
    wait_for_another_poll(&service, id).await;
    wait_for_another_poll(&service, id).await;
    assert_eq!(payment(&service, id).await["status"], "processing");
    assert_eq!(order.status().await, "pending_payment");
    assert_eq!(discrepancies(&service, id).await.len(), 1, "the same discrepancy must be recorded once");
    assert_eq!(service.metric("audit_events_total{event_type=\"data_change\",result=\"failure\"}").await, 1);

    // A second charge of the same payment is a new discrepancy.
    let second = Charge { id: "ch_second".to_owned(), ..wrong };
    service.gateway().record(second).unwrap();
    let events = eventually("the second charge is reported", async || {
        let events = discrepancies(&service, id).await;
        (events.len() > 1).then_some(events)
    })
    .await;
    let what: Vec<_> = events.iter().map(|event| event["metadata"]["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["amount", "several charges"]);
}

#[tokio::test]
async fn an_unknown_outcome_needs_no_review_at_first() {
    let service = service().await;
    let (_, payment) = pay_during_outage(&service, "pm_card_ok").await;
    // Recovery marks a payment for review when it releases the lease after a poll. The next poll begins afterwards.
    for _ in 0..2 {
        wait_for_another_poll(&service, payment).await;
    }
    let marked = "select count(*) from payments where parked_at is not null";
    assert_eq!(service.database().number(marked).await, 0);
}

#[tokio::test]
async fn a_payment_that_needs_review_is_still_settled() {
    let service = builder().setting("PAYMENT_PARK_AFTER_SECONDS", "1").start().await;
    let (order, id) = pay_during_outage(&service, "pm_card_ok").await;
    eventually("the payment needs review", async || {
        (service.metric("payments_parked").await == 1).then_some(())
    })
    .await;
    assert_eq!(payment(&service, id).await["status"], "processing");
    assert_eq!(service.metric("payments_processing").await, 1);
    assert!(service.metric("payment_oldest_processing_seconds").await >= 1);

    service.gateway().faults().set(no_webhooks());
    order.wait_until("paid").await;
    eventually("nothing needs review", async || (service.metric("payments_parked").await == 0).then_some(()))
        .await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_webhook_settles_a_payment_that_needs_review() {
    let service = builder().setting("PAYMENT_PARK_AFTER_SECONDS", "1").start().await;
    let (order, id) = pay_during_outage(&service, "pm_card_ok").await;
    eventually("the payment needs review", async || {
        (!payment(&service, id).await["parked_at"].is_null()).then_some(())
    })
    .await;
    let charge = Charge {
        id: "ch_parked".to_owned(),
        reference: service.gateway_key(id).await,
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 2580,
        currency: "EUR".to_owned(),
    };
    service.gateway().record(charge.clone()).unwrap();
    let event = Event::of_charge(&charge).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&event).await.unwrap(), 204);
    assert_eq!(order.status().await, "paid", "the webhook must settle the payment during the outage");
    assert!(payment(&service, id).await["parked_at"].is_null());
    service.invariants_hold().await;
}
