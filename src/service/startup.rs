//! The database at start: its migrations and startup checks. The module also adds the health checks of the database.
//!
//! The service does not start with an unusable database. In staging and production, the service also does not start if
//! its database role can rewrite the audit log, or if a crash can lose commits.
use std::{
    future::ready,
    time::{Duration, Instant},
};

use platform::{
    audit,
    database::{self, Database, Durability, Privileges, SchemaState},
    migrations,
    ops::health::{Builder, CheckError},
};
use serde_json::json;
use tokio::time::sleep;

use super::ServeError;
use crate::{BUILD, MIGRATIONS, config::Config};

/// Pause between two attempts at one step of the start.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Applies the migrations if `MIGRATE_ON_START` is set, connects to the database, and checks it.
pub(super) async fn open(config: &Config) -> Result<Database, ServeError> {
    let deadline = Instant::now() + config.database.startup_wait;
    if config.database.migrate_on_start {
        let migrate = async || Ok(migrations::migrate(&config.database, &MIGRATIONS).await?);
        let migrated = retry(deadline, migrate).await?;
        tracing::info!(applied = migrated.applied, "applied the migrations");
    }
    let database = Database::connect(&config.database, BUILD.name).await?;
    retry(deadline, async || check(&database, config).await).await?;
    Ok(database)
}

/// Repeats a step of the start while the database is unavailable. [`migrations::migrate`] and [`Database::connect`]
/// themselves wait for their first connection. Without these retries, a restart of the database after the first
/// connection would end the process.
///
/// # Errors
/// If the database is still unavailable at the deadline, or the step fails for another reason.
async fn retry<T>(deadline: Instant, step: impl AsyncFn() -> Result<T, ServeError>) -> Result<T, ServeError> {
    loop {
        let error = match step().await {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        if !database::has_transient_cause(&error) || Instant::now() + RETRY_INTERVAL >= deadline {
            return Err(error);
        }
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the database became unavailable during the start"
        );
        sleep(RETRY_INTERVAL).await;
    }
}

/// Checks the schema, privileges and session settings of the database, and that the audit log's latest epoch began in
/// this PostgreSQL cluster. In staging and production, a role that can rewrite the audit log is an error, and so are
/// commits that a crash can lose. A `DATABASE_URL` that allows connections without TLS is only a warning there.
async fn check(database: &Database, config: &Config) -> Result<(), ServeError> {
    let schema = database.schema_state(&MIGRATIONS).await?;
    match schema {
        SchemaState::Older => return Err(ServeError::SchemaOlder),
        SchemaState::Newer => tracing::warn!("the schema of the database is newer than this release"),
        SchemaState::Current => {}
    }
    if !audit::cluster_is_known(database).await? {
        return Err(ServeError::OtherCluster);
    }
    let privileges = database::privileges(database).await?;
    let production_like = config.process.environment.is_production_like();
    match privileges {
        Privileges::Restricted => {}
        Privileges::TooMany if production_like => return Err(ServeError::TooManyRights),
        Privileges::TooMany => tracing::warn!(
            "DATABASE_URL's role can rewrite the audit log; only development and test allow this"
        ),
    }
    match database::check_session_settings(database, &config.database).await? {
        Durability::Durable => {}
        Durability::Lossy if production_like => return Err(ServeError::LossyCommits),
        Durability::Lossy => tracing::warn!(
            "synchronous_commit is off, so a crash can lose confirmed commits; only development and test allow this"
        ),
    }
    if production_like && config.database.url.may_be_plaintext() {
        tracing::warn!("DATABASE_URL allows connections without TLS: sslmode=verify-full prevents it");
    }
    Ok(())
}

/// Adds the checks of the database to readiness, and the state of the pool to `/health`.
pub(super) fn add_checks(health: Builder, database: &Database) -> Builder {
    let (monitor, pool) = (database.monitor(&MIGRATIONS), database.clone());
    let schema = monitor.clone();
    health
        .required("database", move || {
            let availability = monitor.available();
            ready(availability.map(|()| None).map_err(|reason| CheckError(reason.as_str())))
        })
        .required("migrations", move || {
            ready(match schema.schema() {
                Some(SchemaState::Current | SchemaState::Newer) => Ok(None),
                Some(SchemaState::Older) => Err(CheckError("migrations are missing")),
                None => Err(CheckError("failed to read the migrations")),
            })
        })
        .section("pool", move || json!(pool.pool_state()))
}
