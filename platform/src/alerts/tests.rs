use std::net::SocketAddr;

use axum::{Json, Router, extract::State, http::Uri, routing::any};
use chrono::TimeDelta;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::advance};

use super::{receiver::label_name, *};

/// Maximum time that a test waits for one step, far longer than any step takes.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a receiver that responds with `statuses`, one after the other, then with 200. Returns the receiver's address,
/// and a channel with the path and the body of each request.
async fn receiver(statuses: &'static [u16]) -> (SocketAddr, mpsc::UnboundedReceiver<(String, Value)>) {
    type Script = (mpsc::UnboundedSender<(String, Value)>, Arc<Mutex<std::slice::Iter<'static, u16>>>);
    async fn take(State((sender, script)): State<Script>, uri: Uri, Json(body): Json<Value>) -> StatusCode {
        let _ = sender.send((uri.path().to_owned(), body));
        let status = script.lock().unwrap().next().copied().unwrap_or(200);
        StatusCode::from_u16(status).unwrap()
    }
    let (sender, received) = mpsc::unbounded_channel();
    let script: Script = (sender, Arc::new(Mutex::new(statuses.iter())));
    let router = Router::new().fallback(any(take)).with_state(script);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(socket, router).await });
    (address, received)
}

/// Starts a receiver that accepts connections and never responds.
async fn silent_receiver() -> (SocketAddr, TcpListener) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (socket.local_addr().unwrap(), socket)
}

fn start(webhook: Option<String>, alertmanager: Option<String>) -> Alerts {
    let _another_test_did = rustls::crypto::ring::default_provider().install_default();
    let url = |url: Option<String>| url.map(|url| url.parse().unwrap());
    let repeat_interval = Duration::from_mins(5);
    let config = Settings {
        webhook_url: url(webhook),
        alertmanager_url: url(alertmanager),
        runbooks_url: Some("http://runbooks/here".parse().unwrap()),
        labels: [("namespace".to_owned(), "kitchen".to_owned())].into(),
        repeat_interval,
    };
    Alerts::start(&config, "teapots").unwrap()
}

fn alert(title: &str) -> Alert {
    Alert {
        condition: Condition::symptom("KettleLost", "kitchen"),
        severity: Severity::Warning,
        title: title.to_owned(),
        description: "The kettle does not respond.".to_owned(),
        metadata: BTreeMap::from([("service.name".to_owned(), "kettle".to_owned())]),
    }
}

fn deadline() -> Instant {
    Instant::now() + WAIT_TIMEOUT
}

#[tokio::test]
async fn the_webhook_and_alertmanager_get_their_own_formats() {
    let (address, mut received) = receiver(&[]).await;
    let alerts = start(Some(format!("http://{address}/hook")), Some(format!("http://{address}/prefix/")));
    let id = correlation::CorrelationId::generate();
    correlation::Context::for_work(id.clone()).sync_scope(|| alerts.raise(alert("Kettle lost")));
    assert!(alerts.flush(deadline()).await);
    let got = BTreeMap::from([received.recv().await.unwrap(), received.recv().await.unwrap()]);

    let webhook = &got["/hook"];
    let timestamp = webhook["timestamp"].as_str().unwrap();
    assert!(DateTime::parse_from_rfc3339(timestamp).is_ok());
    let expected = json!({
        "severity": "warning",
        "title": "Kettle lost",
        "description": "The kettle does not respond.",
        "timestamp": timestamp,
        "metadata": { "service.name": "kettle", "correlation_id": id.as_str(), "runbook_url": "http://runbooks/here/KettleLost" },
    });
    assert_eq!(webhook, &expected);

    let alertmanager = &got["/prefix/api/v2/alerts"][0];
    let labels = json!({
        "alertname": "KettleLost",
        "title": "Kettle lost",
        "severity": "warning",
        "job": "teapots",
        "namespace": "kitchen",
        "raised_by": "service",
        "incident": "kitchen",
        "incident_role": "symptom",
    });
    assert_eq!(alertmanager["labels"], labels);
    let annotations = json!({
        "summary": "Kettle lost",
        "description": "The kettle does not respond.",
        "service_name": "kettle",
        "correlation_id": id.as_str(),
        "runbook_url": "http://runbooks/here/KettleLost",
    });
    assert_eq!(alertmanager["annotations"], annotations);
    let time = |name: &str| DateTime::parse_from_rfc3339(alertmanager[name].as_str().unwrap()).unwrap();
    assert_eq!(time("endsAt") - time("startsAt"), TimeDelta::minutes(10));
}

