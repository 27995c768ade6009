//! Alerts that the service sends itself, because these alerts must not wait until Prometheus has scraped the service
//! and has evaluated a rule.
use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::State, routing::post};
use dev::harness::{Database, Service, eventually};
use serde_json::Value;

use crate::{
    audit::{
        seals::{verify, wait_until_everything_is_sealed},
        verification::unseal,
    },
    builder,
};

/// A receiver of alerts.
pub struct Pager {
    pub url: String,
    received: Arc<Mutex<Vec<Value>>>,
}

impl Pager {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub async fn start_at(address: &str) -> Self {
        let received = Arc::default();
        let take = async |State(received): State<Arc<Mutex<Vec<Value>>>>, Json(alert): Json<Value>| {
            received.lock().unwrap().push(alert);
        };
        let router = Router::new().route("/alerts", post(take)).with_state(Arc::clone(&received));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, received }
    }

    /// Waits for an alert whose title contains this text. Returns the alert.
    pub async fn wait_for(&self, title: &str) -> Value {
        eventually(title, async || self.all(title).pop()).await
    }

    pub fn all(&self, title: &str) -> Vec<Value> {
        let received = self.received.lock().unwrap();
        received.iter().filter(|alert| alert["title"].as_str().unwrap().contains(title)).cloned().collect()
    }
}

async fn service_with_pager() -> (Service, Pager) {
    let pager = Pager::start().await;
    (builder().setting("ALERT_WEBHOOK_URL", &pager.url).start().await, pager)
}

/// Checks that an alert has this severity, and exactly five members: `title`, `severity`, `description`, `timestamp`
/// and `metadata`.
pub fn assert_complete(alert: &Value, severity: &str) {
    assert_eq!(alert["severity"], severity, "{alert:#}");
    assert!(alert["description"].as_str().is_some_and(|text| text.len() > 20), "{alert:#}");
    let timestamp = alert["timestamp"].as_str().unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(timestamp).is_ok(), "{alert:#}");
    assert!(alert["metadata"].is_object(), "{alert:#}");
    assert_eq!(alert.as_object().unwrap().len(), 5, "{alert:#}");
}

#[tokio::test]
async fn failed_audit_writes_raise_an_alert() {
    let (service, pager) = service_with_pager().await;
    let customer = service.customer().await;
    service.database().execute("revoke insert on audit_events from app_runtime").await;
    // One statement writes the change and its audit event. The service recognizes the failed audit write by the field
    // CONTEXT of PostgreSQL's error, which names the SQL function `record_audit_event`.
    assert_eq!(customer.creates().await.status, 500);
    let failures = service.metric("audit_write_failures_total").await;
    assert_eq!(failures, 1, "the failure must be counted once");
    let alert = pager.wait_for("Audit writes failed").await;
    assert_complete(&alert, "critical");
    assert_eq!(alert["metadata"]["events"], "1");
}

#[tokio::test]
async fn a_chain_without_the_last_head_raises_an_alert() {
    let pager = Pager::start().await;
    let service = builder()
        .setting("ALERT_WEBHOOK_URL", &pager.url)
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .start()
        .await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    let head = service.database().number("select number from audit_seal_head").await;
    service.wait_for_log("the process has logged the head", |line| line["seal_number"] == head).await;
    // The owner of the database deletes the whole chain of seals, and resets the head (the number and the hash of the
    // last seal). The tables are then consistent with each other, but contradict the head that the service has
    // read before.
    unseal(&service, "").await;
    let alert = pager.wait_for("Audit log tampered with").await;
    assert_complete(&alert, "critical");
    assert!(alert["description"].as_str().unwrap().contains("was rewritten"), "{alert:#}");
}

/// Starts a service and inserts an event whose `recorded_at` is ten minutes ago. The event stays unsealed until the
/// transaction that `delay_sealing` opens has ended.
async fn service_with_delayed_sealing(pager: &Pager, delay_sealing: impl AsyncFnOnce(&Database)) -> Service {
    // An open transaction that has a transaction id delays sealing in every database of its PostgreSQL server. So this
    // service has a server of its own.
    let service = builder()
        .on_a_dedicated_server()
        .setting("ALERT_WEBHOOK_URL", &pager.url)
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .start()
        .await;
    delay_sealing(service.database()).await;
    service
        .database()
        .execute(
            "insert into audit_events (id, timestamp, event_type, resource, action, result, service_version, recorded_at)
             values (gen_random_uuid(), now(), 'audit', 'x', 'x', 'success', 'x', now() - interval '10 minutes')",
        )
        .await;
    service
}

/// Waits for the alert about unsealed events. Returns the transaction that the alert names.
async fn reported_oldest_writer(pager: &Pager) -> String {
    let alert = pager.wait_for("Audit log not sealed").await;
    assert_complete(&alert, "warning");
    alert["metadata"]["oldest_writer"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_transaction_that_delays_sealing_is_named() {
    let pager = Pager::start().await;
    let mut forgotten = None;
    let service = service_with_delayed_sealing(&pager, async |database| {
        let statement = "set application_name = 'a forgotten session'; select pg_current_xact_id()";
        forgotten = Some(database.hold(statement).await);
    })
    .await;
    let named = reported_oldest_writer(&pager).await;
    assert!(named.starts_with("backend ") && named.contains("a forgotten session"), "{named}");
    assert!(service.gauge("audit_seal_lag_seconds").await >= 600.0);
    let verified = verify(&service, &[]).await.succeeded();
    assert!(verified.contains("not sealed yet, so not verified: "), "{verified}");
    forgotten.unwrap().release().await;
    wait_until_everything_is_sealed(&service).await;
}

#[tokio::test]
async fn a_prepared_transaction_that_delays_sealing_is_named() {
    let pager = Pager::start().await;
    // A prepared transaction belongs to no session, so ending a session does not end it.
    let service = service_with_delayed_sealing(&pager, async |database| {
        database.execute("begin; select pg_current_xact_id(); prepare transaction 'forgotten'").await;
    })
    .await;
    let named = reported_oldest_writer(&pager).await;
    assert!(named.starts_with("prepared transaction forgotten (in "), "{named}");
    assert!(service.gauge("audit_seal_lag_seconds").await >= 600.0);
    service.database().execute("rollback prepared 'forgotten'").await;
    wait_until_everything_is_sealed(&service).await;
}

#[tokio::test]
async fn an_unreachable_pager_delays_no_request() {
    let service = builder().setting("ALERT_WEBHOOK_URL", "http://127.0.0.1:1/alerts").start().await;
    let customer = service.customer().await;
    service.database().execute("revoke insert on audit_events from app_runtime").await;
    assert_eq!(customer.creates().await.status, 500);
    eventually("the delivery of the alert fails", async || {
        (service.metric("alerts_sent_total{outcome=\"failed\"}").await > 0).then_some(())
    })
    .await;
    let _listed = customer.lists().await.assert_status(200);
}
