//! The wiring: the only module that connects all others.
//!
//! Everything that lives as long as the process is created in [`serve`], passed down, and ended there in reverse order.
//! Parts that need more than a line have their own modules:
//!
//! - `startup`: the checks of the database before the service accepts requests
//! - `audit_workers`: the workers of the audit log, and the events of the process itself
mod audit_workers;
mod startup;

use std::{net::IpAddr, sync::Arc, time::Duration};

use platform::{
    alerts::Alerts,
    audit::{self, Refusals},
    build_info::BuildInfo,
    database::{self, Database},
    http::{
        idempotency,
        limits::RateLimiter,
        server::{Limits, Listener, ServerError},
    },
    migrations,
    ops::{self, health::Health, log_level::LogLevel},
    shutdown::Signals,
    telemetry::Telemetry,
    workers::{BackgroundTasks, Progress, Workers},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    accounts::{self, Accounts, Authentication},
    api::{self, App},
    config::Config,
    slices::{self, Slices},
};

/// Interval of deleting expired sessions, idempotency keys and login attempts.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// Part of the shutdown deadline that is reserved for exporting the last spans and log lines.
const TO_FLUSH: Duration = Duration::from_secs(2);

/// Error of starting or ending the service.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Database(#[from] database::ConnectError),
    #[error(transparent)]
    Migration(#[from] migrations::MigrateError),
    /// The database responds, but a startup check failed to read it.
    #[error("failed to check the database: {0}")]
    Check(#[from] sqlx::Error),
    /// The database lacks migrations that this binary needs.
    #[error("the schema of the database is older than this release: run `{} migrate`, or set MIGRATE_ON_START=true", env!("CARGO_PKG_NAME"))]
    SchemaOlder,
    /// The database was loaded into another cluster. New audit events would appear to be older than existing ones.
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
    /// The shutdown's deadline passed.
    #[error("shutdown deadline exceeded; cancelled: {0}")]
    Cut(String),
}

/// Runs the service until a signal ends it. Everything that is started here is stopped here, in reverse order.
///
/// # Errors
/// If the service could not start completely, or did not end before the shutdown deadline.
pub async fn serve(config: Config, telemetry: Telemetry) -> Result<(), ServeError> {
    let served = run(&config, &telemetry).await;
    if let Err(error) = &served {
        tracing::error!(error = error as &dyn std::error::Error, "the service failed");
    }
    telemetry.flush(TO_FLUSH).await;
    served
}

async fn run(config: &Config, telemetry: &Telemetry) -> Result<(), ServeError> {
    let mut signals = Signals::listen()?;
    install_tls_provider();
    // Waiting for the database or for another replica's migrations can take long. A signal ends the wait at once.
    let database = tokio::select! {
        opened = startup::open(config) => opened?,
        signal = signals.next() => {
            tracing::info!(signal, "the service stopped before it was up");
            return Ok(());
        }
    };
    let alerts = Alerts::start(&config.alerts, BuildInfo::current().name)?;
    let tracked = BackgroundTasks::new();
    // At most half of the requests in flight may wait for another service, so that a slow one cannot starve the rest.
    let max_waiting = (config.http.max_requests_in_flight / 2).max(1);
    let slices = Slices::start(&config.slices, &database, &alerts, &tracked, max_waiting)?;
    let refusals = Refusals::new(database.clone());
    let accounts = Accounts::new(database.clone(), refusals.clone(), &config.accounts);
    let authentication =
        Authentication::new(database.clone(), refusals.clone(), config.http.rate_limit_caller);
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
    audit_workers::start(&workers, config, &database, &alerts, &refusals);
    let health = health(&database, &slices, &workers);
    let log_level = LogLevel::new(
        telemetry.log_filter(),
        ops_address,
        config.http.ops_token.clone(),
        audit_workers::log_level(&database, &refusals, &tracked),
    );
    let ops = ops.serve(ops::router(health.clone(), log_level));
    let app = App { database: database.clone(), accounts, slices };
    let api = api.serve(api::router(&app, authentication, by_address, &config.http));
    tracing::info!(%api_address, %ops_address, environment = config.process.environment.as_str(), commit = BuildInfo::current().commit, "the service is up");

    let signal = signals.next().await;
    let deadline = Instant::now() + config.shutdown.deadline;
    tracing::info!(signal, "the service is shutting down");
    let wound_down = async {
        // Readiness fails first, and the grace period gives load balancers time to stop sending requests.
        health.fail_readiness();
        tokio::time::sleep(config.shutdown_grace()).await;
        let enough = deadline - TO_FLUSH;
        let mut cut = Vec::new();
        let requests = api.drain(enough).await.cut;
        note_cut(&mut cut, requests, "connections of the API");
        let money = tracked.drain(enough).await;
        note_cut(&mut cut, money, "tasks started by requests");
        // Workers stop between two units of work, never within one.
        let stopped = workers.stop(enough).await;
        note_cut(&mut cut, stopped.len(), "workers");
        // Records the refusals of the last minute that were only counted.
        if let Err(error) = refusals.flush().await {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to audit denied requests");
        }
        alerts.flush(enough).await;
        // Last, so that the shutdown can be observed until its end.
        ops.drain(enough).await;
        database.close(enough.saturating_duration_since(Instant::now())).await;
        cut
    };
    let cut = tokio::select! {
        cut = wound_down => cut,
        signal = signals.next() => vec![format!("everything, because of a second {signal}")],
        () = tokio::time::sleep_until(deadline) => vec!["everything still running".to_owned()],
    };
    if cut.is_empty() {
        tracing::info!("the service stopped");
        Ok(())
    } else {
        Err(ServeError::Cut(cut.join(", ")))
    }
}

fn note_cut(cut: &mut Vec<String>, count: usize, what: &str) {
    if count > 0 {
        cut.push(format!("{count} {what}"));
    }
}

/// Installs one provider of cryptography for all TLS connections.
pub fn install_tls_provider() {
    // Fails only if a provider is installed already, which is acceptable.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}

fn initialize_metrics() {
    audit::initialize_metrics();
    accounts::initialize_metrics();
}

/// Returns the checks of readiness and `/health`.
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
    let swept = database.clone();
    workers.spawn("sweep", SWEEP_INTERVAL, move || {
        let database = swept.clone();
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