#[tokio::test]
async fn the_same_alert_is_sent_once() {
    let (address, mut received) = receiver(&[]).await;
    let alerts = start(Some(format!("http://{address}/")), None);
    let suppressed = SENT.with_label_values(&[SUPPRESSED]).get();
    alerts.raise(alert("first"));
    alerts.raise(alert("first"));
    alerts.raise(Alert { severity: Severity::Critical, ..alert("first") });
    assert!(alerts.flush(deadline()).await);
    assert_eq!(received.recv().await.unwrap().1["severity"], "warning");
    assert_eq!(received.recv().await.unwrap().1["severity"], "critical");
    assert!(received.is_empty());
    assert!(SENT.with_label_values(&[SUPPRESSED]).get() > suppressed);
}

#[tokio::test(start_paused = true)]
async fn an_alert_may_be_repeated_after_the_interval() {
    let (recent, interval) = (RecentAlerts::default(), Duration::from_mins(5));
    let key = (Severity::Info, "title".to_owned());
    assert!(recent.record(&key, interval));
    advance(interval / 2).await;
    assert!(!recent.record(&key, interval));
    advance(interval / 2).await;
    assert!(recent.record(&key, interval));
    recent.remove(&key);
    assert!(recent.record(&key, interval));
}

#[tokio::test]
async fn a_failed_send_is_retried() {
    let (address, mut received) = receiver(&[503, 200]).await;
    let alerts = start(Some(format!("http://{address}/")), None);
    alerts.raise(alert("retried"));
    assert!(alerts.flush(deadline()).await);
    assert_eq!(received.recv().await.unwrap().1, received.recv().await.unwrap().1);
}

#[tokio::test]
async fn a_rejected_alert_can_be_raised_again_at_once() {
    let (address, mut received) = receiver(&[400, 302, 200]).await;
    let alerts = start(Some(format!("http://{address}/")), None);
    let failed = SENT.with_label_values(&[FAILED]).get();
    for _ in 0..4 {
        alerts.raise(alert("refused"));
        assert!(alerts.flush(deadline()).await);
    }
    for _ in 0..3 {
        received.recv().await.unwrap();
    }
    assert!(received.is_empty());
    assert!(SENT.with_label_values(&[FAILED]).get() >= failed + 2);
}

#[tokio::test]
async fn raising_never_waits_for_a_hanging_receiver() {
    let (address, _socket) = silent_receiver().await;
    let alerts = start(Some(format!("http://{address}/")), None);
    let dropped = SENT.with_label_values(&[DROPPED]).get();
    for number in 0..QUEUE_CAPACITY + 10 {
        alerts.raise(alert(&format!("number {number}")));
    }
    assert!(SENT.with_label_values(&[DROPPED]).get() >= dropped + 9);
    assert!(!alerts.flush(Instant::now()).await);
}

#[tokio::test]
async fn without_receivers_nothing_is_sent() {
    let alerts = start(None, None);
    alerts.raise(alert("only logged"));
    assert!(alerts.flush(Instant::now()).await);
    let text = prometheus::TextEncoder::new().encode_to_string(&prometheus::gather()).unwrap();
    for outcome in ["sent", "failed", "suppressed", "dropped"] {
        assert!(text.contains(&format!("alerts_sent_total{{outcome=\"{outcome}\"}}")), "{outcome}");
    }
}

#[test]
fn annotations_have_valid_names_for_alertmanager() {
    assert_eq!(label_name("instance.id"), "instance_id");
    assert_eq!(label_name("5xx"), "_5xx");
}
