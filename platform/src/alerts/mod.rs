//! Alerts that the service itself sends. They report events that must not wait for a scrape and an alert rule, such
//! as an open circuit breaker or a manipulated audit log.
//!
//! Raising an alert never waits and never fails, because it must not disturb the work that raises it. The alert is
//! logged and put into a bounded queue, and a separate task sends it, with retries. The same alert (severity and title)
//! is not sent again within `ALERT_REPEAT_INTERVAL_SECONDS`, so that a flapping dependency does not page repeatedly.
//! The interval does not apply to an alert that was dropped or that no receiver accepted.
//!
//! Callers that store alerts until a receiver accepts them use [`Alerts::deliver`], which uses neither the queue nor
//! the interval.
//!
//! `alerts_sent_total` counts the outcomes. Without receivers, raised alerts are only logged.
mod receiver;
mod settings;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use url::Url;

use self::receiver::{Receiver, alertmanager_api, attempt, deliver, source_labels};
pub use self::settings::Settings;
use super::{outbound, telemetry::correlation};

crate::metrics! {
    /// Alerts raised by the service, by outcome.
    static SENT: counter = "alerts_sent_total" { outcome in [SENT_TO_ALL, FAILED, SUPPRESSED, DROPPED] };
}

/// Outcome: every receiver accepted the alert.
const SENT_TO_ALL: &str = "sent";
/// Outcome: at least one receiver did not accept the alert.
const FAILED: &str = "failed";
/// Outcome: the same alert was already raised within the interval.
const SUPPRESSED: &str = "suppressed";
/// Outcome: the queue was full.
const DROPPED: &str = "dropped";

/// Maximum number of queued alerts. Further alerts are dropped, because so many alerts at once belong to one incident,
/// which the queued alerts already report.
const QUEUE_CAPACITY: usize = 64;

/// Timeout of one attempt to send an alert to a receiver.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Minimum time for which an alert fires in Alertmanager. The service sets an end time, because the reported event has
/// no end of its own.
const MIN_FIRING_TIME: Duration = Duration::from_mins(5);

/// The severity of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Immediate action is required.
    Critical,
    /// Action is required soon.
    Warning,
    /// No action is required.
    Info,
}

/// The condition that an alert reports. The runbook has the condition's name, and so does the Prometheus alerting rule,
/// if there is one. Alertmanager suppresses the service's own alert while that rule fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    name: &'static str,
    incident: Option<&'static str>,
}

impl Condition {
    /// Creates a condition that is not a symptom of an incident.
    pub const fn new(name: &'static str) -> Self {
        Self { name, incident: None }
    }

    /// Creates a condition that is a symptom of an incident. Alertmanager suppresses the symptom's alert while the
    /// alert about the incident's cause fires.
    pub const fn symptom(name: &'static str, incident: &'static str) -> Self {
        Self { name, incident: Some(incident) }
    }
}

/// An alert.
#[derive(Debug, Clone)]
pub struct Alert {
    /// The condition that the alert reports.
    pub condition: Condition,
    /// The severity.
    pub severity: Severity,
    /// A short title that is the same for each occurrence.
    pub title: String,
    /// The meaning of the alert, and the required action.
    pub description: String,
    /// Details that help to find the cause. They must not contain secrets or personal data, because they are sent to
    /// third parties.
    pub metadata: BTreeMap<String, String>,
}

