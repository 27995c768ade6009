//! The schema: bringing a database up to this binary's migrations, and telling whether it is there.
//!
//! Migrations run forward only, are checksummed, and stand under an advisory lock, so that several replicas may
//! start at once. They run on a connection of their own which is closed afterwards: sqlx 0.9.0 keeps the lock
//! when a migration fails, and a pooled connection would go on holding it.
use std::time::Duration;

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    migrate::{Migrate, Migrator},
    postgres::PgConnectOptions,
};

use crate::{
    audit::{Event, EventResult, EventType},
    database::{ConnectError, Database, Settings, answered, wait_until_reachable},
};

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// See there.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A migration failed, was changed after it was applied, or is unknown to this binary.
    #[error("the migrations could not be applied: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The service's role could not be given its rights.
    #[error("the rights of role {role} could not be set: {source}")]
    Rights {
        /// The user of `DATABASE_URL`.
        role: String,
        /// What the database said.
        source: sqlx::Error,
    },
}

/// How the database's schema stands to this binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// As the binary expects.
    Current,
    /// Migrations are missing.
    Older,
    /// It has migrations that this binary does not know: a newer release is being rolled out.
    Newer,
}

/// Returns the version of the newest migration.
pub fn newest_version(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Applies what is missing as the owner, and gives the service's role its rights. Returns how many were applied.
///
/// # Errors
/// When the database cannot be reached, a migration does not apply, or the rights cannot be given.
pub async fn migrate(settings: &Settings, migrations: &Migrator) -> Result<usize, MigrateError> {
    let owner = settings.owner();
    wait_until_reachable(owner, settings.startup_wait).await?;
    // No statement timeout: a migration takes as long as it takes, and so does waiting for another replica's.
    let options = owner.clone().application_name("migrate").options([("statement_timeout", "0")]);
    let mut connection = options.connect().await.map_err(sqlx::migrate::MigrateError::from)?;
    // sqlx takes a lock of its own, but neither for its table nor for the rights.
    sqlx::raw_sql("select pg_advisory_lock(hashtext('migrate'))")
        .execute(&mut connection)
        .await
        .map_err(sqlx::migrate::MigrateError::from)?;
    let before = applied(&mut connection).await?;
    migrations.run(&mut connection).await?;
    let after = applied(&mut connection).await?;
    begin_audit_epoch(&mut connection).await.map_err(sqlx::migrate::MigrateError::from)?;
    let role = settings.url.get_username().to_owned();
    grant_rights(&mut connection, owner, &role, settings.statement_timeout)
        .await
        .map_err(|source| MigrateError::Rights { role, source })?;
    // The work is committed; how the connection says goodbye does not matter.
    let _goodbye = connection.close().await;
    Ok(after - before)
}

async fn applied(connection: &mut PgConnection) -> Result<usize, MigrateError> {
    connection.ensure_migrations_table("_sqlx_migrations").await?;
    Ok(connection.list_applied_migrations("_sqlx_migrations").await?.len())
}

/// Notices that the database was loaded into another cluster, whose transaction ids say nothing beside the old ones.
async fn begin_audit_epoch(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let event = Event::new(EventType::Audit, "audit_epochs", "begin", EventResult::Success);
    let begun: Option<i32> = sqlx::query_scalar("select begin_audit_epoch($1)")
        .bind(event.to_json())
        .fetch_one(connection)
        .await?;
    if let Some(epoch) = begun {
        event.mirror();
        tracing::warn!(epoch, "this is another cluster than before: an epoch of the audit trail begins");
    }
    Ok(())
}

/// Makes the service's login a member of `app_runtime`, and sets on it what would otherwise be start-up options
/// of each connection, which a pooler in transaction mode refuses.
///
/// `force_generic_plan` because of statements over arrays: the planner takes their generic plan for dearer than it
/// is, and plans them anew at every execution.
async fn grant_rights(
    connection: &mut PgConnection,
    owner: &PgConnectOptions,
    role: &str,
    statement_timeout: Duration,
) -> Result<(), sqlx::Error> {
    let mut statements = vec![
        ("alter role %1$I in database %2$I set plan_cache_mode = 'force_generic_plan'", String::new()),
        (
            "alter role %1$I in database %2$I set statement_timeout = %3$L",
            statement_timeout.as_millis().to_string(),
        ),
        ("alter role %1$I in database %2$I set idle_in_transaction_session_timeout = %3$L", "10s".to_owned()),
    ];
    // What was committed before another service is called must survive whatever follows. Any other value is as durable, or
    // more, and whoever runs the server has chosen it.
    let commit: String = sqlx::query_scalar("select current_setting('synchronous_commit')")
        .fetch_one(&mut *connection)
        .await?;
    if commit == "off" {
        statements.push(("alter role %1$I in database %2$I set synchronous_commit = 'on'", String::new()));
    }
    if role != owner.get_username() {
        statements.insert(0, ("grant app_runtime to %1$I", String::new()));
    }
    for (template, value) in statements {
        let statement: String = sqlx::query_scalar("select format($1, $2, current_database(), $3)")
            .bind(template)
            .bind(role)
            .bind(value)
            .fetch_one(&mut *connection)
            .await?;
        // Made by `format` with %I and %L, which quote.
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Compares the database's schema with this binary's migrations.
///
/// # Errors
/// When the database cannot be asked.
pub async fn schema_state(database: &Database, migrations: &Migrator) -> Result<SchemaState, sqlx::Error> {
    let mut connection = database.acquire().await?;
    let statement = sqlx::query_scalar("select max(version) from _sqlx_migrations where success");
    // Not observed: probes ask every second, and each would be a trace.
    let applied: Result<Option<i64>, _> = answered(statement.fetch_one(&mut *connection)).await;
    let applied = match applied {
        // 42P01: the table of migrations is not there yet; 42501: nor is our right to read it.
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| code == "42P01" || code == "42501") =>
        {
            None
        }
        other => other?,
    };
    Ok(match applied.unwrap_or(0).cmp(&newest_version(migrations)) {
        std::cmp::Ordering::Less => SchemaState::Older,
        std::cmp::Ordering::Equal => SchemaState::Current,
        std::cmp::Ordering::Greater => SchemaState::Newer,
    })
}
