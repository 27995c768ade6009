//! The console: a web page that shows the service's telemetry. The console needs no Docker.
//!
//! The console receives spans over OTLP, reads the log lines that the service prints, and scrapes `/metrics`. The
//! service has no code for the console. The stored spans, log lines and samples are bounded: [`traces`], [`logs`] and
//! [`metrics`] document the bounds.
//!
//! - [`traces`], [`logs`], [`metrics`]: received telemetry
//! - [`now`], [`panels`]: the view *Now*, with its charts and figures
//! - [`rules`], [`alerting`]: the project's alerting rules, and a real Prometheus and Alertmanager if installed
//! - [`audit`]: the audit log and its verification
//! - [`watcher`]: background tasks, such as scraping, reading logs and evaluating rules
//! - [`guard`]: access control
//! - [`routes`], [`assets`]: the HTTP API, and the files of the page
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
mod watcher;

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
    alerting::AlertingStack,
    logs::Logs,
    metrics::Store,
    now::{Overview, Snapshot},
    rules::{Rule, Rules},
    traces::Traces,
};
use crate::{
    alert_inbox::{self, Inbox},
    failover::Replication,
    faults::Switchboard,
    http,
    otlp::{self, Span},
    process::Follower,
    traffic::Switch,
};

/// The reason why the console did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the console failed to listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Rules(#[from] rules::Error),
    #[error("a console panel has an invalid expression: {0}")]
    Expression(#[from] metrics::Error),
    #[error("failed to create an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    #[error("the alert inbox failed to listen: {0}")]
    Inbox(io::Error),
}

/// The observed service and its dependencies.
#[derive(Clone)]
pub struct ObservedSystem {
    pub executable: PathBuf,
    /// Connection URL with the service's PostgreSQL role.
    pub database_url: Url,
    /// Connection URL with the PostgreSQL role that owns the schema.
    pub owner_url: Url,
    /// The file with the service's log lines, which contain the heads of the audit log (`docs/audit.md`). With `None`,
    /// the console verifies the audit log without heads.
    pub log: Option<PathBuf>,
    pub faults: Switchboard,
    /// The primary and its standby, if the database has a standby.
    pub replication: Option<Replication>,
    /// Reconciliation with an external ledger, if the service has one.
    pub reconciliation: Option<Comparison>,
    pub traffic: Option<Switch>,
    /// Data directory of a real Prometheus and Alertmanager. With `None`, neither is started.
    pub prometheus: Option<PathBuf>,
    pub scrape_interval: Duration,
}

/// Interval of scrapes, except in tests. The interval is not shorter, because a scrape costs the service as much CPU
/// time as a few requests.
pub const SCRAPE_INTERVAL: Duration = Duration::from_secs(5);

/// One process of the service.
#[derive(Debug, Clone)]
struct Replica {
    ops: Url,
    health: Arc<Mutex<ReplicaHealth>>,
}

/// Health of a replica.
#[derive(Debug, Clone, Default, Serialize)]
struct ReplicaHealth {
    /// Status of `/readyz`, or `None` without a response.
    ready_status: Option<u16>,
    /// Body of `/readyz`, or null without a JSON response.
    ready: Value,
    /// Body of `/health`, or null without a JSON response.
    health: Value,
}

/// The result of comparing the service's tables with the records of an external system.
#[derive(Debug, Clone, Serialize)]
pub struct ReconciliationResult {
    pub at: DateTime<Utc>,
    pub holds: bool,
    pub summary: String,
    /// The result as JSON, or `None` if the comparison failed.
    pub report: Option<Value>,
}

/// A function that runs one reconciliation.
pub type Comparison =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ReconciliationResult> + Send>> + Send + Sync>;

/// State of the console.
struct State {
    address: SocketAddr,
    began: DateTime<Utc>,
    traces: Mutex<Traces>,
    logs: Mutex<Logs>,
    metrics: Mutex<Store>,
    overview: Mutex<Overview>,
    rules: Mutex<Rules>,
    /// The rules with their states at the last evaluation.
    evaluated_rules: Mutex<Vec<Rule>>,
    replicas: Mutex<Vec<Replica>>,
    reconciliation: Mutex<Option<ReconciliationResult>>,
    system: OnceLock<ObservedSystem>,
    alerting: OnceLock<AlertingStack>,
    inbox: Inbox,
    /// Id of the trace that `/traces/first` shows, set once the console has received the trace.
    first_trace: OnceLock<String>,
    /// Notifies the open pages of changes.
    counters: watch::Sender<ChangeCounters>,
    /// The newest values of the charts and figures.
    latest: watch::Sender<Option<Snapshot>>,
    client: reqwest::Client,
    /// Prevents concurrent verifications of the audit log.
    verifying: tokio::sync::Mutex<()>,
}