/// An alert that is ready to send. Its JSON is the body for webhooks.
#[derive(Debug, Serialize)]
struct OutgoingAlert {
    #[serde(skip)]
    condition: Condition,
    severity: Severity,
    title: String,
    description: String,
    #[serde(serialize_with = "rfc3339")]
    timestamp: DateTime<Utc>,
    metadata: BTreeMap<String, String>,
    /// The id of the record that the alert is about, if each record has its own alert.
    #[serde(skip)]
    key: Option<String>,
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// The handle that raises alerts. Cheap to clone.
#[derive(Clone)]
pub struct Alerts(Arc<Inner>);

struct Inner {
    repeat_interval: Duration,
    runbooks_url: Option<Url>,
    /// `None` if there are no receivers.
    transport: Option<Transport>,
    recent: Arc<RecentAlerts>,
}

/// The receivers, the HTTP client, and the queue.
struct Transport {
    client: reqwest::Client,
    receivers: Arc<[Receiver]>,
    queue: mpsc::Sender<Message>,
}

enum Message {
    Alert(OutgoingAlert),
    /// Notifies the caller of [`Alerts::flush`] once all earlier messages are processed.
    Flush(oneshot::Sender<()>),
}

impl Alerts {
    /// Starts the task that sends raised alerts. Without configured receivers, alerts are only logged.
    ///
    /// `job` is the value of the label `job` in Prometheus. Alertmanager compares this label when it suppresses alerts.
    /// The caller must first install the process's TLS provider.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn start(settings: &Settings, job: &str) -> Result<Self, reqwest::Error> {
        initialize();
        let recent = Arc::new(RecentAlerts::default());
        let repeat_interval = settings.repeat_interval;
        let webhook = settings.webhook_url.clone().map(Receiver::Webhook);
        let alertmanager = settings.alertmanager_url.as_ref().map(|base| Receiver::Alertmanager {
            url: alertmanager_api(base),
            labels: source_labels(job, &settings.labels),
            // Long enough that the next repetition arrives before the alert ends, and that operators see the alert.
            firing_for: repeat_interval.saturating_mul(2).max(MIN_FIRING_TIME),
        });
        let receivers: Arc<[Receiver]> = webhook.into_iter().chain(alertmanager).collect();
        let transport = if receivers.is_empty() {
            None
        } else {
            let client = outbound::client().timeout(ATTEMPT_TIMEOUT).build()?;
            let (queue, messages) = mpsc::channel(QUEUE_CAPACITY);
            tokio::spawn(send_all(client.clone(), Arc::clone(&receivers), messages, Arc::clone(&recent)));
            Some(Transport { client, receivers, queue })
        };
        let runbooks_url = settings.runbooks_url.clone();
        Ok(Self(Arc::new(Inner { repeat_interval, runbooks_url, transport, recent })))
    }

    /// Returns a handle whose alerts are only logged, for commands.
    pub fn without_receivers() -> Self {
        let recent = Arc::new(RecentAlerts::default());
        let repeat_interval = Duration::ZERO;
        Self(Arc::new(Inner { repeat_interval, runbooks_url: None, transport: None, recent }))
    }

    /// Returns whether any receiver is configured.
    pub fn has_receivers(&self) -> bool {
        self.0.transport.is_some()
    }

    /// Sends an alert to each receiver once, and returns whether at least one receiver accepted the alert.
    ///
    /// Use this function for alerts that the caller stores until a receiver accepts them. The caller decides when to
    /// retry. `key` identifies the record that the alert is about, so that Alertmanager keeps the alerts of two records
    /// apart.
    pub async fn deliver(&self, alert: Alert, key: &str) -> bool {
        let Some(transport) = &self.0.transport else { return false };
        let raised = OutgoingAlert { key: Some(key.to_owned()), ..self.outgoing(alert) };
        let accepted = send(&transport.receivers, &raised, |receiver, url, body| {
            let client = transport.client.clone();
            async move { attempt(&client, receiver, url, &body).await.is_accepted() }
        })
        .await;
        count_sent(accepted, transport.receivers.len());
        accepted > 0
    }

    /// Raises an alert, with the current correlation id. If the same alert was already raised within the interval, it
    /// is counted, but neither logged nor sent. Never waits and never fails: if the queue is full, the alert is logged
    /// but not sent.
    pub fn raise(&self, alert: Alert) {
        let key = (alert.severity, alert.title.clone());
        if !self.0.recent.record(&key, self.0.repeat_interval) {
            SENT.with_label_values(&[SUPPRESSED]).inc();
            return;
        }
        let mut raised = self.outgoing(alert);
        if let Some(context) = correlation::current() {
            let id = || context.correlation_id().to_string();
            raised.metadata.entry("correlation_id".to_owned()).or_insert_with(id);
        }
        let OutgoingAlert { severity, title, description, metadata, .. } = &raised;
        match severity {
            Severity::Critical => tracing::error!(title, ?metadata, "alert: {description}"),
            Severity::Warning => tracing::warn!(title, ?metadata, "alert: {description}"),
            Severity::Info => tracing::info!(title, ?metadata, "alert: {description}"),
        }
        let Some(Transport { queue, .. }) = &self.0.transport else { return };
        if queue.try_send(Message::Alert(raised)).is_err() {
            self.0.recent.remove(&key);
            SENT.with_label_values(&[DROPPED]).inc();
            tracing::error!("dropped an alert: the queue is full");
        }
    }

