//! The receivers of alerts, their formats, and the retries.
use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::sleep;
use url::Url;

use super::OutgoingAlert;
use crate::resilience::retry::Backoff;

/// Number of attempts per receiver. With the pauses between them, they take about as long as the restart of a
/// receiver.
const ATTEMPTS: u32 = 5;

const BETWEEN_ATTEMPTS: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));

/// The result of one attempt at a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Accepted,
    /// The receiver rejected the alert, and would reject a retry, too.
    Refused,
    /// A retry may succeed.
    Failed,
}

impl Attempt {
    pub(super) fn is_accepted(self) -> bool {
        self == Self::Accepted
    }
}

/// Sends an alert to one receiver. Retries if a retry may succeed. Returns whether the receiver accepted the alert.
pub(super) async fn deliver(client: reqwest::Client, receiver: &'static str, url: Url, body: Value) -> bool {
    for retry in 0..ATTEMPTS {
        if retry > 0 {
            sleep(BETWEEN_ATTEMPTS.pause(retry - 1)).await;
        }
        match attempt(&client, receiver, url.clone(), &body).await {
            Attempt::Accepted => return true,
            Attempt::Refused => return false,
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
            if may_pass(status) { Attempt::Failed } else { Attempt::Refused }
        }
        Err(error) => {
            // The URL may be a secret, because many webhooks authenticate their senders by it.
            let error = error.without_url();
            tracing::warn!(receiver, error = &error as &dyn std::error::Error, "failed to send an alert");
            Attempt::Failed
        }
    }
}

fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// A receiver of alerts.
pub(super) enum Receiver {
    Webhook(Url),
    Alertmanager { url: Url, service: String, firing_for: Duration },
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
            Self::Alertmanager { service, firing_for, .. } => {
                let mut annotations: BTreeMap<_, _> =
                    alert.metadata.iter().map(|(name, value)| (label_name(name), value.as_str())).collect();
                annotations.insert("summary".to_owned(), &alert.title);
                annotations.insert("description".to_owned(), &alert.description);
                let firing_for = TimeDelta::from_std(*firing_for).unwrap_or(TimeDelta::MAX);
                let ends_at =
                    alert.timestamp.checked_add_signed(firing_for).unwrap_or(DateTime::<Utc>::MAX_UTC);
                // Alertmanager merges alerts with equal labels, so only values that are the same for each occurrence
                // are labels.
                let mut labels =
                    json!({ "alertname": alert.title, "severity": alert.severity, "service": service });
                if let (Some(labels), Some(key)) = (labels.as_object_mut(), &alert.key) {
                    labels.insert("record".to_owned(), key.as_str().into());
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

pub(super) fn alertmanager_api(base: &Url) -> Url {
    let mut url = base.clone();
    let path = format!("{}/api/v2/alerts", base.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}

/// Converts a name to a valid Alertmanager label: letters, digits and underscores, not starting with a digit.
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
