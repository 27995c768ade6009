//! What must not wait for a scrape and a rule is told at once.
use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::State, routing::post};
use dev::{
    gateway::{Charge, ChargeStatus, Event, Faults, Webhooks},
    harness::{Service, eventually},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::builder;

/// Somebody who is on call.
struct Pager {
    url: String,
    received: Arc<Mutex<Vec<Value>>>,
}

impl Pager {
    async fn switched_on() -> Self {
        let received = Arc::default();
        let take = async |State(received): State<Arc<Mutex<Vec<Value>>>>, Json(alert): Json<Value>| {
            received.lock().unwrap().push(alert);
        };
        let router = Router::new().route("/alerts", post(take)).with_state(Arc::clone(&received));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, received }
    }

    /// Waits for an alert with this in its title.
    async fn receives(&self, title: &str) -> Value {
        eventually(title, async || self.all(title).pop()).await
    }

    fn all(&self, title: &str) -> Vec<Value> {
        let received = self.received.lock().unwrap();
        received.iter().filter(|alert| alert["title"].as_str().unwrap().contains(title)).cloned().collect()
    }
}

async fn on_call() -> (Service, Pager) {
    let pager = Pager::switched_on().await;
    let service = builder()
        .setting("ALERT_WEBHOOK_URL", &pager.url)
        .setting("PAYMENT_PARK_AFTER_SECONDS", "1")
        .start()
        .await;
    (service, pager)
}

fn is_complete(alert: &Value, severity: &str) {
    assert_eq!(alert["severity"], severity, "{alert:#}");
    assert!(alert["description"].as_str().is_some_and(|text| text.len() > 20), "{alert:#}");
    let timestamp = alert["timestamp"].as_str().unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(timestamp).is_ok(), "{alert:#}");
    assert!(alert["metadata"].is_object(), "{alert:#}");
    assert_eq!(alert.as_object().unwrap().len(), 5, "{alert:#}");
}

#[tokio::test]
async fn a_breaker_that_opens_and_closes_tells_so_once_each() {
    let (service, pager) = on_call().await;
    let customer = service.customer().await;
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the breaker opens", async || {
        (customer.places_an_order().await.pay("pm_card_ok").await.status == 503).then_some(())
    })
    .await;
    let opened = pager.receives("Circuit breaker opened").await;
    is_complete(&opened, "warning");
    assert_eq!(opened["metadata"]["service"], "payment_gateway");

    service.gateway().faults().clear();
    let closed = pager.receives("Circuit breaker closed").await;
    is_complete(&closed, "info");
    assert_eq!(pager.all("Circuit breaker opened").len(), 1, "it is said once in the interval");
    assert!(service.metric("alerts_sent_total{outcome=\"sent\"}").await >= 2);
}

#[tokio::test]
async fn a_payment_that_is_parked_calls_a_person() {
    let (service, pager) = on_call().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(Faults {
        error_rate: 1.0,
        webhooks: Webhooks::Never,
        ..Faults::default()
    });
    let payment = order.pay("pm_card_ok").await.is(202).id();
    let parked = pager.receives("parked").await;
    is_complete(&parked, "critical");
    assert_eq!(parked["metadata"]["id"], json!(payment));
}

#[tokio::test]
async fn a_contradiction_between_the_gateway_and_us_calls_a_person() {
    let (service, pager) = on_call().await;
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
    let discrepancy = pager.receives("unknown reference").await;
    is_complete(&discrepancy, "critical");
    assert_eq!(discrepancy["metadata"]["id"], json!(unknown.reference));
}

#[tokio::test]
async fn a_pager_that_is_switched_off_costs_no_request_anything() {
    let service = builder().setting("ALERT_WEBHOOK_URL", "http://127.0.0.1:1/alerts").start().await;
    let customer = service.customer().await;
    let event = Event::new(
        "charge.succeeded",
        &json!({
            "id": "ch_1", "reference": Uuid::now_v7(), "status": "succeeded", "decline_code": null, "amount": 1, "currency": "EUR"
        }),
    );
    assert_eq!(service.gateway().deliver_webhook(&event.unwrap()).await.unwrap(), 204);
    customer.places_an_order().await.is_paid().await;
}