    fn outgoing(&self, alert: Alert) -> OutgoingAlert {
        let Alert { condition, severity, title, description, mut metadata } = alert;
        if let Some(url) = &self.0.runbooks_url {
            let url = format!("{}/{}", url.as_str().trim_end_matches('/'), condition.name);
            metadata.insert("runbook_url".to_owned(), url);
        }
        OutgoingAlert { condition, severity, title, description, timestamp: Utc::now(), metadata, key: None }
    }

    /// Waits until every alert that was raised before this call is sent or has failed. Returns `false` if the deadline
    /// passed first.
    pub async fn flush(&self, deadline: Instant) -> bool {
        let Some(Transport { queue, .. }) = &self.0.transport else { return true };
        let (sender, processed) = oneshot::channel();
        let flushed = async { queue.send(Message::Flush(sender)).await.is_ok() && processed.await.is_ok() };
        timeout_at(deadline, flushed).await.unwrap_or(false)
    }
}

type Key = (Severity, String);

/// The time at which each alert was last raised and not suppressed.
#[derive(Default)]
struct RecentAlerts(Mutex<HashMap<Key, Instant>>);

impl RecentAlerts {
    /// Records that an alert is raised now, unless it was already raised within the interval. Returns whether the alert
    /// was recorded. The caller sends only recorded alerts.
    fn record(&self, key: &Key, interval: Duration) -> bool {
        let mut recent = self.lock();
        recent.retain(|_, at| at.elapsed() < interval);
        let is_new = !recent.contains_key(key);
        if is_new {
            recent.insert(key.clone(), Instant::now());
        }
        is_new
    }

    /// Removes the record of an alert that was dropped or that no receiver accepted. The same alert can then be raised
    /// again before the interval ends.
    fn remove(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the queued alerts one after the other, each to all receivers concurrently.
async fn send_all(
    client: reqwest::Client,
    receivers: Arc<[Receiver]>,
    mut messages: mpsc::Receiver<Message>,
    recent: Arc<RecentAlerts>,
) {
    while let Some(message) = messages.recv().await {
        match message {
            Message::Alert(alert) => {
                let accepted = send(&receivers, &alert, |receiver, url, body| {
                    deliver(client.clone(), receiver, url, body)
                })
                .await;
                count_sent(accepted, receivers.len());
                if accepted == 0 {
                    recent.remove(&(alert.severity, alert.title));
                }
            }
            Message::Flush(sender) => {
                let _receiver_dropped = sender.send(());
            }
        }
    }
}

fn count_sent(accepted: usize, receivers: usize) {
    SENT.with_label_values(&[if accepted == receivers { SENT_TO_ALL } else { FAILED }]).inc();
}

/// Sends an alert to all receivers concurrently. Returns the number of receivers that accepted the alert.
async fn send<F>(
    receivers: &[Receiver],
    alert: &OutgoingAlert,
    deliver: impl Fn(&'static str, Url, Value) -> F,
) -> usize
where
    F: Future<Output = bool> + Send + 'static,
{
    let deliveries: Vec<_> = receivers
        .iter()
        .map(|receiver| tokio::spawn(deliver(receiver.name(), receiver.url().clone(), receiver.body(alert))))
        .collect();
    let mut accepted = 0;
    for delivery in deliveries {
        accepted += usize::from(delivery.await.unwrap_or(false));
    }
    accepted
}

#[cfg(test)]
mod tests;
