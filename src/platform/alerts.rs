//! Alerts that the service sends itself, for what must not wait for a scrape and a rule: a breaker that
//! opened, two charges for one payment.
//!
//! Raising an alert never waits and never fails: the work that raises it is worth more than the alert. It is
//! logged, put into a bounded queue, and sent from there by a task of its own, with retries. The same alert
//! (severity and title) goes out at most once per interval, so that a flapping dependency wakes nobody twice.
//!
//! What became of each is in `alerts_sent_total`.
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use lazy_static::lazy_static;
use prometheus::{IntCounterVec, register_int_counter_vec};
use reqwest::{StatusCode, redirect};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};
use url::Url;

use super::{
    resilience::retry::Backoff,
    telemetry::{
        correlation,
        metrics::{declare, registered},
    },
};
use crate::config;

lazy_static! {
    static ref SENT: IntCounterVec = registered(register_int_counter_vec!(
        "alerts_sent_total",
        "Alerts that the service raised itself, by what became of them.",
        &["outcome"]
    ));
}

/// Every receiver took it.
const SENT_TO_ALL: &str = "sent";
/// At least one receiver did not take it.
const FAILED: &str = "failed";
/// The same alert was raised within the interval.
const SUPPRESSED: &str = "suppressed";
/// There was no room in the queue.
const DROPPED: &str = "dropped";

/// More alerts than this at once are one incident, and somebody knows of it by then.
const QUEUE: usize = 64;

/// Attempts at one receiver: with the pauses between them, about as long as a receiver takes to restart.
const ATTEMPTS: u32 = 5;

const BETWEEN_ATTEMPTS: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));

/// How long a receiver may take over one attempt.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long Alertmanager shows an alert at least: an event has no end of its own.
const SHORTEST_FIRING: Duration = Duration::from_mins(5);

/// How urgent an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Somebody has to act now.
    Critical,
    /// Somebody has to act soon.
    Warning,
    /// Nobody has to act.
    Info,
}

/// Something that people should know.
#[derive(Debug, Clone)]
pub struct Alert {
    /// How urgent it is.
    pub severity: Severity,
    /// What happened, in few words, and the same ones each time.
    pub title: String,
    /// What it means, and what to do.
    pub description: String,
    /// What helps to find the cause. No secrets and no personal data: it leaves the house.
    pub metadata: BTreeMap<String, String>,
}

/// An alert on its way. Its JSON is what webhooks get.
#[derive(Debug, Serialize)]
struct Raised {
    severity: Severity,
    title: String,
    description: String,
    #[serde(serialize_with = "rfc3339")]
    timestamp: DateTime<Utc>,
    metadata: BTreeMap<String, String>,
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// Raises alerts. Cheap to clone.
#[derive(Clone)]
pub struct Alerts(Arc<Inner>);

struct Inner {
    repeat_interval: Duration,
    /// `None`: there are no receivers.
    queue: Option<mpsc::Sender<Message>>,
    raised: Arc<Recent>,
}

enum Message {
    Alert(Raised),
    /// Everything before this is done when the sender is told.
    Flush(oneshot::Sender<()>),
}

impl Alerts {
    /// Starts to send what is raised. With no receiver configured, alerts are only logged.
    ///
    /// `service` tells receivers where alerts come from. Needs the process's TLS provider to be installed.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn start(config: &config::Alerts, service: &str) -> Result<Self, reqwest::Error> {
        declare(&SENT, [[SENT_TO_ALL], [FAILED], [SUPPRESSED], [DROPPED]]);
        let raised = Arc::new(Recent::default());
        let repeat_interval = config.repeat_interval;
        let webhook = config.webhook_url.clone().map(Receiver::Webhook);
        let alertmanager = config.alertmanager_url.as_ref().map(|base| Receiver::Alertmanager {
            url: alertmanager_api(base),
            service: service.to_owned(),
            // Until the next one has surely come, and long enough to be seen.
            firing_for: repeat_interval.saturating_mul(2).max(SHORTEST_FIRING),
        });
        let receivers: Vec<_> = webhook.into_iter().chain(alertmanager).collect();
        let queue = if receivers.is_empty() {
            None
        } else {
            // A POST that is redirected would arrive as a GET.
            let client =
                reqwest::Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none()).build()?;
            let (queue, messages) = mpsc::channel(QUEUE);
            tokio::spawn(send_all(client, receivers, messages, Arc::clone(&raised)));
            Some(queue)
        };
        Ok(Self(Arc::new(Inner { repeat_interval, queue, raised })))
    }

    /// Raises an alert: never waits, never fails. It carries the present correlation id.
    pub fn raise(&self, alert: Alert) {
        let Alert { severity, title, description, mut metadata } = alert;
        let key = (severity, title.clone());
        if !self.0.raised.remember(&key, self.0.repeat_interval) {
            SENT.with_label_values(&[SUPPRESSED]).inc();
            return;
        }
        if let Some(context) = correlation::current() {
            metadata
                .entry("correlation_id".to_owned())
                .or_insert_with(|| context.correlation_id().to_string());
        }
        match severity {
            Severity::Critical => tracing::error!(title, ?metadata, "alert: {description}"),
            Severity::Warning => tracing::warn!(title, ?metadata, "alert: {description}"),
            Severity::Info => tracing::info!(title, ?metadata, "alert: {description}"),
        }
        let Some(queue) = &self.0.queue else { return };
        let raised = Raised { severity, title, description, timestamp: Utc::now(), metadata };
        if queue.try_send(Message::Alert(raised)).is_err() {
            self.0.raised.forget(&key);
            SENT.with_label_values(&[DROPPED]).inc();
            tracing::error!("alert was not sent: too many are waiting");
        }
    }

    /// Waits until everything that was raised before is sent or given up: whether that was so at the deadline.
    pub async fn flush(&self, deadline: Instant) -> bool {
        let Some(queue) = &self.0.queue else { return true };
        let (tell, told) = oneshot::channel();
        let flushed = async { queue.send(Message::Flush(tell)).await.is_ok() && told.await.is_ok() };
        timeout_at(deadline, flushed).await.unwrap_or(false)
    }
}

