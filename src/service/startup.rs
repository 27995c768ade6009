//! Opening the database: a service that cannot work with it, or could rewrite its own trail, does not start.
use platform::{
    audit,
    database::{self, Database, Privileges},
    migrations::{self, SchemaState},
    ops::health::{Builder, CheckError},
};
use serde_json::json;

use super::ServeError;
use crate::{BUILD, MIGRATIONS, config::Config};

/// The database, looked at and found to be in order.
pub(super) async fn open(config: &Config) -> Result<Database, ServeError> {
    if config.database.migrate_on_start {
        let applied = migrations::migrate(&config.database, &MIGRATIONS).await?;
        tracing::info!(applied, "migrations are applied");
    }
    let database = Database::connect(&config.database, BUILD.name).await?;
    match migrations::schema_state(&database, &MIGRATIONS).await? {
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
    database::warn_of_session_settings(&database, &config.database).await?;
    Ok(database)
}

/// What readiness and `/health` look at of the database.
pub(super) fn add_checks(health: Builder, database: &Database) -> Builder {
    let (ping, schema, pool) = (database.clone(), database.clone(), database.clone());
    health
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
                match migrations::schema_state(&database, &MIGRATIONS).await {
                    Ok(SchemaState::Current | SchemaState::Newer) => Ok(None),
                    Ok(SchemaState::Older) => Err(CheckError("migrations are missing")),
                    Err(_) => Err(CheckError("the migrations cannot be read")),
                }
            }
        })
        .section("pool", move || json!(pool.pool_state()))
}
