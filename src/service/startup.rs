//! Startup checks of the database. The service does not start with an unusable database, or if it could rewrite the
//! audit log.
use std::future::ready;

use platform::{
    audit,
    database::{self, Database, Durability, Privileges, SchemaState},
    migrations,
    ops::health::{Builder, CheckError},
};
use serde_json::json;

use super::ServeError;
use crate::{BUILD, MIGRATIONS, config::Config};

/// Connects to the database, and checks its schema, cluster, privileges and session settings. Outside of development
/// and test, excess privileges and lossy commits are errors.
pub(super) async fn open(config: &Config) -> Result<Database, ServeError> {
    if config.database.migrate_on_start {
        let migrated = migrations::migrate(&config.database, &MIGRATIONS).await?;
        tracing::info!(applied = migrated.applied, "applied the migrations");
    }
    let database = Database::connect(&config.database, BUILD.name).await?;
    let schema = database.schema_state(&MIGRATIONS).await?;
    match schema {
        SchemaState::Older => return Err(ServeError::SchemaOlder),
        SchemaState::Newer => tracing::warn!("the schema of the database is newer than this release"),
        SchemaState::Current => {}
    }
    if !audit::cluster_is_known(&database).await? {
        return Err(ServeError::OtherCluster);
    }
    let privileges = database::privileges(&database).await?;
    let production_like = config.process.environment.is_production_like();
    match privileges {
        Privileges::Restricted => {}
        Privileges::TooMany if production_like => return Err(ServeError::TooManyRights),
        Privileges::TooMany => tracing::warn!(
            "DATABASE_URL's role can rewrite the audit log; only development and test allow this"
        ),
    }
    match database::check_session_settings(&database, &config.database).await? {
        Durability::Durable => {}
        Durability::Lossy if production_like => return Err(ServeError::LossyCommits),
        Durability::Lossy => tracing::warn!(
            "synchronous_commit is off, so a crash can lose confirmed commits; only development and test allow this"
        ),
    }
    if production_like && config.database.url.may_be_plaintext() {
        tracing::warn!("DATABASE_URL allows connections without TLS: sslmode=verify-full prevents it");
    }
    Ok(database)
}

/// Adds the database's checks to readiness and `/health`.
pub(super) fn add_checks(health: Builder, database: &Database) -> Builder {
    let (monitor, pool) = (database.monitor(&MIGRATIONS), database.clone());
    let schema = monitor.clone();
    health
        .required("database", move || {
            let available = monitor.available();
            ready(available.map(|()| None).map_err(|reason| CheckError(reason.as_str())))
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
