//! The console: one page on which everything that the service tells of itself is seen, without Docker.
//!
//! It stands where any backend would stand. It receives spans over OTLP, reads the log lines that the service
//! prints, and scrapes `/metrics`; the service knows nothing of it. What it keeps is bounded, and the bounds stand
//! beside what they bound: [`traces`], [`logs`], [`metrics`].
//!
//! - [`traces`], [`logs`], [`metrics`]: what came in
//! - [`now`], [`panels`]: the first view, and its charts and figures
//! - [`rules`], [`alerting`]: the project's alerts, and a real Prometheus for them where there is one
//! - [`audit`]: the trail, and its verification
//! - [`watching`]: what goes on all the time: scraping, following the log, comparing the books
//! - [`guard`]: who may ask
//! - [`routes`], [`assets`]: the server
mod alerting;
mod assets;
mod audit;
mod guard;
mod logs;
pub mod metrics;
mod now;
pub(crate) mod panels;
mod routes;
mod rules;
mod traces;
mod watching;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use url::Url;

use self::{
    alerting::Alerting,
    logs::Logs,
    metrics::Store,
    now::{Overview, Point},
    rules::{Rule, Rules},
    traces::Traces,
};
use crate::{
    faults::Switchboard,
    http,
    inbox::{self, Inbox},
    otlp::{self, Span},
    process::Follower,
    traffic::Switch,
};

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the console cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Rules(#[from] rules::Error),
    #[error("an expression of the console: {0}")]
    Expression(#[from] metrics::Error),
    #[error("an HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    #[error("the inbox of alerts cannot listen: {0}")]
    Inbox(io::Error),
}

/// What is watched: the service, and what it works with.
#[derive(Clone)]
pub struct Scene {
    pub executable: PathBuf,
    /// As the service's role.
    pub database_url: Url,
    /// As the owner of the schema.
    pub owner_url: Url,
    /// Where the service's log lines are, for the heads of the audit chain in them.
    pub log: Option<PathBuf>,
    pub faults: Switchboard,
    /// How the books are compared, where the service has any with somebody else.
    pub books: Option<Comparison>,
    pub traffic: Option<Switch>,
    /// Where a real Prometheus may keep its data; without it none is started.
    pub prometheus: Option<PathBuf>,
    pub scrape_interval: Duration,
}

/// How often the service is scraped unless somebody is in a hurry: a scrape costs it as much as a few requests.
pub const SCRAPE_INTERVAL: Duration = Duration::from_secs(5);

/// One process of the service.
#[derive(Debug, Clone)]
struct Replica {
    ops: Url,
    health: Arc<Mutex<Condition>>,
}

/// What a replica says of its condition.
#[derive(Debug, Clone, Default, Serialize)]
struct Condition {
    /// `/readyz`: the status, and the body.
    ready_status: Option<u16>,
    ready: Value,
    /// `/health`.
    health: Value,
}

/// What came of comparing the service's tables with those of somebody else.
#[derive(Debug, Clone, Serialize)]
pub struct Books {
    pub at: DateTime<Utc>,
    pub holds: bool,
    pub says: String,
    /// In numbers; nothing, where they could not be compared.
    pub verdict: Option<Value>,
}

/// Compares them once.
pub type Comparison = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Books> + Send>> + Send + Sync>;

/// Everything that the page shows.
struct State {
    address: SocketAddr,
    began: DateTime<Utc>,
    traces: Mutex<Traces>,
    logs: Mutex<Logs>,
    metrics: Mutex<Store>,
    overview: Mutex<Overview>,
    rules: Mutex<Rules>,
    /// As they stood at the last look.
    standing: Mutex<Vec<Rule>>,
    replicas: Mutex<Vec<Replica>>,
    books: Mutex<Option<Books>>,
    scene: OnceLock<Scene>,
    alerting: OnceLock<Alerting>,
    inbox: Inbox,
    /// The trace that a newcomer is led to.
    first: OnceLock<String>,
    /// What has changed, for the pages that are open.
    pulse: watch::Sender<Pulse>,
    /// The newest figures.
    latest: watch::Sender<Option<Point>>,
    client: reqwest::Client,
    /// So that two impatient clicks do not verify twice at once.
    verifying: tokio::sync::Mutex<()>,
}

/// Counts the changes of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Pulse {
    traces: u64,
    logs: u64,
    now: u64,
    alerts: u64,
    faults: u64,
    books: u64,
}

