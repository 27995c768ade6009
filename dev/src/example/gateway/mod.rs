//! The payment-gateway simulator: a real HTTP server with the gateway's API, a ledger of its charges and refunds, and
//! faults that can be switched at run time.
//!
//! The simulator is stricter than real gateways: it rejects unknown fields, and compares requests with the same
//! idempotency key byte for byte. **The effect and the response are independent**: a charge is in the ledger before any
//! response is sent, and no lost, late or wrong response changes the ledger.
//!
//! `cargo dev` may run for days, so memory is bounded: recent requests, events and deliveries by count and bytes
//! ([`requests`]), idempotency keys by their lifetime ([`state`]). Only the ledger is unbounded, with at most 200 bytes
//! per charge or refund ([`ledger`]).
//!
//! - [`charges`]: charges, refunds, and the behaviour of each test payment method
//! - [`ledger`]: the executed charges and refunds, in memory and optionally in a file
//! - [`state`]: the execution of requests, and their idempotency keys
//! - [`faults`]: faults, and the seeded random generator that selects the affected requests
//! - `listing`: the lists by time of creation, and their faults
//! - [`requests`]: the latest requests, events and deliveries, for inspection by tests
//! - [`routes`]: the API, and the routes for the ledger and the faults
//! - [`server`]: accepts and cuts connections
//! - [`malformed_responses`]: malformed responses
//! - [`webhooks`]: signing and delivering events
mod charges;
mod faults;
mod ledger;
mod listing;
mod malformed_responses;
mod requests;
mod routes;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod webhooks;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use url::Url;
use uuid::Uuid;

pub use self::{
    charges::{Charge, ChargeStatus, DeclineCode, PaymentMethod, Refund, RefundStatus},
    faults::{Faults, Webhooks},
    ledger::{Counts, Ledger},
    malformed_responses::Malformation,
    requests::RecordedRequest,
    webhooks::{Delivery, Event},
};
use self::{
    faults::FaultGenerator, ledger::LedgerEntry, requests::RecentEntries, state::GatewayState,
    webhooks::QueuedEvent,
};

/// Capacity of the queue of undelivered events. Further events are lost, as some webhooks of a real gateway are.
const EVENT_QUEUE_CAPACITY: usize = 4096;

/// Settings of a simulator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The listen address; port 0 selects a free port.
    pub address: SocketAddr,
    /// The bearer token that clients must send.
    pub api_key: String,
    /// The signing secret of webhooks: `whsec_` and base64.
    pub webhook_secret: String,
    /// The webhook URL. Without a URL no webhooks are sent until [`Simulator::set_webhook_url`] sets one.
    pub webhook_url: Option<Url>,
    /// File that keeps the ledger across restarts. Without a file the ledger is in memory only.
    pub ledger_file: Option<PathBuf>,
}

/// The simulator's delays, and the number of attempts at a webhook. Tests use smaller values.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// Delay of the response to `pm_card_slow`.
    pub slow_response: Duration,
    /// Delay between a charge or refund and its webhook.
    pub webhook_delay: Duration,
    /// Delay between a charge or refund and its webhook, with [`Webhooks::Late`].
    pub webhook_lateness: Duration,
    /// Delay before the second attempt at a webhook, doubled before each further attempt.
    pub webhook_backoff: Duration,
    /// Maximum number of attempts at one webhook, including the first.
    pub webhook_attempts: u32,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            slow_response: Duration::from_secs(30),
            webhook_delay: Duration::from_millis(100),
            webhook_lateness: Duration::from_secs(20),
            webhook_backoff: Duration::from_millis(500),
            webhook_attempts: 6,
        }
    }
}

