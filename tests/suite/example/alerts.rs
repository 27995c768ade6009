//! The alerts about circuit breakers, payments that need review, and discrepancies with the payment gateway. An
//! unreachable receiver of alerts delays no payment.
use dev::{
    example::gateway::{Charge, ChargeStatus, Event, Faults, Webhooks},
    harness::{Service, eventually},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    builder,
    operations::alerts::{Pager, assert_complete},
};

/// Starts a receiver of alerts, and a service in which a payment needs review after one second without a known outcome.
async fn service_with_pager() -> (Service, Pager) {
    let pager = Pager::start().await;
    let service = builder()
        .setting("ALERT_WEBHOOK_URL", &pager.url)
        .setting("PAYMENT_PARK_AFTER_SECONDS", "1")
        .start()
        .await;
    (service, pager)
}

#[tokio::test]
async fn each_breaker_transition_raises_one_alert() {
    let (service, pager) = service_with_pager().await;
    let customer = service.customer().await;
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the breaker opens", async || {
        (customer.places_an_order().await.pay("pm_card_ok").await.status == 503).then_some(())
    })
    .await;
    let opened = pager.wait_for("Circuit breaker opened").await;
    assert_complete(&opened, "warning");
    assert_eq!(opened["metadata"]["service"], "payment_gateway");

    service.gateway().faults().clear();
    let closed = pager.wait_for("Circuit breaker closed").await;
    assert_complete(&closed, "info");
    assert_eq!(pager.all("Circuit breaker opened").len(), 1, "the same alert must be sent only once");
    assert!(service.metric("alerts_sent_total{outcome=\"sent\"}").await >= 2);
}

#[tokio::test]
async fn a_payment_that_needs_review_raises_an_alert() {
    let (service, pager) = service_with_pager().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(Faults {
        error_rate: 1.0,
        webhooks: Webhooks::Never,
        ..Faults::default()
    });
    let payment = order.pay("pm_card_ok").await.assert_status(202).id();
    let parked = pager.wait_for("Review needed: payment").await;
    assert_complete(&parked, "critical");
    assert_eq!(parked["metadata"]["id"], json!(payment));
}

#[tokio::test]
async fn a_contradiction_with_the_gateway_raises_an_alert() {
    let (service, pager) = service_with_pager().await;
    let unknown = Charge {
        id: "ch_unknown".to_owned(),
        reference: Uuid::now_v7(),
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 1,
        currency: "EUR".to_owned(),
    };
    let event = Event::of_charge(&unknown).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&event).await.unwrap(), 204);
    let discrepancy = pager.wait_for("unknown reference").await;
    assert_complete(&discrepancy, "critical");
    assert_eq!(discrepancy["metadata"]["id"], json!(unknown.reference));

    let again = Event::of_charge(&unknown).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&again).await.unwrap(), 204);
    let recorded = service.audit_events("action = 'discrepancy'").await;
    assert_eq!(recorded.len(), 1, "another event with the same content must be no new discrepancy");
    let suppressed = service.metric("alerts_sent_total{outcome=\"suppressed\"}").await;
    assert_eq!(suppressed, 0, "a second alert was raised and suppressed");
}

#[tokio::test]
async fn an_unreachable_pager_delays_no_payment() {
    let service = builder().setting("ALERT_WEBHOOK_URL", "http://127.0.0.1:1/alerts").start().await;
    let customer = service.customer().await;
    let event = Event::new(
        "charge.succeeded",
        &json!({
            "id": "ch_1", "reference": Uuid::now_v7(), "status": "succeeded", "decline_code": null, "amount": 1, "currency": "EUR"
        }),
    );
    assert_eq!(service.gateway().deliver_webhook(&event.unwrap()).await.unwrap(), 204);
    customer.places_an_order().await.pay_successfully().await;
}
