//! The receivers of alerts, their formats, and the retries.
use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::sleep;
use url::Url;

use super::OutgoingAlert;
use crate::resilience::retry::Backoff;

/// Maximum number of attempts to send an alert to a receiver. The pauses between them take up to 7.5 seconds together,
/// so an alert usually survives a short restart of the receiver.
const MAX_ATTEMPTS: u32 = 5;

const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));

/// The result of one attempt to send an alert to a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Accepted,
    /// The receiver rejected the alert, and would reject a retry, too.
    Rejected,
    /// The attempt failed, and a retry may succeed.
    Failed,
}

impl Attempt {
    pub(super) fn is_accepted(self) -> bool {
        self == Self::Accepted
    }
}

/// Sends an alert to one receiver. Retries if a retry may succeed. Returns whether the receiver accepted the alert.
pub(super) async fn deliver(client: reqwest::Client, receiver: &'static str, url: Url, body: Value) -> bool {
    for retry in 0..MAX_ATTEMPTS {
        if retry > 0 {
            sleep(RETRY_BACKOFF.pause(retry - 1)).await;
        }
        match attempt(&client, receiver, url.clone(), &body).await {
            Attempt::Accepted => return true,
            Attempt::Rejected => return false,
            Attempt::Failed => {}
        }
    }
    false
}

/// Sends an alert to one receiver once.
pub(super) async fn attempt(
    client: &reqwest::Client,
    receiver: &'static str,
    url: Url,
    body: &Value,
) -> Attempt {
    match client.post(url).json(body).send().await {
        Ok(response) if response.status().is_success() => Attempt::Accepted,
        Ok(response) => {
            let status = response.status();
            tracing::warn!(receiver, status = status.as_u16(), "failed to send an alert");
            if is_retryable(status) { Attempt::Failed } else { Attempt::Rejected }
        }
        Err(error) => {
            // The URL may be a secret, because many webhooks authenticate the sender by the URL.
            let error = error.without_url();
            tracing::warn!(receiver, error = &error as &dyn std::error::Error, "failed to send an alert");
            Attempt::Failed
        }
    }
}

fn is_retryable(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

pub(super) type Labels = BTreeMap<String, String>;

/// A receiver of alerts.
pub(super) enum Receiver {
    Webhook(Url),
    Alertmanager {
        url: Url,
        /// The labels of every alert, which identify this service.
        labels: Labels,
        firing_for: Duration,
    },
}

impl Receiver {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Alertmanager { .. } => "alertmanager",
        }
    }

    pub(super) fn url(&self) -> &Url {
        match self {
            Self::Webhook(url) | Self::Alertmanager { url, .. } => url,
        }
    }

    pub(super) fn body(&self, alert: &OutgoingAlert) -> Value {
        match self {
            Self::Webhook(_) => json!(alert),
            Self::Alertmanager { labels, firing_for, .. } => {
                let mut annotations: BTreeMap<_, _> =
                    alert.metadata.iter().map(|(name, value)| (label_name(name), value.as_str())).collect();
                annotations.insert("summary".to_owned(), &alert.title);
                annotations.insert("description".to_owned(), &alert.description);
                let firing_for = TimeDelta::from_std(*firing_for).unwrap_or(TimeDelta::MAX);
                let ends_at =
                    alert.timestamp.checked_add_signed(firing_for).unwrap_or(DateTime::<Utc>::MAX_UTC);
                // Alertmanager merges alerts with equal labels, so only values that are the same for each occurrence
                // and on each replica are labels.
                let mut labels: BTreeMap<_, _> =
                    labels.iter().map(|(name, value)| (name.as_str(), json!(value))).collect();
                labels.insert("alertname", json!(alert.condition.name));
                labels.insert("severity", json!(alert.severity));
                labels.insert("title", json!(alert.title));
                if let Some(incident) = alert.condition.incident {
                    labels.insert("incident", json!(incident));
                    labels.insert("incident_role", json!("symptom"));
                }
                if let Some(key) = &alert.key {
                    labels.insert("record", json!(key));
                }
                json!([{
                    "labels": labels,
                    "annotations": annotations,
                    "startsAt": alert.timestamp,
                    "endsAt": ends_at,
                }])
            }
        }
    }
}

/// Returns the labels of every alert of this service: `job`, `raised_by`, and the labels of `ALERT_LABELS`. `job` and
/// the labels of `ALERT_LABELS` must equal the labels of the service's series in Prometheus, because Alertmanager
/// compares them when it suppresses alerts. `raised_by` distinguishes the service's own alerts from those of alerting
/// rules.
pub(super) fn source_labels(job: &str, settings: &Labels) -> Labels {
    let defaults = [("job", job), ("raised_by", "service")];
    let defaults = defaults.map(|(name, value)| (name.to_owned(), value.to_owned()));
    defaults.into_iter().chain(settings.clone()).collect()
}

pub(super) fn alertmanager_api(base: &Url) -> Url {
    let mut url = base.clone();
    let path = format!("{}/api/v2/alerts", base.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}

/// Converts a name to a valid label name of Alertmanager: letters, digits and underscores, not starting with a digit.
pub(super) fn label_name(name: &str) -> String {
    let mut label: String = name
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() { character } else { '_' })
        .collect();
    if label.starts_with(|first: char| first.is_ascii_digit()) {
        label.insert(0, '_');
    }
    label
}