impl State {
    fn changed(&self, what: impl FnOnce(&mut Pulse)) {
        self.pulse.send_modify(what);
    }
}

/// Nothing of what is guarded is half changed when a thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running console. It ends when this is dropped.
pub struct Console {
    state: Arc<State>,
    tasks: Mutex<JoinSet<()>>,
    server: JoinHandle<()>,
}

impl Console {
    /// Starts it; from now on it receives spans, and shows what there is. Port 0 is any free one.
    pub async fn start(address: SocketAddr, rules: &std::path::Path) -> Result<Self, Error> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
        let inbox = inbox::Settings {
            address: SocketAddr::new(address.ip(), 0),
            runbooks: Some(crate::project::root().join("docs/runbooks")),
        };
        let state = Arc::new(State {
            address,
            began: Utc::now(),
            traces: Mutex::default(),
            logs: Mutex::default(),
            metrics: Mutex::default(),
            overview: Mutex::new(Overview::new()?),
            rules: Mutex::new(Rules::read(rules)?),
            standing: Mutex::default(),
            replicas: Mutex::default(),
            books: Mutex::default(),
            scene: OnceLock::new(),
            alerting: OnceLock::new(),
            inbox: Inbox::start(inbox).await.map_err(Error::Inbox)?,
            first: OnceLock::new(),
            pulse: watch::Sender::default(),
            latest: watch::Sender::default(),
            client: http::client(Duration::from_secs(5))?,
            verifying: tokio::sync::Mutex::default(),
        });
        let router = routes::router(Arc::clone(&state));
        let server = tokio::spawn(async move {
            // It has nothing to lose: what breaks off is asked for again.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { state, tasks: Mutex::default(), server })
    }

    /// Where the page is, and where spans are sent: `OTEL_EXPORTER_OTLP_ENDPOINT`, with either protocol.
    pub fn url(&self) -> String {
        format!("http://{}", self.state.address)
    }

    /// Where the service sends alerts of its own: `ALERT_WEBHOOK_URL`.
    pub fn alerts_url(&self) -> String {
        format!("http://{}/service", self.state.inbox.address())
    }

    /// Watches a service from now on. Only the first call has an effect.
    pub fn watch(&self, scene: Scene) {
        if self.state.scene.set(scene.clone()).is_ok() {
            self.spawn(watching::scrape(Arc::clone(&self.state), scene.scrape_interval));
            if let Some(compare) = scene.books.clone() {
                self.spawn(watching::compare_books(Arc::clone(&self.state), compare));
            }
            self.spawn(watching::find_first(Arc::clone(&self.state), scene.clone()));
            self.spawn(watching::alert(Arc::clone(&self.state), scene.clone()));
            self.spawn(watching::report_switches(Arc::clone(&self.state), scene));
        }
    }

    /// Scrapes this process of the service, too, and reads its log.
    pub fn follow(&self, ops: Url, log: Follower) {
        let mut replicas = lock(&self.state.replicas);
        replicas.push(Replica { ops, health: Arc::default() });
        let number = u16::try_from(replicas.len()).unwrap_or(u16::MAX);
        drop(replicas);
        self.spawn(watching::read_log(Arc::clone(&self.state), number, log));
    }

    /// Ends it, and with it what it has started.
    pub async fn stop(self) {
        self.server.abort();
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }

    /// How it goes, from now on.
    pub fn essentials(&self) -> Essentials {
        Essentials(self.state.latest.subscribe())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(task);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Says how it goes, in one line, whenever there are new figures.
pub struct Essentials(watch::Receiver<Option<Point>>);

impl Essentials {
    /// The next line; never, once the console has ended.
    pub async fn next(&mut self) -> String {
        while self.0.changed().await.is_ok() {
            if let Some(point) = self.0.borrow_and_update().as_ref() {
                return point.essentials();
            }
        }
        std::future::pending().await
    }
}

/// The receiver of spans.
#[derive(Clone)]
struct Receiver(Arc<State>);

impl otlp::Sink for Receiver {
    async fn take(&self, spans: Vec<Span>) -> bool {
        lock(&self.0.traces).take(spans);
        self.0.changed(|pulse| pulse.traces += 1);
        true
    }
}
