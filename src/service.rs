//! The wiring: the only place where everything meets.
//!
//! Whatever lives as long as the process is made in [`serve`], handed down, and ended there in reverse order. A
//! reader can follow a process from birth to death in that one function.
use std::{net::IpAddr, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use crate::{
    accounts::{self, Accounts, Authentication},
    api::{self, Api},
    config::{Config, Environment},
    orders,
    payments::{self, Gateway, Payments},
    platform::{
        alerts::{Alert, Alerts, Severity},
        audit::{self, Event, EventResult, EventType, Refusals, Sealing, WriteFailures},
        database::{self, Database, Privileges, SchemaState},
        http::{
            idempotency,
            limits::RateLimiter,
            server::{Limits, Listener},
        },
        ops::{
            self,
            health::{Build, CheckError, Health},
            log_level::{self, Happened, LogLevel},
        },
        resilience::breaker::{self, Breaker},
        telemetry::{Telemetry, metrics},
        workers::{Progress, Tracked, Workers},
    },
};

/// How often expired sessions, answers and the like are swept.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// How often the partitions of the coming months are looked after.
const PARTITION_INTERVAL: Duration = Duration::from_hours(6);

/// How often the refusals that were only counted are written.
const REFUSAL_INTERVAL: Duration = Duration::from_mins(1);

/// How often one looks for audit events that could not be written.
const FAILURE_INTERVAL: Duration = Duration::from_secs(2);

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
    Gateway(#[from] payments::GatewayError),
    /// The webhook secret cannot be used.
    #[error("GATEWAY_WEBHOOK_SECRET cannot be used: {0}")]
    WebhookSecret(#[from] standardwebhooks::WebhookError),
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
    let database = open_database(config).await?;
    let alerts = Alerts::start(&config.alerts, env!("CARGO_PKG_NAME"))?;
    let tracked = Tracked::new();
    // Half of the places are kept from a slow gateway: orders are placed and read whatever it does.
    let most_waiting = (config.http.max_requests_in_flight / 2).max(1);
    let gateway = Gateway::new(&config.payments, gateway_breaker(&alerts), most_waiting)?;
    let payments =
        Payments::new(database.clone(), gateway.clone(), alerts.clone(), tracked.clone(), &config.payments)?;
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
    start_workers(&workers, config, &database, &payments, &accounts, &authentication, &by_address);
    start_audit_workers(&workers, config, &database, &alerts, &refusals);
    let health = health(&database, &gateway, &workers);
    let log_level = LogLevel::new(
        telemetry.log_filter(),
        ops_address,
        config.http.ops_token.clone(),
        audit_log_level(&database, &refusals, &tracked),
    );
    let ops = ops.serve(ops::router(health.clone(), log_level));
    let routes = Api { database: database.clone(), accounts, payments, authentication, by_address };
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
        let money = tracked.drain(enough).await;
        note_cut(&mut cut, money, "payments under way, which recovery goes on with, or audit events");
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

async fn open_database(config: &Config) -> Result<Database, ServeError> {
    if config.database.migrate_on_start {
        let applied = database::migrate(&config.database).await?;
        tracing::info!(applied, "migrations are applied");
    }
    let database = Database::connect(&config.database, env!("CARGO_PKG_NAME")).await?;
    match database::schema_state(&database).await? {
        SchemaState::Older => return Err(ServeError::SchemaOlder),
        SchemaState::Newer => tracing::warn!("the database's schema is newer than this release"),
        SchemaState::Current => {}
    }
    if !audit::cluster_is_known(&database).await? {
        return Err(ServeError::OtherCluster);
    }
    let privileges = database::privileges(&database).await?;
    let production_like =
        matches!(config.process.environment, Environment::Staging | Environment::Production);
    match privileges {
        Privileges::Restricted => {}
        Privileges::TooMany if production_like => return Err(ServeError::TooManyRights),
        Privileges::TooMany => tracing::warn!(
            "DATABASE_URL's role may rewrite the audit trail; outside of development and test that is refused"
        ),
    }
    database::warn_of_session_settings(&database, &config.database).await?;
    Ok(database)
}

/// Opens when half of at least ten calls of half a minute failed; tries again after a few seconds.
fn gateway_breaker(alerts: &Alerts) -> Breaker {
    let settings = breaker::Settings {
        window: Duration::from_secs(30),
        minimum_calls: 10,
        failure_ratio: 0.5,
        open_for: Duration::from_secs(5),
        probes: 3,
    };
    let alerts = alerts.clone();
    Breaker::new(payments::GATEWAY_SERVICE, settings).on_transition(move |state| {
        let (severity, what) = match state {
            breaker::State::Open => (Severity::Warning, "opened"),
            breaker::State::Closed => (Severity::Info, "closed"),
            breaker::State::HalfOpen => return,
        };
        alerts.raise(Alert {
            severity,
            title: format!("Circuit breaker {what}: {}", payments::GATEWAY_SERVICE),
            description: format!(
                "Circuit breaker has {what}: calls of the payment gateway fail, or do so no longer"
            ),
            metadata: [("service", payments::GATEWAY_SERVICE), ("action", "investigate")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        });
    })
}

/// Audits each change of what is logged, and each that was refused. The change does not wait for it: whoever looks
/// for the reason why the database is away must be able to.
fn audit_log_level(
    database: &Database,
    refusals: &Refusals,
    tracked: &Tracked,
) -> impl Fn(log_level::Happened) + use<> {
    let (database, refusals, tracked) = (database.clone(), refusals.clone(), tracked.clone());
    move |happened| match happened {
        Happened::Changed(changed) => {
            let event =
                Event::new(EventType::Configuration, "log_level", changed.action, EventResult::Success)
                    .with("before", changed.before)
                    .with("after", changed.after)
                    .with("ttl_seconds", changed.ttl_seconds);
            let database = database.clone();
            drop(tracked.run(async move { audit::record_once_possible(&database, event).await }));
        }
        Happened::Refused { reason } => {
            let event = Event::new(EventType::Authorization, "log_level", "change", EventResult::Denied)
                .with("reason", reason);
            let refusals = refusals.clone();
            drop(tracked.run(async move {
                if let Err(error) = refusals.record(event).await {
                    tracing::error!(error = &error as &dyn std::error::Error, "refusal could not be audited");
                }
            }));
        }
    }
}

fn initialise_metrics() {
    audit::initialise_metrics();
    orders::initialise_metrics();
    accounts::initialise_metrics();
    payments::initialise_metrics();
}

/// What readiness and `/health` look at. Another check is another line here.
fn health(database: &Database, gateway: &Gateway, workers: &Workers) -> Health {
    let (ping, schema, pool) = (database.clone(), database.clone(), database.clone());
    let (is_well, breaker, workers) = (gateway.clone(), gateway.breaker().clone(), workers.clone());
    Health::builder(Build::CURRENT)
        .required("database", move || {
            let database = ping.clone();
            async move {
                let pinged = database.ping().await;
                pinged.map(|()| None).map_err(|_| CheckError("the database does not answer"))
            }
        })
        .required("migrations", move || {
            let database = schema.clone();
            async move {
                match database::schema_state(&database).await {
                    Ok(SchemaState::Current | SchemaState::Newer) => Ok(None),
                    Ok(SchemaState::Older) => Err(CheckError("migrations are missing")),
                    Err(_) => Err(CheckError("the migrations cannot be read")),
                }
            }
        })
        .optional("external_api", move || {
            let gateway = is_well.clone();
            async move {
                let answered = gateway.is_well().await;
                answered.map(|()| None).map_err(|_| CheckError("the payment gateway does not answer"))
            }
        })
        .section("pool", move || json!(pool.pool_state()))
        .section("breakers", move || json!({ breaker.name(): breaker.state() }))
        .section("workers", move || json!(workers.status()))
        .build()
}

fn start_workers(
    workers: &Workers,
    config: &Config,
    database: &Database,
    payments: &Payments,
    accounts: &Accounts,
    authentication: &Authentication,
    by_address: &Arc<RateLimiter<IpAddr>>,
) {
    let payments = payments.clone();
    workers.spawn("payment_recovery", config.payments.recovery_interval, move || {
        payments::recover(payments.clone())
    });
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

fn start_audit_workers(
    workers: &Workers,
    config: &Config,
    database: &Database,
    alerts: &Alerts,
    refusals: &Refusals,
) {
    let interval = config.audit.seal_interval;
    let sealing = Sealing::new(database.clone(), alerts.clone(), interval);
    let measured = sealing.clone();
    workers.spawn("audit_sealing", interval, move || sealing.clone().run());
    workers.spawn("audit_seal_lag", interval, move || measured.clone().measure_lag());
    let refusals = refusals.clone();
    workers.spawn("audit_refusals", REFUSAL_INTERVAL, move || {
        let refusals = refusals.clone();
        async move { refusals.tell().await.map(|()| Progress::Idle) }
    });
    let failures = WriteFailures::new(alerts.clone());
    workers.spawn("audit_write_failures", FAILURE_INTERVAL, move || {
        failures.tell();
        std::future::ready(Ok::<_, std::convert::Infallible>(Progress::Idle))
    });
    let (database, alerts) = (database.clone(), alerts.clone());
    workers.spawn("audit_partitions", PARTITION_INTERVAL, move || {
        let (database, alerts) = (database.clone(), alerts.clone());
        async move { audit::make_partitions(&database, &alerts).await.map(|()| Progress::Idle) }
    });
}

/// SIGTERM and SIGINT. Listened to from the start: a signal that comes during start-up is not lost.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, std::io::Error> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
