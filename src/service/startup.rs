//! Opening the database: a service that cannot work with it, or could rewrite its own trail, does not start.
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

/// The database, looked at and found to be in order.
pub(super) async fn open(config: &Config) -> Result<Database, ServeError> {
    if config.database.migrate_on_start {
        let migrated = migrations::migrate(&config.database, &MIGRATIONS).await?;
        tracing::info!(applied = migrated.applied, "migrations are applied");
    }
    let database = Database::connect(&config.database, BUILD.name).await?;
    let schema = database::schema_state(&mut *database.acquire().await?, &MIGRATIONS).await?;
    match schema {
        SchemaState::Older => return Err(ServeError::SchemaOlder),
        SchemaState::Newer => tracing::warn!("the database's schema is newer than this release"),
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
            "DATABASE_URL's role may rewrite the audit trail; outside of development and test that is refused"
        ),
    }
    match database::check_session_settings(&database, &config.database).await? {
        Durability::Durable => {}
        Durability::Lossy if production_like => return Err(ServeError::LossyCommits),
        Durability::Lossy => tracing::warn!(
            "synchronous_commit is off: confirmed commits may be lost in a crash; outside of development and test that is refused"
        ),
    }
    if production_like && config.database.url.may_be_plaintext() {
        tracing::warn!("DATABASE_URL allows connections without TLS: sslmode=verify-full prevents it");
    }
    Ok(database)
}

/// What readiness and `/health` look at of the database.
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
                None => Err(CheckError("the migrations cannot be read")),
            })
        })
        .section("pool", move || json!(pool.pool_state()))
}
