//! The payment-gateway simulator: a real HTTP server with the gateway's API, a ledger of what it did, and
//! faults that can be switched while it runs.
//!
//! It is the other side of every promise about money, so it is stricter than it needs to be (unknown fields are
//! refused, a key is compared byte for byte) and as unreliable as it is told to be. The rule that it lives by:
//! **what it did and what it answered are two things**. A charge is in the ledger before any answer is
//! attempted, and no lost, late or wrong answer changes the ledger.
//!
//! It runs for days beside `cargo dev`, so what it keeps in memory is bounded: what happened lately by count and by
//! bytes ([`requests`]), idempotency keys by their lifetime ([`books`]). The ledger grows, as a ledger does, by less
//! than 200 bytes a charge ([`ledger`]).
//!
//! - [`charges`]: charges, refunds, and what each test payment method does
//! - [`ledger`]: what was done, in memory and in a file
//! - [`books`]: idempotency keys, and the decision about each request
//! - [`faults`]: what goes wrong, and the seeded dice that decide when
//! - [`requests`]: the requests that came in, for tests to look at
//! - [`routes`]: the API
//! - [`server`]: the socket
//! - [`spoiling`]: answers that are not what they should be
//! - [`webhooks`]: signing and delivering events
mod books;
mod charges;
mod faults;
mod ledger;
mod requests;
mod routes;
mod server;
mod spoiling;
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

use self::{books::Books, faults::Dice, requests::Recent, webhooks::Queued};
pub use self::{
    charges::{Charge, ChargeStatus, DeclineCode, PaymentMethod, Refund, RefundStatus},
    faults::{Faults, Webhooks},
    ledger::{Counts, Ledger},
    requests::RecordedRequest,
    spoiling::Spoil,
    webhooks::{Delivery, Event},
};

/// Events that wait for their delivery. One that finds the queue full is lost, which the gateway's contract
/// allows: a client has to live without webhooks anyway.
const EVENT_QUEUE: usize = 4096;

/// What a simulator is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen; port 0 picks a free one.
    pub address: SocketAddr,
    /// What clients send as their bearer token.
    pub api_key: String,
    /// The secret that webhooks are signed with: `whsec_` and base64.
    pub webhook_secret: String,
    /// Where webhooks go. Without one, none are sent until [`Simulator::set_webhook_url`] names one.
    pub webhook_url: Option<Url>,
    /// Where the ledger survives a restart. Without one it lives as long as the simulator.
    pub ledger_file: Option<PathBuf>,
}

/// How long the simulator's slownesses last. Tests make them shorter.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// Until `pm_card_slow` is answered.
    pub slow_answer: Duration,
    /// From a charge or refund to its webhook.
    pub webhook_delay: Duration,
    /// The same while webhooks are late.
    pub webhook_lateness: Duration,
    /// Before the second attempt at a webhook; doubled before each one after it.
    pub webhook_backoff: Duration,
    /// Attempts at one webhook, the first one included.
    pub webhook_attempts: u32,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            slow_answer: Duration::from_secs(30),
            webhook_delay: Duration::from_millis(100),
            webhook_lateness: Duration::from_secs(20),
            webhook_backoff: Duration::from_millis(500),
            webhook_attempts: 6,
        }
    }
}