/// Number of changes of each kind of data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct ChangeCounters {
    traces: u64,
    logs: u64,
    now: u64,
    alerts: u64,
    faults: u64,
    reconciliation: u64,
}

impl State {
    fn changed(&self, what: impl FnOnce(&mut ChangeCounters)) {
        self.counters.send_modify(what);
    }
}

/// Locks a mutex and ignores poisoning, because a panic leaves no guarded value half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running console. Dropping the value ends the console.
pub struct Console {
    state: Arc<State>,
    tasks: Mutex<JoinSet<()>>,
    server: JoinHandle<()>,
}

impl Console {
    /// Starts the console, which then receives spans and serves the page. Port 0 selects a free port.
    pub async fn start(address: SocketAddr, rules: &std::path::Path) -> Result<Self, Error> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
        let inbox = alert_inbox::Settings {
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
            evaluated_rules: Mutex::default(),
            replicas: Mutex::default(),
            reconciliation: Mutex::default(),
            system: OnceLock::new(),
            alerting: OnceLock::new(),
            inbox: Inbox::start(inbox).await.map_err(Error::Inbox)?,
            first_trace: OnceLock::new(),
            counters: watch::Sender::default(),
            latest: watch::Sender::default(),
            client: http::client(Duration::from_secs(5))?,
            verifying: tokio::sync::Mutex::default(),
        });
        let router = routes::router(Arc::clone(&state));
        let server = tokio::spawn(async move {
            // `axum::serve` never returns an error. The console aborts the task when it stops.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { state, tasks: Mutex::default(), server })
    }

    /// Returns the URL of the page. The service sends its spans to the console over gRPC or HTTP if
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` has the same URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.state.address)
    }

    /// Returns the URL for the service's `ALERT_WEBHOOK_URL`. This URL receives the service's own alerts.
    pub fn alerts_url(&self) -> String {
        format!("http://{}/service", self.state.inbox.address())
    }

    /// Starts observing a service. Only the first call has an effect.
    pub fn watch(&self, system: &ObservedSystem) {
        if self.state.system.set(system.clone()).is_ok() {
            self.spawn(watcher::scrape(Arc::clone(&self.state), system.scrape_interval));
            if let Some(compare) = system.reconciliation.clone() {
                self.spawn(watcher::reconcile(Arc::clone(&self.state), compare));
            }
            if let Some(replication) = &system.replication {
                self.spawn(watcher::report_changes(Arc::clone(&self.state), replication.changes()));
            }
            self.spawn(watcher::find_first_trace(Arc::clone(&self.state), system.clone()));
            self.spawn(watcher::evaluate_rules(Arc::clone(&self.state), system.clone()));
            self.spawn(watcher::report_changes(Arc::clone(&self.state), system.faults.changes()));
        }
    }

    /// Adds a replica, whose metrics are scraped and whose log is read.
    pub fn follow(&self, ops: Url, log: Follower) {
        let mut replicas = lock(&self.state.replicas);
        replicas.push(Replica { ops, health: Arc::default() });
        let number = u16::try_from(replicas.len()).unwrap_or(u16::MAX);
        drop(replicas);
        self.spawn(watcher::read_log(Arc::clone(&self.state), number, log));
    }

    /// Stops the server of the page and the background tasks.
    pub async fn stop(self) {
        self.server.abort();
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }

    /// Returns a stream of future status lines.
    pub fn status_lines(&self) -> StatusLines {
        StatusLines(self.state.latest.subscribe())
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

/// A stream of status lines. Each scrape creates a new line, and a slow reader receives only the newest line.
pub struct StatusLines(watch::Receiver<Option<Snapshot>>);

impl StatusLines {
    /// Waits for the next status line. Never resolves after the console has ended.
    pub async fn next(&mut self) -> String {
        while self.0.changed().await.is_ok() {
            if let Some(point) = self.0.borrow_and_update().as_ref() {
                return point.status_line();
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
        self.0.changed(|counters| counters.traces += 1);
        true
    }
}
