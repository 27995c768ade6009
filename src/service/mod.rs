//! The wiring: the only module that connects all others.
//!
//! [`serve`] receives the settings and the telemetry, and creates everything else that lives as long as the process. At
//! the end, [`serve`] stops these parts. The shutdown ends requests and workers first, then the parts that they use,
//! and the telemetry last. The longer parts of the wiring have their own modules:
//!
//! - `startup`: the migrations and checks of the database before the service accepts requests, and the health checks of
//!   the database
//! - `audit_workers`: the workers of the audit log, and the audit events of changes and rejected changes of the log
//!   filter
mod audit_workers;
mod startup;

use std::{net::IpAddr, sync::Arc, time::Duration};

use platform::{
    alerts::Alerts,
    audit::{self, Denials},
    build_info::BuildInfo,
    database::{self, Database},
    http::{
        idempotency,
        limits::RateLimiter,
        server::{Limits, Listener, ServerError},
    },
    migrations,
    ops::{self, health::Health, log_level::LogLevel},
    outbound,
    shutdown::{MIN_FLUSH_TIME, ShutdownDeadlines, Signals},
    telemetry::{self, Telemetry},
    workers::{BackgroundTasks, Progress, Workers},
};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::{
    accounts::{self, Accounts, Authentication},
    api::{self, App},
    config::Config,
    slices::{self, Slices},
};

/// Interval at which expired sessions, idempotency keys and login attempts are deleted, and idle rate limits are
/// pruned.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// Time by which the shutdown steps before the flush of telemetry may exceed their last deadline. After this time,
/// everything that still runs is cancelled. The cancellation happens only if a step ignores its deadline.
const CANCEL_DELAY: Duration = Duration::from_millis(500);