/// The reason why the simulator could not start, or why one of its functions failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the gateway simulator failed to listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("failed to use the gateway's ledger {}: {source}", path.display())]
    LedgerFile { path: PathBuf, source: std::io::Error },
    #[error("line {line} of the gateway's ledger {} is damaged: {source}", path.display())]
    LedgerLine { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("the gateway's address is not a valid URL: {0}")]
    Url(#[from] url::ParseError),
    #[error("the webhook secret is not `whsec_` and base64: {0}")]
    WebhookSecret(standardwebhooks::WebhookError),
    #[error("failed to sign the webhook: {0}")]
    Signing(standardwebhooks::WebhookError),
    #[error("no webhook URL is set")]
    NoWebhookUrl,
    #[error("the webhook was not delivered: {0}")]
    Delivery(#[from] reqwest::Error),
    #[error("failed to serialize the event: {0}")]
    Event(#[from] serde_json::Error),
    #[error("the gateway has stopped")]
    Stopped,
    #[error("timed out after {0:?} waiting for the expected state of the gateway")]
    Deadline(Duration),
}

/// State shared by the routes, the webhook worker and [`Simulator`].
struct Gateway {
    api_key: String,
    timings: Timings,
    state: Mutex<GatewayState>,
    faults: watch::Sender<Faults>,
    fault_generator: Mutex<FaultGenerator>,
    requests: Mutex<RecentEntries<RecordedRequest>>,
    events: Mutex<RecentEntries<Event>>,
    deliveries: Mutex<RecentEntries<Delivery>>,
    signer: standardwebhooks::Webhook,
    webhook_url: Mutex<Option<Url>>,
    queue: mpsc::Sender<QueuedEvent>,
    client: reqwest::Client,
    /// Notifies [`Simulator::wait_until`] of every new request, event, delivery and ledger entry.
    changed: watch::Sender<()>,
}

impl Gateway {
    fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Replaces the faults and restarts their random generator.
    fn set_faults(&self, faults: Faults) {
        *lock(&self.fault_generator) = FaultGenerator::new(faults.seed);
        self.faults.send_replace(faults);
    }

    fn hold_responses(&self, hold: bool) {
        self.faults.send_modify(|faults| faults.hold_responses = hold);
    }
}

/// Waits until the simulator is stopped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Locks a mutex and ignores poisoning. The data is valid after a panic, because no change of the data panics halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running simulator. Dropping the value stops the simulator; [`Simulator::stop`] also waits until it has stopped.
pub struct Simulator {
    gateway: Arc<Gateway>,
    address: SocketAddr,
    url: Url,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Simulator {
    /// Starts a simulator. The simulator accepts requests when this function returns.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        Self::start_with(settings, Timings::default()).await
    }

    /// Starts a simulator with the given timings.
    pub async fn start_with(settings: Settings, timings: Timings) -> Result<Self, Error> {
        let state = match settings.ledger_file {
            None => GatewayState::default(),
            Some(path) => GatewayState::open(path)?,
        };
        let signer =
            standardwebhooks::Webhook::new(&settings.webhook_secret).map_err(Error::WebhookSecret)?;
        let listener = TcpListener::bind(settings.address)
            .await
            .map_err(|source| Error::Listen { address: settings.address, source })?;
        let address =
            listener.local_addr().map_err(|source| Error::Listen { address: settings.address, source })?;

        let (queue, queued) = mpsc::channel(EVENT_QUEUE_CAPACITY);
        let faults = Faults::default();
        let gateway = Arc::new(Gateway {
            api_key: settings.api_key,
            timings,
            state: Mutex::new(state),
            fault_generator: Mutex::new(FaultGenerator::new(faults.seed)),
            faults: watch::Sender::new(faults),
            requests: Mutex::default(),
            events: Mutex::default(),
            deliveries: Mutex::default(),
            signer,
            webhook_url: Mutex::new(settings.webhook_url),
            queue,
            client: crate::http::client(webhooks::ATTEMPT_TIMEOUT)?,
            changed: watch::Sender::new(()),
        });
        let stop = watch::Sender::new(false);
        let tasks = vec![
            tokio::spawn(server::run(listener, routes::router(Arc::clone(&gateway)), stop.subscribe())),
            tokio::spawn(webhooks::run(Arc::clone(&gateway), queued, stop.subscribe())),
        ];
        Ok(Self { gateway, address, url: url_of(address)?, stop, tasks: Mutex::new(tasks) })
    }

    /// Returns the listen address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL for clients on this machine.
    pub fn url(&self) -> Url {
        self.url.clone()
    }

    /// Sets the URL of all further webhook deliveries, including retries.
    pub fn set_webhook_url(&self, url: Url) {
        *lock(&self.gateway.webhook_url) = Some(url);
    }

    /// Stops listening, cuts every connection (including connections with held or missing responses), and ends the
    /// delivery of webhooks. A second call has no effect.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks {
            let _ = task.await;
        }
        // A request may still run on a blocking thread. The closed state rejects its write, so that only the next
        // simulator writes to this ledger file.
        lock(&self.gateway.state).close();
    }

    /// Returns a handle that reads and replaces the current faults.
    pub fn faults(&self) -> FaultControl<'_> {
        FaultControl { gateway: &self.gateway }
    }

    /// Delays all responses until [`Self::release`]. Requests are still executed.
    pub fn hold_responses(&self) {
        self.gateway.hold_responses(true);
    }

    /// Sends the delayed responses.
    pub fn release(&self) {
        self.gateway.hold_responses(false);
    }

    /// Returns the current ledger.
    pub fn ledger(&self) -> Ledger {
        lock(&self.gateway.state).ledger().clone()
    }

    /// Returns the charges for the payment with this reference, including declined ones. More than one successful
    /// charge is a double charge.
    pub fn charges_for(&self, reference: Uuid) -> Vec<Charge> {
        lock(&self.gateway.state).ledger().charges_for(reference).cloned().collect()
    }

    /// Records a charge without a request, for example a second charge or one with a different amount.
    pub fn record(&self, charge: Charge) -> Result<(), Error> {
        self.record_entry(Utc::now(), LedgerEntry::Charge(charge))
    }

    /// Records a charge without a request, with the given time of creation.
    pub fn record_at(&self, created: DateTime<Utc>, charge: Charge) -> Result<(), Error> {
        self.record_entry(created, LedgerEntry::Charge(charge))
    }

    /// Records a refund without a request.
    pub fn record_refund(&self, refund: Refund) -> Result<(), Error> {
        self.record_entry(Utc::now(), LedgerEntry::Refund(refund))
    }

    fn record_entry(&self, created: DateTime<Utc>, done: LedgerEntry) -> Result<(), Error> {
        lock(&self.gateway.state).record_entry(created, done)?;
        self.gateway.notify();
        Ok(())
    }

    /// Returns the latest API requests, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.gateway.requests).to_vec()
    }

    /// Returns the number of requests with this idempotency key, among the latest requests.
    pub fn calls_for(&self, key: &str) -> usize {
        lock(&self.gateway.requests)
            .iter()
            .filter(|request| request.idempotency_key.as_deref() == Some(key))
            .count()
    }

    /// Waits until the ledger satisfies the condition.
    pub async fn wait_for(
        &self,
        mut expected: impl FnMut(&Ledger) -> bool,
        deadline: Duration,
    ) -> Result<(), Error> {
        self.wait_until(|simulator| expected(lock(&simulator.gateway.state).ledger()), deadline).await
    }

    /// Waits until the simulator's state (requests, events, deliveries, ledger) satisfies the condition.
    pub async fn wait_until(
        &self,
        mut expected: impl FnMut(&Self) -> bool,
        deadline: Duration,
    ) -> Result<(), Error> {
        let mut changed = self.gateway.changed.subscribe();
        let expected_state = async {
            while !expected(self) {
                changed.changed().await.map_err(|_| Error::Stopped)?;
            }
            Ok(())
        };
        tokio::time::timeout(deadline, expected_state).await.map_err(|_| Error::Deadline(deadline))?
    }

    /// Expires every idempotency key, as if 24 hours had passed. The ledger is unchanged, and a request with an old key
    /// charges again.
    pub fn expire_keys(&self) {
        lock(&self.gateway.state).expire_keys();
    }

    /// Returns the latest events in order of creation, delivered or not.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.gateway.events).to_vec()
    }

    /// Returns the latest delivery attempts.
    pub fn deliveries(&self) -> Vec<Delivery> {
        lock(&self.gateway.deliveries).to_vec()
    }

    /// Delivers an event once, immediately and regardless of faults. Returns the response status. The event can be one
    /// of [`Self::events`] or a new one.
    pub async fn deliver_webhook(&self, event: &Event) -> Result<u16, Error> {
        webhooks::deliver(&self.gateway, event).await
    }

    /// Returns the `webhook-signature` header for a body sent with this id at this time.
    pub fn sign(&self, body: &str, id: &str, timestamp: DateTime<Utc>) -> Result<String, Error> {
        self.gateway.signer.sign(id, timestamp.timestamp(), body.as_bytes()).map_err(Error::Signing)
    }
}

/// Returns the URL at which clients on this machine reach a server that listens on `address`.
fn url_of(address: SocketAddr) -> Result<Url, url::ParseError> {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Url::parse(&format!("http://{}/", SocketAddr::new(ip, address.port())))
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// A handle that reads and replaces a simulator's faults.
pub struct FaultControl<'a> {
    gateway: &'a Gateway,
}

impl FaultControl<'_> {
    /// Returns the current faults.
    pub fn get(&self) -> Faults {
        self.gateway.faults.borrow().clone()
    }

    /// Replaces all faults.
    pub fn set(&self, faults: Faults) {
        self.gateway.set_faults(faults);
    }

    /// Switches all faults off.
    pub fn clear(&self) {
        self.set(Faults::default());
    }
}
