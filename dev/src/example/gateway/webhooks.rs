//! Events by webhook, signed according to Standard Webhooks (<https://www.standardwebhooks.com>). A failed delivery is
//! retried; after `webhook_attempts` failed attempts the event is lost.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use uuid::Uuid;

use super::{
    Error, Gateway,
    charges::{Charge, ChargeStatus, Refund, RefundStatus},
    faults::Webhooks,
    lock,
    requests::MemorySize,
    stopped,
};

/// Timeout of one attempt.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of concurrent deliveries. The number is high, because events that wait for their delivery time count
/// too.
const MAX_CONCURRENT_DELIVERIES: usize = 512;

/// An event of the gateway, sent by webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `msg_` and a `UUIDv7`, the same for every delivery of the event.
    pub id: String,
    /// Correlation id of the request that caused the event.
    pub correlation_id: Option<String>,
    /// The JSON body, as sent and signed.
    pub body: String,
}

#[derive(Serialize)]
struct Body<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    timestamp: String,
    data: &'a T,
}

impl Event {
    /// Creates an event of this type (`charge.succeeded` …) about a charge, a refund or another object.
    pub fn new(kind: &str, data: &impl Serialize) -> Result<Self, Error> {
        let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        Ok(Self {
            id: format!("msg_{}", Uuid::now_v7().simple()),
            correlation_id: None,
            body: serde_json::to_string(&Body { kind, timestamp, data })?,
        })
    }

    /// Creates the event of a charge.
    pub fn of_charge(charge: &Charge) -> Result<Self, Error> {
        let kind = match charge.status {
            ChargeStatus::Succeeded => "charge.succeeded",
            ChargeStatus::Declined => "charge.declined",
        };
        Self::new(kind, charge)
    }

    /// Creates the event of a refund.
    pub fn of_refund(refund: &Refund) -> Result<Self, Error> {
        let kind = match refund.status {
            RefundStatus::Succeeded => "refund.succeeded",
            RefundStatus::Failed => "refund.failed",
        };
        Self::new(kind, refund)
    }

    /// Sets the correlation id of the request that caused the event.
    #[must_use]
    pub fn with_correlation_id(self, correlation_id: Option<String>) -> Self {
        Self { correlation_id, ..self }
    }
}

impl MemorySize for Event {
    fn bytes(&self) -> usize {
        let texts = self.id.len() + self.correlation_id.as_ref().map_or(0, String::len) + self.body.len();
        size_of::<Self>() + texts
    }
}

/// An attempt to deliver an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub event_id: String,
    pub at: DateTime<Utc>,
    /// Status of the receiver's response, if the receiver responded.
    pub status: Option<u16>,
}

impl Delivery {
    /// Returns whether the receiver accepted the event.
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

impl MemorySize for Delivery {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.event_id.len()
    }
}

/// A queued event, and its delivery time.
pub(super) struct QueuedEvent {
    event: Event,
    due: Instant,
}

/// Records an event, and queues its deliveries: none, one or two, depending on the faults.
pub(super) fn enqueue(gateway: &Gateway, event: Event) {
    let timings = &gateway.timings;
    let delays = match gateway.faults.borrow().webhooks {
        Webhooks::Normal => vec![timings.webhook_delay],
        Webhooks::Late => vec![timings.webhook_lateness],
        Webhooks::Twice => vec![timings.webhook_delay, timings.webhook_delay * 2],
        Webhooks::Never => vec![],
    };
    for delay in delays {
        let _ = gateway.queue.try_send(QueuedEvent { event: event.clone(), due: Instant::now() + delay });
    }
    lock(&gateway.events).push(event);
    gateway.notify();
}

/// Delivers queued events until `stop` is set. Events that are not yet delivered at that time are lost.
pub(super) async fn run(
    gateway: Arc<Gateway>,
    mut queued: mpsc::Receiver<QueuedEvent>,
    mut stop: watch::Receiver<bool>,
) {
    let mut deliveries = JoinSet::new();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = deliveries.join_next() => {}
            Some(next) = queued.recv(), if deliveries.len() < MAX_CONCURRENT_DELIVERIES => {
                deliveries.spawn(deliver_when_due(Arc::clone(&gateway), next));
            }
        }
    }
    deliveries.shutdown().await;
}

async fn deliver_when_due(gateway: Arc<Gateway>, QueuedEvent { event, due }: QueuedEvent) {
    tokio::time::sleep_until(due.into()).await;
    let mut pause = gateway.timings.webhook_backoff;
    for attempt in 1..=gateway.timings.webhook_attempts {
        match deliver(&gateway, &event).await {
            Ok(status) if (200..300).contains(&status) => return,
            _ if attempt == gateway.timings.webhook_attempts => return,
            _ => tokio::time::sleep(pause).await,
        }
        pause *= 2;
    }
}

/// Makes one attempt to deliver an event, and returns the status of the response.
pub(super) async fn deliver(gateway: &Gateway, event: &Event) -> Result<u16, Error> {
    let url = lock(&gateway.webhook_url).clone().ok_or(Error::NoWebhookUrl)?;
    let now = Utc::now();
    let signature =
        gateway.signer.sign(&event.id, now.timestamp(), event.body.as_bytes()).map_err(Error::Signing)?;
    let mut request = gateway
        .client
        .post(url)
        .header("content-type", "application/json")
        .header(HEADER_WEBHOOK_ID, &event.id)
        .header(HEADER_WEBHOOK_TIMESTAMP, now.timestamp())
        .header(HEADER_WEBHOOK_SIGNATURE, signature)
        .body(event.body.clone());
    if let Some(id) = &event.correlation_id {
        request = request.header("x-correlation-id", id);
    }
    let response = request.send().await.map(|response| response.status().as_u16());
    let delivery = Delivery { event_id: event.id.clone(), at: now, status: response.as_ref().ok().copied() };
    lock(&gateway.deliveries).push(delivery);
    gateway.notify();
    Ok(response?)
}