/// Error of starting, running or stopping the service.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Database(#[from] database::ConnectError),
    #[error(transparent)]
    Migration(#[from] migrations::MigrateError),
    /// A statement of the startup checks failed.
    #[error("failed to check the database: {0}")]
    Check(#[from] sqlx::Error),
    /// The database lacks migrations that this binary needs.
    #[error("the schema of the database is older than this release: run `{} migrate`, or set MIGRATE_ON_START=true", env!("CARGO_PKG_NAME"))]
    SchemaOlder,
    /// The database was copied into another cluster. Transaction ids start again there, so new audit events would
    /// appear to be older than existing ones.
    #[error("the database was loaded into a different PostgreSQL cluster: run `{} migrate`, which starts an epoch of its audit log", env!("CARGO_PKG_NAME"))]
    OtherCluster,
    /// The service's role could rewrite the audit log.
    #[error("DATABASE_URL's role can rewrite the audit log, as a superuser, as the owner, or by its rights: use the restricted role that `{} migrate` prepares", env!("CARGO_PKG_NAME"))]
    TooManyRights,
    /// Confirmed commits could be lost in a crash.
    #[error("synchronous_commit is off for DATABASE_URL's role, so a crash can lose confirmed commits: run `{} migrate`, which turns it on", env!("CARGO_PKG_NAME"))]
    LossyCommits,
    /// The HTTP client for alerts could not be created.
    #[error("failed to create the HTTP client for alerts: {0}")]
    Alerts(#[from] reqwest::Error),
    /// A slice could not start.
    #[error(transparent)]
    Slice(#[from] slices::StartError),
    #[error(transparent)]
    Listener(#[from] ServerError),
    /// Signal handlers could not be installed.
    #[error("failed to install signal handlers: {0}")]
    Signals(#[from] std::io::Error),
    /// Parts of the service were cancelled at their deadline, or because of a second signal.
    #[error("shutdown deadline exceeded; cancelled: {0}")]
    Cut(String),
}

/// The result of a shutdown that followed a signal.
struct Shutdown {
    /// The parts that were cancelled at their deadline, or because of a second signal.
    cancelled: Vec<String>,
    /// Deadline of the last export of spans and log lines.
    deadline: Instant,
}

/// Runs the service until SIGTERM or SIGINT, then shuts it down and exports the last telemetry.
///
/// # Errors
/// If the service could not start completely, or a part of it was cancelled during the shutdown.
pub async fn serve(config: Config, telemetry: Telemetry) -> Result<(), ServeError> {
    let (served, deadline) = match run(&config, &telemetry).await {
        Ok(Shutdown { cancelled, deadline }) if cancelled.is_empty() => (Ok(()), deadline),
        Ok(Shutdown { cancelled, deadline }) => (Err(ServeError::Cut(cancelled.join(", "))), deadline),
        Err(error) => (Err(error), Instant::now() + MIN_FLUSH_TIME),
    };
    match &served {
        Ok(()) => tracing::info!("the service stopped"),
        Err(error) => tracing::error!(error = error as &dyn std::error::Error, "the service failed"),
    }
    telemetry.flush(deadline).await;
    served
}

async fn run(config: &Config, telemetry: &Telemetry) -> Result<Shutdown, ServeError> {
    let mut signals = Signals::listen()?;
    outbound::install_tls_provider();
    // The wait for the database, or for another replica's migrations, can take long. A signal ends this wait at once.
    let database = tokio::select! {
        opened = startup::open(config) => opened?,
        signal = signals.next() => {
            tracing::info!(signal, "the service stopped during the start");
            return Ok(Shutdown { cancelled: Vec::new(), deadline: Instant::now() + MIN_FLUSH_TIME });
        }
    };
    let alerts = Alerts::start(&config.alerts, &telemetry::service_name(&config.opentelemetry))?;
    let background_tasks = BackgroundTasks::new();
    // At most half of the requests in flight may wait for another service, so that a slow service cannot starve the
    // other routes.
    let max_waiting = (config.http.max_requests_in_flight / 2).max(1);
    let slices = Slices::start(&config.slices, &database, &alerts, &background_tasks, max_waiting)?;
    let denials = Denials::new(database.clone());
    let accounts = Accounts::new(database.clone(), denials.clone(), &config.accounts);
    let authentication =
        Authentication::new(database.clone(), denials.clone(), config.http.rate_limit_caller);
    let by_address = Arc::new(RateLimiter::<IpAddr>::per_second(config.http.rate_limit_address));
    initialize_metrics();

    let limits = Limits {
        max_connections: config.http.max_connections,
        max_connections_per_address: config.http.max_connections_per_address,
        proxies: config.http.trusted_proxies.clone(),
        header_timeout: config.http.header_timeout,
        write_timeout: config.http.write_timeout,
        idle_timeout: config.http.idle_timeout,
    };
    let ops = Listener::bind("OPS_ADDRESS", config.http.ops_address, limits.clone()).await?;
    let api = Listener::bind("API_ADDRESS", config.http.api_address, limits).await?;
    let (ops_address, api_address) = (ops.local_address(), api.local_address());

    let workers = Workers::new();
    start_workers(&workers, &database, &accounts, &authentication, &by_address);
    slices.start_workers(&workers);
    audit_workers::start(&workers, config, &database, &alerts, &denials);
    let health = health(&database, &slices, &workers);
    let log_level = LogLevel::new(
        telemetry.log_filter(),
        ops_address,
        config.http.ops_token.clone(),
        audit_workers::log_level_auditor(&database, &denials, &background_tasks),
    );
    let ops = ops.serve(ops::router(health.clone(), log_level));
    let app = App { database: database.clone(), accounts, slices };
    let api = api.serve(api::router(&app, authentication, by_address, &config.http));
    tracing::info!(%api_address, %ops_address, environment = config.process.environment.as_str(), commit = BuildInfo::current().commit, "the service is up");

    let signal = signals.next().await;
    let deadline = Instant::now() + config.shutdown.deadline;
    tracing::info!(signal, "the service is shutting down");
    let shutting_down = async {
        // Readiness fails first, and the grace period gives load balancers time to stop sending requests.
        health.fail_readiness();
        tokio::time::sleep(config.shutdown_grace()).await;
        let deadlines = ShutdownDeadlines::new(Instant::now(), deadline);
        let requests = async {
            let connections = api.drain(deadlines.connections).await.cut;
            (connections, background_tasks.drain(deadlines.work).await)
        };
        // Workers stop between two units of work. A unit that still runs at the deadline is cancelled. Workers and
        // requests end concurrently, so that a slow client does not use up the workers' time.
        let ((connections, tasks), stopped) = tokio::join!(requests, workers.stop(deadlines.work));
        // After the requests and workers, because both can still count denials and raise alerts.
        tokio::join!(record_denials(&denials, deadlines.rest), send_alerts(&alerts, deadlines.rest));
        // The operations listener ends only now, so that metrics and health can be read during the shutdown.
        ops.drain(deadlines.rest).await;
        database.close(deadlines.rest.saturating_duration_since(Instant::now())).await;
        let mut cancelled = Vec::new();
        add_cancelled(&mut cancelled, connections, "connections of the API");
        add_cancelled(&mut cancelled, tasks, "tasks that requests had started");
        add_cancelled(&mut cancelled, stopped.len(), "workers");
        cancelled
    };
    let cancel_at = deadline - MIN_FLUSH_TIME + CANCEL_DELAY;
    Ok(tokio::select! {
        cancelled = shutting_down => Shutdown { cancelled, deadline },
        () = tokio::time::sleep_until(cancel_at) => {
            Shutdown { cancelled: vec!["everything still running".to_owned()], deadline }
        }
        signal = signals.next() => {
            let cancelled = vec![format!("everything, because of a second {signal}")];
            Shutdown { cancelled, deadline: deadline.min(Instant::now() + MIN_FLUSH_TIME) }
        }
    })
}

/// Records summary events for the denials that [`Denials`] has only counted since the last summary.
async fn record_denials(denials: &Denials, deadline: Instant) {
    match timeout_at(deadline, denials.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to audit denied requests");
        }
        Err(_) => tracing::error!("timed out auditing denied requests"),
    }
}

/// Waits until all raised alerts are sent, at most until the deadline.
async fn send_alerts(alerts: &Alerts, deadline: Instant) {
    if !alerts.flush(deadline).await {
        tracing::error!("dropped alerts: no receiver accepted them in time");
    }
}

fn add_cancelled(cancelled: &mut Vec<String>, count: usize, what: &str) {
    if count > 0 {
        cancelled.push(format!("{count} {what}"));
    }
}

fn initialize_metrics() {
    audit::initialize_metrics();
    accounts::initialize_metrics();
}

/// Returns the checks for readiness and `/health`, and the further sections of `/health`.
fn health(database: &Database, slices: &Slices, workers: &Workers) -> Health {
    let workers = workers.clone();
    let health = startup::add_checks(Health::builder(BuildInfo::current()), database);
    slices.add_checks(health).section("workers", move || json!(workers.status())).build()
}

fn start_workers(
    workers: &Workers,
    database: &Database,
    accounts: &Accounts,
    authentication: &Authentication,
    by_address: &Arc<RateLimiter<IpAddr>>,
) {
    let sweep_database = database.clone();
    workers.spawn("sweep", SWEEP_INTERVAL, move || {
        let database = sweep_database.clone();
        async move {
            let swept = idempotency::sweep(&database).await?
                + accounts::sweep_sessions(&database).await?
                + accounts::sweep_attempts(&database).await?;
            Ok::<_, sqlx::Error>(if swept > 0 { Progress::More } else { Progress::Idle })
        }
    });
    let (accounts, authentication, by_address) =
        (accounts.clone(), authentication.clone(), by_address.clone());
    workers.spawn("rate_limits", SWEEP_INTERVAL, move || {
        accounts.prune_idle();
        authentication.prune_idle();
        by_address.prune_idle();
        std::future::ready(Ok::<_, std::convert::Infallible>(Progress::Idle))
    });
}