/// Why the simulator could not start or do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the gateway simulator cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the gateway's ledger {} cannot be used: {source}", path.display())]
    LedgerFile { path: PathBuf, source: std::io::Error },
    #[error("line {line} of the gateway's ledger {} is damaged: {source}", path.display())]
    LedgerLine { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("the gateway's address cannot be written as a URL: {0}")]
    Url(#[from] url::ParseError),
    #[error("the webhook secret is not `whsec_` and base64: {0}")]
    WebhookSecret(standardwebhooks::WebhookError),
    #[error("the webhook cannot be signed: {0}")]
    Signing(standardwebhooks::WebhookError),
    #[error("no webhook address is set")]
    NoWebhookUrl,
    #[error("the webhook was not delivered: {0}")]
    Delivery(#[from] reqwest::Error),
    #[error("the event cannot be written as JSON: {0}")]
    Event(#[from] serde_json::Error),
    #[error("the gateway has stopped")]
    Stopped,
    #[error("the gateway did not come to the expected state within {0:?}")]
    Deadline(Duration),
}

/// What the routes, the webhook worker and the controls of tests share.
struct Gateway {
    api_key: String,
    timings: Timings,
    books: Mutex<Books>,
    faults: watch::Sender<Faults>,
    dice: Mutex<Dice>,
    requests: Mutex<Recent<RecordedRequest>>,
    events: Mutex<Recent<Event>>,
    deliveries: Mutex<Recent<Delivery>>,
    signer: standardwebhooks::Webhook,
    webhook_url: Mutex<Option<Url>>,
    queue: mpsc::Sender<Queued>,
    client: reqwest::Client,
    /// Told whenever something has happened that somebody may be waiting for.
    changed: watch::Sender<()>,
}

impl Gateway {
    fn happened(&self) {
        self.changed.send_replace(());
    }

    /// Replaces the faults, and begins their chances anew.
    fn set_faults(&self, faults: Faults) {
        *lock(&self.dice) = Dice::new(faults.seed);
        self.faults.send_replace(faults);
    }

    fn hold_answers(&self, hold: bool) {
        self.faults.send_modify(|faults| faults.hold_answers = hold);
    }
}

/// Ends when the simulator is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A lock that a panicking test left behind still guards sound data: every change is made in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running simulator. Dropping it stops it; [`Simulator::stop`] also waits for the end.
pub struct Simulator {
    gateway: Arc<Gateway>,
    address: SocketAddr,
    url: Url,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Simulator {
    /// Starts a simulator; when this returns, it answers.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        Self::start_with(settings, Timings::default()).await
    }

    /// The same with other timings.
    pub async fn start_with(settings: Settings, timings: Timings) -> Result<Self, Error> {
        let books = match settings.ledger_file {
            None => Books::default(),
            Some(path) => Books::open(path)?,
        };
        let signer =
            standardwebhooks::Webhook::new(&settings.webhook_secret).map_err(Error::WebhookSecret)?;
        let listener = TcpListener::bind(settings.address)
            .await
            .map_err(|source| Error::Listen { address: settings.address, source })?;
        let address =
            listener.local_addr().map_err(|source| Error::Listen { address: settings.address, source })?;

        let (queue, queued) = mpsc::channel(EVENT_QUEUE);
        let faults = Faults::default();
        let gateway = Arc::new(Gateway {
            api_key: settings.api_key,
            timings,
            books: Mutex::new(books),
            dice: Mutex::new(Dice::new(faults.seed)),
            faults: watch::Sender::new(faults),
            requests: Mutex::default(),
            events: Mutex::default(),
            deliveries: Mutex::default(),
            signer,
            webhook_url: Mutex::new(settings.webhook_url),
            queue,
            client: crate::http::client(webhooks::TIMEOUT)?,
            changed: watch::Sender::new(()),
        });
        let stop = watch::Sender::new(false);
        let tasks = vec![
            tokio::spawn(server::run(listener, routes::router(Arc::clone(&gateway)), stop.subscribe())),
            tokio::spawn(webhooks::run(Arc::clone(&gateway), queued, stop.subscribe())),
        ];
        Ok(Self { gateway, address, url: url_of(address)?, stop, tasks: Mutex::new(tasks) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it is reached from this machine.
    pub fn url(&self) -> Url {
        self.url.clone()
    }

    /// Sends webhooks there from now on, those that wait for a further attempt too.
    pub fn set_webhook_url(&self, url: Url) {
        *lock(&self.gateway.webhook_url) = Some(url);
    }

    /// Stops listening, cuts every connection (answers that are held or never come included), and ends the
    /// delivery of webhooks. Stopping twice is stopping once.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks {
            let _ = task.await;
        }
        // A request that was cut may still be deciding on another thread. Nothing is written after this, so that
        // the next simulator with this ledger file is the only one.
        lock(&self.gateway.books).close();
    }

    /// What goes wrong at the moment, and the control over it.
    pub fn faults(&self) -> FaultControl<'_> {
        FaultControl { gateway: &self.gateway }
    }

    /// From now on requests are carried out and recorded, and their answers are held back.
    pub fn hold_responses(&self) {
        self.gateway.hold_answers(true);
    }

    /// Lets the answers go that are held back.
    pub fn release(&self) {
        self.gateway.hold_answers(false);
    }

    /// What has been done so far.
    pub fn ledger(&self) -> Ledger {
        lock(&self.gateway.books).ledger().clone()
    }

    /// The charges for a payment, declined ones included. More than one is the accident that all of this is to
    /// prevent.
    pub fn charges_for(&self, reference: Uuid) -> Vec<Charge> {
        lock(&self.gateway.books).ledger().charges_for(reference).cloned().collect()
    }

    /// Enters a charge that nobody asked for: a second one, or one of another amount.
    pub fn record(&self, charge: Charge) -> Result<(), Error> {
        lock(&self.gateway.books).enter(charge)?;
        self.gateway.happened();
        Ok(())
    }

    /// The latest requests to the API, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.gateway.requests).to_vec()
    }

    /// How often a charge or refund was asked for under this key, among the latest requests.
    pub fn calls_for(&self, key: &str) -> usize {
        lock(&self.gateway.requests)
            .iter()
            .filter(|request| request.idempotency_key.as_deref() == Some(key))
            .count()
    }

    /// Waits until the ledger is as expected.
    pub async fn wait_for(
        &self,
        mut expected: impl FnMut(&Ledger) -> bool,
        deadline: Duration,
    ) -> Result<(), Error> {
        self.wait_until(|simulator| expected(lock(&simulator.gateway.books).ledger()), deadline).await
    }

    /// Waits until something that this simulator tells (requests, events, deliveries, ledger) is as expected.
    pub async fn wait_until(
        &self,
        mut expected: impl FnMut(&Self) -> bool,
        deadline: Duration,
    ) -> Result<(), Error> {
        let mut changed = self.gateway.changed.subscribe();
        let arrival = async {
            while !expected(self) {
                changed.changed().await.map_err(|_| Error::Stopped)?;
            }
            Ok(())
        };
        tokio::time::timeout(deadline, arrival).await.map_err(|_| Error::Deadline(deadline))?
    }

    /// Forgets every idempotency key, as if 24 hours had passed. The ledger stays, and from now on the same key
    /// charges again.
    pub fn forget_keys(&self) {
        lock(&self.gateway.books).forget_keys();
    }

    /// The latest events, in the order in which they came about, whether or not they were delivered.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.gateway.events).to_vec()
    }

    /// The latest attempts to deliver an event.
    pub fn deliveries(&self) -> Vec<Delivery> {
        lock(&self.gateway.deliveries).to_vec()
    }

    /// Sends an event now, once, whatever the faults say, and says which status it was answered with. It may be
    /// a repeated one or one that never came about here.
    pub async fn deliver_webhook(&self, event: &Event) -> Result<u16, Error> {
        webhooks::deliver(&self.gateway, event).await
    }

    /// The `webhook-signature` header for a body that is sent under this id at this time.
    pub fn sign(&self, body: &str, id: &str, timestamp: DateTime<Utc>) -> Result<String, Error> {
        self.gateway.signer.sign(id, timestamp.timestamp(), body.as_bytes()).map_err(Error::Signing)
    }
}

/// Where a server that listens on `address` is reached from this machine.
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

/// The control over a simulator's faults.
pub struct FaultControl<'a> {
    gateway: &'a Gateway,
}

impl FaultControl<'_> {
    /// What goes wrong at the moment.
    pub fn get(&self) -> Faults {
        self.gateway.faults.borrow().clone()
    }

    /// Replaces them all.
    pub fn set(&self, faults: Faults) {
        self.gateway.set_faults(faults);
    }

    /// Back to normal.
    pub fn clear(&self) {
        self.set(Faults::default());
    }
}