type Key = (Severity, String);

/// When each alert was last raised.
#[derive(Default)]
struct Recent(Mutex<HashMap<Key, Instant>>);

impl Recent {
    /// Whether this alert may go out; remembers that it did.
    fn remember(&self, key: &Key, interval: Duration) -> bool {
        let mut raised = self.lock();
        raised.retain(|_, at| at.elapsed() < interval);
        let is_new = !raised.contains_key(key);
        if is_new {
            raised.insert(key.clone(), Instant::now());
        }
        is_new
    }

    /// It reached nobody: the next one may go out.
    fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends one alert after the other, and each to all receivers side by side.
async fn send_all(
    client: reqwest::Client,
    receivers: Vec<Receiver>,
    mut messages: mpsc::Receiver<Message>,
    recent: Arc<Recent>,
) {
    let receivers: Arc<[Receiver]> = receivers.into();
    while let Some(message) = messages.recv().await {
        match message {
            Message::Alert(alert) => {
                let taken = send(&client, &receivers, &alert).await;
                let outcome = if taken == receivers.len() { SENT_TO_ALL } else { FAILED };
                SENT.with_label_values(&[outcome]).inc();
                if taken == 0 {
                    recent.forget(&(alert.severity, alert.title));
                }
            }
            Message::Flush(tell) => {
                let _nobody_waits_any_more = tell.send(());
            }
        }
    }
}

/// How many receivers took it.
async fn send(client: &reqwest::Client, receivers: &[Receiver], alert: &Raised) -> usize {
    let deliveries: Vec<_> = receivers
        .iter()
        .map(|receiver| {
            let (url, body) = (receiver.url().clone(), receiver.body(alert));
            tokio::spawn(deliver(client.clone(), receiver.name(), url, body))
        })
        .collect();
    let mut taken = 0;
    for delivery in deliveries {
        taken += usize::from(delivery.await.unwrap_or(false));
    }
    taken
}

/// Sends it to one receiver, again and again while that may help: whether it was taken.
async fn deliver(client: reqwest::Client, receiver: &'static str, url: Url, body: Value) -> bool {
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(BETWEEN_ATTEMPTS.pause(attempt - 1)).await;
        }
        match client.post(url.clone()).json(&body).send().await {
            Ok(response) if response.status().is_success() => return true,
            Ok(response) => {
                let status = response.status();
                tracing::warn!(receiver, attempt, status = status.as_u16(), "alert was not taken");
                if !may_pass(status) {
                    return false;
                }
            }
            Err(error) => {
                // Its address may be a secret: that is how many webhooks know their senders.
                let error = error.without_url();
                tracing::warn!(
                    receiver,
                    attempt,
                    error = &error as &dyn std::error::Error,
                    "alert was not taken"
                );
            }
        }
    }
    false
}

fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Who gets alerts.
enum Receiver {
    Webhook(Url),
    Alertmanager { url: Url, service: String, firing_for: Duration },
}

