//! The wiring: the only place where everything meets.
//!
//! Whatever lives as long as the process is made in [`serve`], handed down, and ended there in reverse order. A
//! reader can follow a process from birth to death in that one function. What it takes more than a line to make
//! stands beside it:
//!
//! - `opening`: the database, looked at before anything is served
//! - `auditing`: the workers of the audit trail, and the events of the process itself
//! - `signals`: what ends the process
mod auditing;
mod opening;
mod signals;

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use self::signals::Signals;

use crate::{
    accounts::{self, Accounts, Authentication},
    api::{self, Api},
    config::Config,
    {{resource_plural}},
    platform::{
        alerts::Alerts,
        audit::{self, Refusals},
        database::{self, Database},
        http::{
            idempotency,
            limits::RateLimiter,
            server::{Limits, Listener},
        },
        ops::{
            self,
            health::{Build, Health},
            log_level::LogLevel,
        },
        telemetry::{Telemetry, metrics},
        workers::{Progress, Tracked, Workers},
    },
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
    Migration(#[from] database::MigrateError),
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
    /// The client that sends alerts cannot be set up.
    #[error("the client that sends alerts could not be set up: {0}")]
    Alerts(#[from] reqwest::Error),
    /// See there.
    #[error(transparent)]
    Listener(#[from] crate::platform::http::server::ServerError),
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
    let database = opening::open(config).await?;
    let alerts = Alerts::start(&config.alerts, env!("CARGO_PKG_NAME"))?;
    let tracked = Tracked::new();
    let refusals = Refusals::new(database.clone());
    let accounts = Accounts::new(database.clone(), refusals.clone(), &config.accounts);
    let authentication =
        Authentication::new(database.clone(), refusals.clone(), config.http.rate_limit_caller);
    let by_address = Arc::new(RateLimiter::<IpAddr>::per_second(config.http.rate_limit_address));
    initialise_metrics();

    let limits =
        Limits { max_connections: config.http.max_connections, header_timeout: config.http.header_timeout };
    let ops = Listener::bind("OPS_ADDRESS", config.http.ops_address, limits).await?;
    let api = Listener::bind("API_ADDRESS", config.http.api_address, limits).await?;
    let (ops_address, api_address) = (ops.local_address(), api.local_address());

    let workers = Workers::new();
    start_workers(&workers, &database, &accounts, &authentication, &by_address);
    auditing::start_workers(&workers, config, &database, &alerts, &refusals);
    let health = health(&database, &workers);
    let log_level = LogLevel::new(
        telemetry.log_filter(),
        ops_address,
        config.http.ops_token.clone(),
        auditing::log_level(&database, &refusals, &tracked),
    );
    let ops = ops.serve(ops::router(health.clone(), log_level));
    let routes = Api { database: database.clone(), accounts, authentication, by_address };
    let api = api.serve(api::router(routes, &config.http));
    tracing::info!(%api_address, %ops_address, environment = config.process.environment.as_str(), commit = metrics::COMMIT, "the service is up");

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
        let unfinished = tracked.drain(enough).await;
        note_cut(&mut cut, unfinished, "pieces of work that outlive their request");
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

fn initialise_metrics() {
    audit::initialise_metrics();
    accounts::initialise_metrics();
    {{resource_plural}}::initialise_metrics();
}

/// What readiness and `/health` look at. Another check is another line here.
fn health(database: &Database, workers: &Workers) -> Health {
    let workers = workers.clone();
    opening::checked(Health::builder(Build::CURRENT), database)
        .section("workers", move || json!(workers.status()))
        .build()
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
