//! Webhooks of the gateway: signed, duplicated, late, or invalid.
use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use dev::{
    example::gateway::{Charge, ChargeStatus, Event},
    harness::{Order, Request, Service, eventually},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{builder, operations::alerts::Pager, service};

/// Returns the request that delivers an event, with this time as its timestamp.
fn delivery(service: &Service, event: &Event, at: DateTime<Utc>) -> Request {
    let signature = service.gateway().sign(&event.body, &event.id, at).unwrap();
    service
        .anonymous()
        .post("/v1/gateway/events")
        .header("content-type", "application/json")
        .header("webhook-id", &event.id)
        .header("webhook-timestamp", &at.timestamp().to_string())
        .header("webhook-signature", &signature)
        .body(event.body.clone())
}

fn deliver_now(service: &Service, event: &Event) -> Request {
    delivery(service, event, Utc::now())
}

fn charge_of(reference: Uuid) -> Charge {
    Charge {
        id: format!("ch_{}", Uuid::now_v7().simple()),
        reference,
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 2580,
        currency: "EUR".to_owned(),
    }
}

/// Returns an order whose payment is charged, and the charge. The gateway has sent neither a response nor a webhook.
async fn order_without_outcome(service: &Service) -> (Order, Charge) {
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_timeout").await.assert_status(202).id();
    (order, service.charges_for(payment).await.remove(0))
}

/// Starts a service whose recovery worker does not poll the gateway during a test.
async fn service_without_polling() -> Service {
    builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await
}

async fn discrepancies(service: &Service, id: Uuid) -> Vec<Value> {
    let condition = format!("action = 'discrepancy' and metadata -> 'record_ids' ? '{id}'");
    service.audit_events(&condition).await
}

#[tokio::test]
async fn a_signed_event_settles_its_payment() {
    let service = service_without_polling().await;
    let (order, charge) = order_without_outcome(&service).await;
    let _received = deliver_now(&service, &Event::of_charge(&charge).unwrap()).await.assert_status(204);
    assert_eq!(order.status().await, "paid");
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_event_that_is_not_signed_by_the_gateway_changes_nothing() {
    let service = service_without_polling().await;
    let (order, charge) = order_without_outcome(&service).await;
    let event = Event::of_charge(&charge).unwrap();
    let signed = || deliver_now(&service, &event);
    let forged =
        standardwebhooks::Webhook::new("whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCwgMzIgYnl0ZXM=").unwrap();
    let forged = forged.sign(&event.id, Utc::now().timestamp(), event.body.as_bytes()).unwrap();

    for (what, request) in [
        ("another's signature", signed().header("webhook-signature", &forged)),
        ("no signature", signed().without_header("webhook-signature")),
        ("an empty signature", signed().header("webhook-signature", "")),
        ("a version without a signature", signed().header("webhook-signature", "v1")),
        ("nonsense", signed().header("webhook-signature", "v1,!!!!")),
        ("no id", signed().without_header("webhook-id")),
        ("an empty id", signed().header("webhook-id", "")),
        ("another id", signed().header("webhook-id", "msg_another")),
        ("no timestamp", signed().without_header("webhook-timestamp")),
        (
            "another timestamp",
            signed().header("webhook-timestamp", &(Utc::now().timestamp() - 1).to_string()),
        ),
        ("another body", signed().body(event.body.replace("2580", "2581"))),
        ("a body with one more space", signed().body(format!("{} ", event.body))),
        ("no body", signed().body("")),
    ] {
        let rejected = request.await;
        assert_eq!(rejected.status, 400, "{what}: {rejected}");
        let _rejected = rejected.assert_problem(400, "bad-signature");
    }
    assert_eq!(order.status().await, "pending_payment");
    let _genuine = signed().await.assert_status(204);
    assert_eq!(order.status().await, "paid");
}

#[tokio::test]
async fn an_event_is_accepted_for_five_minutes() {
    let service = service().await;
    let event = || Event::new("something.else", &json!({})).unwrap();
    for seconds in [0, 290, -290] {
        let at = Utc::now() - TimeDelta::seconds(seconds);
        let response = delivery(&service, &event(), at).await;
        assert_eq!(response.status, 204, "{seconds} s old: {response}");
    }
    for seconds in [310, -310, 86_400, -86_400] {
        let at = Utc::now() - TimeDelta::seconds(seconds);
        let response = delivery(&service, &event(), at).await;
        assert_eq!(response.status, 400, "{seconds} s old: {response}");
    }
}

#[tokio::test]
async fn a_malformed_timestamp_is_rejected() {
    let service = service().await;
    let event = Event::new("something.else", &json!({})).unwrap();
    for timestamp in [
        "",
        "now",
        "-",
        "0",
        "-1",
        "1.5",
        "1e9",
        "0x10",
        " 1",
        "+1",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "99999999999999999999999999",
    ] {
        let response = deliver_now(&service, &event).header("webhook-timestamp", timestamp).await;
        assert_eq!(response.status, 400, "{timestamp:?}: {response}");
        let _rejected = response.assert_problem(400, "bad-signature");
    }
    assert_eq!(service.metric("panics_total").await, 0);
    let _served = deliver_now(&service, &event).await.assert_status(204);
}

#[tokio::test]
async fn one_valid_signature_suffices_during_a_rotation() {
    let service = service().await;
    let event = Event::new("something.else", &json!({})).unwrap();
    let at = Utc::now();
    let good = service.gateway().sign(&event.body, &event.id, at).unwrap();
    let bad = "v1,c29tZWJvZHkgZWxzZSdzIHNpZ25hdHVyZSwgMzIgYnl0ZXM=";
    for signatures in [format!("{good} {bad}"), format!("{bad} {good}"), format!("v1a,AAAA {bad} {good}")] {
        let response = delivery(&service, &event, at).header("webhook-signature", &signatures).await;
        assert_eq!(response.status, 204, "{signatures}: {response}");
    }
    let response = delivery(&service, &event, at).header("webhook-signature", &format!("{bad} {bad}")).await;
    let _rejected = response.assert_problem(400, "bad-signature");
}

#[tokio::test]
async fn a_duplicate_event_is_applied_once() {
    let service = service_without_polling().await;
    let (order, charge) = order_without_outcome(&service).await;
    let event = Event::of_charge(&charge).unwrap();
    let deliveries: Vec<_> = (0..10).map(|_| deliver_now(&service, &event).in_background()).collect();
    for delivery in deliveries {
        let _received = delivery.response().await.assert_status(204);
    }
    // A second event about the same charge is no discrepancy.
    let _received = deliver_now(&service, &Event::of_charge(&charge).unwrap()).await.assert_status(204);

    assert_eq!(order.status().await, "paid");
    let payment = order.payments().await[0];
    let settled = format!("action = 'settle' and metadata -> 'record_ids' ? '{payment}'");
    assert_eq!(service.audit_events(&settled).await.len(), 1);
    assert_eq!(discrepancies(&service, payment).await, [Value::Null; 0]);
    assert_eq!(service.metric("payments_total{outcome=\"succeeded\"}").await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_second_event_with_the_same_id_is_ignored() {
    let service = service_without_polling().await;
    let (order, charge) = order_without_outcome(&service).await;
    let first = Event::new("something.else", &json!({})).unwrap();
    let second = Event { id: first.id.clone(), ..Event::of_charge(&charge).unwrap() };
    let _received = deliver_now(&service, &first).await.assert_status(204);
    let _received = deliver_now(&service, &second).await.assert_status(204);
    assert_eq!(order.status().await, "pending_payment");
}

#[tokio::test]
async fn an_event_after_the_response_changes_nothing() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let charge = service.charges_for(payment).await.remove(0);
    let _received = deliver_now(&service, &Event::of_charge(&charge).unwrap()).await.assert_status(204);
    assert_eq!(order.status().await, "paid");
    assert_eq!(discrepancies(&service, payment).await, [Value::Null; 0]);

    let support = service.support().await;
    let _refunded = support.refund(payment, None).await.assert_status(201);
    let _late = deliver_now(&service, &Event::of_charge(&charge).unwrap()).await.assert_status(204);
    assert_eq!(order.status().await, "refunded", "an old event must not restore an old state");
    assert_eq!(discrepancies(&service, payment).await, [Value::Null; 0]);
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_event_that_contradicts_a_settlement_is_recorded() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let charge = service.charges_for(payment).await.remove(0);
    let declined = Charge { status: ChargeStatus::Declined, ..charge };
    let _received = deliver_now(&service, &Event::of_charge(&declined).unwrap()).await.assert_status(204);
    let second_charge = charge_of(service.gateway_key(payment).await);
    let _received =
        deliver_now(&service, &Event::of_charge(&second_charge).unwrap()).await.assert_status(204);

    assert_eq!(order.status().await, "paid");
    assert_eq!(discrepancies(&service, payment).await.len(), 2);
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_event_of_an_unknown_payment_is_recorded() {
    let service = service().await;
    let unknown = Uuid::now_v7();
    let _received =
        deliver_now(&service, &Event::of_charge(&charge_of(unknown)).unwrap()).await.assert_status(204);
    let recorded = discrepancies(&service, unknown).await;
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0]["result"], "failure");

    let refund = json!({ "id": "re_1", "reference": unknown, "charge_id": "ch_1", "status": "succeeded", "amount": 1 });
    let _received =
        deliver_now(&service, &Event::new("refund.succeeded", &refund).unwrap()).await.assert_status(204);
    assert_eq!(discrepancies(&service, unknown).await.len(), 2);
}

#[tokio::test]
async fn a_charge_of_another_amount_never_settles_a_payment() {
    let service = service_without_polling().await;
    let (order, charge) = order_without_outcome(&service).await;
    let payment = order.payments().await[0];
    for wrong in [
        Charge { amount: charge.amount + 1, ..charge.clone() },
        Charge { amount: charge.amount - 1, ..charge.clone() },
        Charge { currency: "USD".to_owned(), ..charge.clone() },
    ] {
        let _received = deliver_now(&service, &Event::of_charge(&wrong).unwrap()).await.assert_status(204);
        assert_eq!(order.status().await, "pending_payment");
    }
    assert_eq!(discrepancies(&service, payment).await.len(), 3);
    let _received = deliver_now(&service, &Event::of_charge(&charge).unwrap()).await.assert_status(204);
    assert_eq!(order.status().await, "paid");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_newer_gateways_fields_and_events_are_ignored() {
    let service = service_without_polling().await;
    let (order, charge) = order_without_outcome(&service).await;
    let mut newer = serde_json::to_value(&charge).unwrap();
    newer["network"] = json!({ "name": "visa" });
    for kind in ["charge.disputed", "payout.paid", ""] {
        let _received = deliver_now(&service, &Event::new(kind, &newer).unwrap()).await.assert_status(204);
    }
    assert_eq!(order.status().await, "pending_payment");
    let _received =
        deliver_now(&service, &Event::new("charge.succeeded", &newer).unwrap()).await.assert_status(204);
    assert_eq!(order.status().await, "paid");
}

fn signed(body: &str) -> Event {
    Event { body: body.to_owned(), ..Event::new("", &json!({})).unwrap() }
}

#[tokio::test]
async fn a_signed_message_that_is_no_event_is_a_bad_request() {
    let service = service().await;
    for body in ["", "{", "[]", "null", r#"{"data":{}}"#] {
        let response = deliver_now(&service, &signed(body)).await;
        assert_eq!(response.status, 400, "{body}: {response}");
        let _rejected = response.assert_problem(400, "malformed-request");
    }
    assert_eq!(service.metric("panics_total").await, 0);
}

#[tokio::test]
async fn an_unusable_signed_event_is_recorded_and_alerted() {
    let pager = Pager::start().await;
    let service = builder().setting("ALERT_WEBHOOK_URL", &pager.url).start().await;
    let charge = |id: &str, reference: &str| {
        format!(
            r#"{{"type":"charge.succeeded","data":{{"id":{id},"reference":{reference},"status":"succeeded","decline_code":null,"amount":1,"currency":"EUR"}}}}"#
        )
    };
    let reference = format!("\"{}\"", Uuid::now_v7());
    let long = format!("\"{}\"", "x".repeat(256));
    let bodies = [
        r#"{"type":"charge.succeeded"}"#.to_owned(),
        r#"{"type":"refund.failed","data":null}"#.to_owned(),
        r#"{"type":"charge.succeeded","data":{"id":"ch_1"}}"#.to_owned(),
        charge("\"ch_1\"", "\"x\""),
        charge("\"ch_1\"", "null"),
        charge("\"ch_1\"", "7"),
        charge(r#""ch_\u0000""#, &reference),
        charge(r#""ch_\ud800""#, &reference),
        charge(&long, &reference),
        charge("\"\"", &reference),
    ];
    for body in &bodies {
        let response = deliver_now(&service, &signed(body)).await;
        assert_eq!(response.status, 204, "{body}: {response}");
    }
    let recorded = service.audit_events("action = 'discrepancy'").await;
    assert_eq!(recorded.len(), bodies.len());
    assert!(recorded.iter().all(|event| event["metadata"]["what"] == "unusable event"));
    eventually("each event has an alert", async || {
        (pager.all("unusable event").len() == bodies.len()).then_some(())
    })
    .await;
    assert_eq!(service.metric("panics_total").await, 0);
}

#[tokio::test]
async fn an_unusable_event_is_recorded_with_its_payment_or_refund() {
    let service = service().await;
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    let refund = service.support().await.refund(payment, Some(100)).await.assert_status(201).id();
    for (id, kind) in [(payment, "charge.succeeded"), (refund, "refund.succeeded")] {
        let reference = service.gateway_key(id).await;
        let body =
            json!({ "type": kind, "data": { "id": "", "reference": reference, "status": "succeeded" } });
        let response = deliver_now(&service, &signed(&body.to_string())).await;
        assert_eq!(response.status, 204, "{body}: {response}");
        let recorded = service.audit_events("action = 'discrepancy'").await.pop().unwrap();
        assert_eq!(recorded["metadata"]["record_ids"], json!([id]), "{body}");
    }
}

#[tokio::test]
async fn two_secrets_verify_while_one_replaces_the_other() {
    let [old, new, unknown] = ["old", "new", "unknown"].map(|name| {
        format!("whsec_{}", BASE64_STANDARD.encode(format!("{name} secret, long enough for a test")))
    });
    let service = builder().setting("GATEWAY_WEBHOOK_SECRET", &format!("{new} {old}")).start().await;
    for (secret, status) in [(old, 204), (new, 204), (unknown, 400)] {
        let event = Event::new("something.else", &json!({})).unwrap();
        let at = Utc::now();
        let signer = standardwebhooks::Webhook::new(&secret).unwrap();
        let signature = signer.sign(&event.id, at.timestamp(), event.body.as_bytes()).unwrap();
        let response = delivery(&service, &event, at).header("webhook-signature", &signature).await;
        assert_eq!(response.status, status, "{response}");
    }
}

#[tokio::test]
async fn an_event_that_failed_is_applied_when_it_is_resent() {
    let service = service_without_polling().await;
    let (order, charge) = order_without_outcome(&service).await;
    let event = Event::of_charge(&charge).unwrap();
    service.database().execute("revoke insert on audit_events from app_runtime").await;
    assert_eq!(deliver_now(&service, &event).await.status, 500);
    let claimed = format!("select count(*) from idempotency_keys where key = '{}'", event.id);
    assert_eq!(
        service.database().number(&claimed).await,
        0,
        "the id of an event must be stored only together with its effect"
    );
    assert_eq!(order.status().await, "pending_payment");

    service
        .database()
        .execute("grant insert (id, timestamp, event_type, user_id, role, resource, action, result, ip_address, metadata, correlation_id, request_id, trace_id, service_version) on audit_events to app_runtime").await;
    let _received = deliver_now(&service, &event).await.assert_status(204);
    assert_eq!(order.status().await, "paid");
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_event_has_the_correlation_id_of_its_request() {
    let service = service_without_polling().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").header("x-correlation-id", "checkout-8").in_background();
    order.wait_until("paid").await;
    service.gateway().release();
    let _paid = attempt.response().await.assert_status(201);
    service
        .wait_for_log("the webhook has the payment's correlation id", |line| {
            line["correlation_id"] == "checkout-8" && line["route"] == "/v1/gateway/events"
        })
        .await;
}
