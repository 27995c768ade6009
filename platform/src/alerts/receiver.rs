//! Who gets alerts, in which form, and how often it is tried.
use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::sleep;
use url::Url;

use super::Raised;
use crate::resilience::retry::Backoff;

/// Attempts at one receiver: with the pauses between them, about as long as a receiver takes to restart.
const ATTEMPTS: u32 = 5;

const BETWEEN_ATTEMPTS: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));

/// Sends it to one receiver, again and again while that may help: whether it was taken.
pub(super) async fn deliver(client: reqwest::Client, receiver: &'static str, url: Url, body: Value) -> bool {
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

    pub(super) fn body(&self, alert: &Raised) -> Value {
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

pub(super) fn alertmanager_api(base: &Url) -> Url {
    let mut url = base.clone();
    let path = format!("{}/api/v2/alerts", base.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}

/// Alertmanager's names: letters, digits and underscores, not beginning with a digit.
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
