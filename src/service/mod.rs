//! The wiring: the only place where all modules meet.
//!
//! Everything that lives as long as the process is created in [`serve`], handed down, and ended there in reverse
//! order. The parts that take more than a line stand beside it:
//!
//! - `startup`: the checks of the database before anything is served
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
    workers::{Progress, Tracked, Workers},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    accounts::{self, Accounts, Authentication},
    api::{self, App},
    config::Config,
    slices::{self, Slices},
};

/// How often expired sessions, answers and the like are swept.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// What is left of the shutdown's deadline for the last spans and log lines.
const TO_FLUSH: Duration = Duration::from_secs(2);

/// Why the service did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// See there.
    #[error(transparent)]
    Database(#[from] database::ConnectError),
    /// See there.
    #[error(transparent)]
    Migration(#[from] migrations::MigrateError),
    /// The database answers, and something in it cannot be read.
    #[error("the database could not be checked: {0}")]
    Check(#[from] sqlx::Error),
    /// The database has not the migrations that this binary needs.
    #[error("the database's schema is older than this release: run `{} migrate`, or set MIGRATE_ON_START=true", env!("CARGO_PKG_NAME"))]
    SchemaOlder,
    /// New events would seem to be older than old ones.
    #[error("the database was loaded into another PostgreSQL cluster: run `{} migrate`, which begins an epoch of its audit trail", env!("CARGO_PKG_NAME"))]
    OtherCluster,
    /// The service could rewrite its own audit trail.
    #[error("DATABASE_URL's role may rewrite the audit trail, as a superuser, the owner, or by its rights: use the restricted role that `{} migrate` prepares", env!("CARGO_PKG_NAME"))]
    TooManyRights,
    /// A confirmed commit could be lost.
    #[error("synchronous_commit is off for DATABASE_URL's role, so that confirmed commits may be lost in a crash: run `{} migrate`, which sets it", env!("CARGO_PKG_NAME"))]
    LossyCommits,
    /// The client that sends alerts cannot be set up.
    #[error("the client that sends alerts could not be set up: {0}")]
    Alerts(#[from] reqwest::Error),
    /// A slice cannot start.
    #[error(transparent)]
    Slice(#[from] slices::StartError),
    /// See there.
    #[error(transparent)]
    Listener(#[from] ServerError),
    /// Signals cannot be listened to.
    #[error("signals cannot be listened to: {0}")]
    Signals(#[from] std::io::Error),
    /// The shutdown's deadline passed.
    #[error("the shutdown's deadline passed; cut short: {0}")]
    Cut(String),
}

/// Runs the service until a signal ends it. Whatever is started here is stopped here, in reverse order.
///
/// # Errors
/// When it cannot start whole, or could not end in time.
pub async fn serve(config: Config, telemetry: Telemetry) -> Result<(), ServeError> {
    let served = run(&config, &telemetry).await;
    if let Err(error) = &served {
        tracing::error!(error = error as &dyn std::error::Error, "the service ends");
    }
    telemetry.flush(TO_FLUSH).await;
    served
}

async fn run(config: &Config, telemetry: &Telemetry) -> Result<(), ServeError> {
    let mut signals = Signals::listen()?;
    install_tls_provider();
    // Waiting for the database or for another replica's migrations can take long, and is given up at once.
    let database = tokio::select! {
        opened = startup::open(config) => opened?,
        signal = signals.next() => {
            tracing::info!(signal, "the service has ended before it was up");
            return Ok(());
        }
    };
    let alerts = Alerts::start(&config.alerts, BuildInfo::current().name)?;
    let tracked = Tracked::new();
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
        // Load balancers look away first, and have the time to notice.
        health.fail_readiness();
        tokio::time::sleep(config.shutdown_grace()).await;
        let enough = deadline - TO_FLUSH;
        let mut cut = Vec::new();
        let requests = api.drain(enough).await.cut;
        note_cut(&mut cut, requests, "connections of the API");
        let money = tracked.drain(enough).await;
        note_cut(&mut cut, money, "tasks that requests had started");
        // Between two units of work, never within one.
        let stopped = workers.stop(enough).await;
        note_cut(&mut cut, stopped.len(), "workers");
        // The refusals of the last minute that were only counted.
        if let Err(error) = refusals.tell().await {
            tracing::error!(error = &error as &dyn std::error::Error, "refusals could not be audited");
        }
        alerts.flush(enough).await;
        // Last, so that the end can still be watched.
        ops.drain(enough).await;
        database.close(enough.saturating_duration_since(Instant::now())).await;
        cut
    };
    let cut = tokio::select! {
        cut = wound_down => cut,
        signal = signals.next() => vec![format!("everything, by a second {signal}")],
        () = tokio::time::sleep_until(deadline) => vec!["everything that was left".to_owned()],
    };
    if cut.is_empty() {
        tracing::info!("the service has ended");
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

/// One provider of cryptography for everything that speaks TLS.
pub fn install_tls_provider() {
    // It fails only if there is one already, which is as good.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}

fn initialize_metrics() {
    audit::initialize_metrics();
    accounts::initialize_metrics();
}

/// Returns what readiness and `/health` check.
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
        accounts.forget_quiet();
        authentication.forget_quiet();
        by_address.forget_quiet();
        std::future::ready(Ok::<_, std::convert::Infallible>(Progress::Idle))
    });
}