impl Receiver {
    fn name(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Alertmanager { .. } => "alertmanager",
        }
    }

    fn url(&self) -> &Url {
        match self {
            Self::Webhook(url) | Self::Alertmanager { url, .. } => url,
        }
    }

    fn body(&self, alert: &Raised) -> Value {
        match self {
            Self::Webhook(_) => json!(alert),
            Self::Alertmanager { service, firing_for, .. } => {
                let mut annotations: BTreeMap<_, _> =
                    alert.metadata.iter().map(|(name, value)| (label_name(name), value.as_str())).collect();
                annotations.insert("summary".to_owned(), &alert.title);
                annotations.insert("description".to_owned(), &alert.description);
                let firing_for = TimeDelta::from_std(*firing_for).unwrap_or(TimeDelta::MAX);
                let ends_at =
                    alert.timestamp.checked_add_signed(firing_for).unwrap_or(DateTime::<Utc>::MAX_UTC);
                // Labels tell alerts apart, so only what is the same each time is one.
                json!([{
                    "labels": { "alertname": alert.title, "severity": alert.severity, "service": service },
                    "annotations": annotations,
                    "startsAt": alert.timestamp,
                    "endsAt": ends_at,
                }])
            }
        }
    }
}

fn alertmanager_api(base: &Url) -> Url {
    let mut url = base.clone();
    let path = format!("{}/api/v2/alerts", base.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}

/// Alertmanager's names: letters, digits and underscores, not beginning with a digit.
fn label_name(name: &str) -> String {
    let mut label: String = name
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() { character } else { '_' })
        .collect();
    if label.starts_with(|first: char| first.is_ascii_digit()) {
        label.insert(0, '_');
    }
    label
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{Json, Router, extract::State, http::Uri, routing::any};
    use tokio::{net::TcpListener, time::advance};

    use super::*;

    /// Far beyond what anything here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A receiver that answers with these statuses, one after the other, and tells what it got.
    async fn receiver(statuses: &'static [u16]) -> (SocketAddr, mpsc::UnboundedReceiver<(String, Value)>) {
        type Script = (mpsc::UnboundedSender<(String, Value)>, Arc<Mutex<std::slice::Iter<'static, u16>>>);
        async fn take(State((tell, script)): State<Script>, uri: Uri, Json(body): Json<Value>) -> StatusCode {
            let _ = tell.send((uri.path().to_owned(), body));
            let status = script.lock().unwrap().next().copied().unwrap_or(200);
            StatusCode::from_u16(status).unwrap()
        }
        let (tell, told) = mpsc::unbounded_channel();
        let script: Script = (tell, Arc::new(Mutex::new(statuses.iter())));
        let router = Router::new().fallback(any(take)).with_state(script);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(socket, router).await });
        (address, told)
    }

    /// A receiver that takes connections and never answers.
    async fn silent_receiver() -> (SocketAddr, TcpListener) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (socket.local_addr().unwrap(), socket)
    }

    fn start(webhook: Option<String>, alertmanager: Option<String>) -> Alerts {
        let _another_test_did = rustls::crypto::ring::default_provider().install_default();
        let url = |url: Option<String>| url.map(|url| url.parse().unwrap());
        let repeat_interval = Duration::from_mins(5);
        let config = config::Alerts {
            webhook_url: url(webhook),
            alertmanager_url: url(alertmanager),
            repeat_interval,
        };
        Alerts::start(&config, "teapots").unwrap()
    }

    fn alert(title: &str) -> Alert {
        Alert {
            severity: Severity::Warning,
            title: title.to_owned(),
            description: "The kettle does not answer.".to_owned(),
            metadata: BTreeMap::from([("service.name".to_owned(), "kettle".to_owned())]),
        }
    }

    fn deadline() -> Instant {
        Instant::now() + PATIENCE
    }

    #[tokio::test]
    async fn an_alert_reaches_the_webhook_and_alertmanager_in_their_own_form() {
        let (address, mut told) = receiver(&[]).await;
        let alerts = start(Some(format!("http://{address}/hook")), Some(format!("http://{address}/prefix/")));
        let id = correlation::CorrelationId::generate();
        correlation::Context::for_work(id.clone()).sync_scope(|| alerts.raise(alert("Kettle lost")));
        assert!(alerts.flush(deadline()).await);
        let got = BTreeMap::from([told.recv().await.unwrap(), told.recv().await.unwrap()]);

        let webhook = &got["/hook"];
        let timestamp = webhook["timestamp"].as_str().unwrap();
        assert!(DateTime::parse_from_rfc3339(timestamp).is_ok());
        let expected = json!({
            "severity": "warning",
            "title": "Kettle lost",
            "description": "The kettle does not answer.",
            "timestamp": timestamp,
            "metadata": { "service.name": "kettle", "correlation_id": id.as_str() },
        });
        assert_eq!(webhook, &expected);

        let alertmanager = &got["/prefix/api/v2/alerts"][0];
        let labels = json!({ "alertname": "Kettle lost", "severity": "warning", "service": "teapots" });
        assert_eq!(alertmanager["labels"], labels);
        let annotations = json!({
            "summary": "Kettle lost",
            "description": "The kettle does not answer.",
            "service_name": "kettle",
            "correlation_id": id.as_str(),
        });
        assert_eq!(alertmanager["annotations"], annotations);
        let time = |name: &str| DateTime::parse_from_rfc3339(alertmanager[name].as_str().unwrap()).unwrap();
        assert_eq!(time("endsAt") - time("startsAt"), TimeDelta::minutes(10));
    }

    #[tokio::test]
    async fn the_same_alert_goes_out_once_and_another_one_too() {
        let (address, mut told) = receiver(&[]).await;
        let alerts = start(Some(format!("http://{address}/")), None);
        let suppressed = SENT.with_label_values(&[SUPPRESSED]).get();
        alerts.raise(alert("first"));
        alerts.raise(alert("first"));
        alerts.raise(Alert { severity: Severity::Critical, ..alert("first") });
        assert!(alerts.flush(deadline()).await);
        assert_eq!(told.recv().await.unwrap().1["severity"], "warning");
        assert_eq!(told.recv().await.unwrap().1["severity"], "critical");
        assert!(told.is_empty());
        assert!(SENT.with_label_values(&[SUPPRESSED]).get() > suppressed);
    }

    #[tokio::test(start_paused = true)]
    async fn an_alert_may_be_repeated_after_the_interval() {
        let (recent, interval) = (Recent::default(), Duration::from_mins(5));
        let key = (Severity::Info, "title".to_owned());
        assert!(recent.remember(&key, interval));
        advance(interval / 2).await;
        assert!(!recent.remember(&key, interval));
        advance(interval / 2).await;
        assert!(recent.remember(&key, interval));
        recent.forget(&key);
        assert!(recent.remember(&key, interval));
    }

    #[tokio::test]
    async fn a_receiver_that_is_away_for_a_moment_is_asked_again() {
        let (address, mut told) = receiver(&[503, 200]).await;
        let alerts = start(Some(format!("http://{address}/")), None);
        alerts.raise(alert("asked again"));
        assert!(alerts.flush(deadline()).await);
        assert_eq!(told.recv().await.unwrap().1, told.recv().await.unwrap().1);
    }

    #[tokio::test]
    async fn an_alert_that_nobody_took_may_be_raised_again_at_once() {
        let (address, mut told) = receiver(&[400, 302, 200]).await;
        let alerts = start(Some(format!("http://{address}/")), None);
        let failed = SENT.with_label_values(&[FAILED]).get();
        for _ in 0..4 {
            alerts.raise(alert("refused"));
            assert!(alerts.flush(deadline()).await);
        }
        for _ in 0..3 {
            told.recv().await.unwrap();
        }
        assert!(told.is_empty());
        assert!(SENT.with_label_values(&[FAILED]).get() >= failed + 2);
    }

    #[tokio::test]
    async fn raising_never_waits_for_a_receiver_that_hangs() {
        let (address, _socket) = silent_receiver().await;
        let alerts = start(Some(format!("http://{address}/")), None);
        let dropped = SENT.with_label_values(&[DROPPED]).get();
        for number in 0..QUEUE + 10 {
            alerts.raise(alert(&format!("number {number}")));
        }
        assert!(SENT.with_label_values(&[DROPPED]).get() >= dropped + 9);
        assert!(!alerts.flush(Instant::now()).await);
    }

    #[tokio::test]
    async fn without_receivers_nothing_is_sent_and_nothing_waits() {
        let alerts = start(None, None);
        alerts.raise(alert("only logged"));
        assert!(alerts.flush(Instant::now()).await);
        let text = prometheus::TextEncoder::new().encode_to_string(&prometheus::gather()).unwrap();
        for outcome in ["sent", "failed", "suppressed", "dropped"] {
            assert!(text.contains(&format!("alerts_sent_total{{outcome=\"{outcome}\"}}")), "{outcome}");
        }
    }

    #[test]
    fn annotations_have_names_that_alertmanager_takes() {
        assert_eq!(label_name("payment.id"), "payment_id");
        assert_eq!(label_name("5xx"), "_5xx");
    }
}
