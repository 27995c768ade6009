//! The work of `migrate`: applying this binary's migrations, starting an audit epoch after a switch to another
//! PostgreSQL cluster, and setting the privileges and settings of the service's role.
//!
//! Migrations only run forward, are checksummed, and run under an advisory lock, so that several replicas may start at
//! the same time. They run on a separate connection, which is closed afterwards. If a migration fails, sqlx 0.9.0 does
//! not release the lock, so a pooled connection would continue to hold it.
use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    migrate::{AppliedMigration, Migrate, Migrator},
};
use tokio::time::sleep;

use crate::{
    audit::{Event, EventResult, EventType},
    database::{
        self, ConnectError, Settings, newest_version, sqlstate, unmet_requirements, wait_until_reachable,
    },
};

const TABLE: &str = "_sqlx_migrations";

/// The statement that limits the wait for a lock. Most changes of a table need an exclusive lock. While a migration
/// waits for a long-running reader such as a backup, every later statement on the table queues behind the migration.
const LIMIT_LOCK_WAITS: &str = "set lock_timeout = '1s'";

/// Pause between two attempts to apply the migrations. In the pause, the statements that have queued are executed.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Settings of the service's role. They are not start-up options of the connections, because a pooler in transaction
/// mode rejects such options.
///
/// - `force_generic_plan` is for statements with array parameters. Without this setting, the planner overestimates the
///   cost of the generic plan, and plans such a statement again at every execution.
/// - The TCP settings end the sessions of a replica whose host is lost, within half a minute. They also keep firewalls
///   from dropping idle connections.
/// - `client_connection_check_interval` makes the server cancel a statement whose client closed the connection.
const ROLE_SETTINGS: [(&str, &str); 7] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("tcp_keepalives_idle", "15s"),
    ("tcp_keepalives_interval", "5s"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "30s"),
    ("client_connection_check_interval", "1s"),
];

/// The error of a failed migration.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database is unreachable, or rejected the connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A migration or another statement failed, or an applied migration was changed or is unknown to this binary.
    #[error("failed to apply the migrations: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The database does not fulfil a requirement. Nothing was changed.
    #[error("nothing was changed, because {}", .0.join("; "))]
    Requirements(Vec<String>),
    /// The privileges or settings of the service's role could not be set.
    #[error("failed to set the rights of role {role}: {source}")]
    Rights {
        /// The user of `DATABASE_URL`.
        role: String,
        /// The database's error.
        source: sqlx::Error,
    },
}

/// The outcome of [`migrate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationReport {
    /// The number of migrations that were applied.
    pub applied: usize,
    /// The version of the newest migration in the database.
    pub version: i64,
}

/// Applies missing migrations as the schema owner, starts a new audit epoch after a switch to another PostgreSQL
/// cluster, and sets the privileges and settings of the service's role.
///
/// If the schema belongs to a newer release, no migration is applied, so that a release can be rolled back.
///
/// # Errors
/// The database is unreachable or does not fulfil a requirement, a migration or another statement fails, or the
/// privileges and settings cannot be set.
pub async fn migrate(settings: &Settings, migrations: &Migrator) -> Result<MigrationReport, MigrateError> {
    let owner = settings.owner();
    wait_until_reachable(owner, settings.startup_wait).await?;
    // The statement timeout is disabled, because a migration, or the wait for another replica's migration, may take
    // hours.
    let url = owner.clone().application_name("migrate").without_statement_timeout();
    let mut connection = url.connect().await.map_err(sqlx::migrate::MigrateError::from)?;
    let role = settings.url.username().to_owned();
    let unmet = unmet_requirements(&mut connection, &role).await;
    let unmet = unmet.map_err(sqlx::migrate::MigrateError::from)?;
    if !unmet.is_empty() {
        return Err(MigrateError::Requirements(unmet));
    }
    // sqlx's own lock covers neither the creation of the table `_sqlx_migrations` nor the grants below.
    execute(&mut connection, "select pg_advisory_lock(hashtext('migrate'))").await?;
    let before = applied(&mut connection).await?;
    execute(&mut connection, LIMIT_LOCK_WAITS).await?;
    while let Err(error) = apply(&mut connection, migrations, &before).await {
        if !database::is_lock_timeout(&error) {
            return Err(error);
        }
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "another transaction holds a lock that a migration needs; a retry follows"
        );
        sleep(LOCK_RETRY_INTERVAL).await;
    }
    execute(&mut connection, "reset lock_timeout").await?;
    let after = applied(&mut connection).await?;
    grant_rights(&mut connection, owner.username(), &role, settings.statement_timeout)
        .await
        .map_err(|source| MigrateError::Rights { role, source })?;
    // The work is committed, so an error while closing the connection does not matter.
    let _closed = connection.close().await;
    let version = after.iter().map(|migration| migration.version).max().unwrap_or(0);
    Ok(MigrationReport { applied: after.len() - before.len(), version })
}

/// Applies the missing migrations, unless the schema is newer than this release. Starts a new audit epoch if the
/// database was loaded into another cluster. Each migration is a transaction of its own, so the call can be repeated
/// after an error.
async fn apply(
    connection: &mut PgConnection,
    migrations: &Migrator,
    applied: &[AppliedMigration],
) -> Result<(), MigrateError> {
    if is_newer(connection, migrations, applied).await? {
        tracing::warn!("skipped the migrations: the schema is newer than this release");
    } else {
        migrations.run(&mut *connection).await?;
    }
    Ok(begin_audit_epoch(connection).await.map_err(sqlx::migrate::MigrateError::from)?)
}

async fn execute(connection: &mut PgConnection, statement: &'static str) -> Result<(), MigrateError> {
    let executed = sqlx::raw_sql(statement).execute(connection).await;
    executed.map(drop).map_err(|error| sqlx::migrate::MigrateError::from(error).into())
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<AppliedMigration>, MigrateError> {
    connection.ensure_migrations_table(TABLE).await?;
    Ok(connection.list_applied_migrations(TABLE).await?)
}

/// Returns whether the schema has every migration of this binary, unchanged, and newer ones, which sqlx would reject.
///
/// # Errors
/// A statement failed, a migration failed halfway, or a migration of this binary was changed.
async fn is_newer(
    connection: &mut PgConnection,
    migrations: &Migrator,
    applied: &[AppliedMigration],
) -> Result<bool, sqlx::migrate::MigrateError> {
    let is_known = |version| migrations.version_exists(version);
    let unknown = || applied.iter().map(|migration| migration.version).filter(|version| !is_known(*version));
    if unknown().next().is_none() || unknown().any(|version| version < newest_version(migrations)) {
        return Ok(false);
    }
    if let Some(version) = connection.dirty_version(TABLE).await? {
        return Err(sqlx::migrate::MigrateError::Dirty(version));
    }
    for migration in migrations.iter() {
        match applied.iter().find(|applied| applied.version == migration.version) {
            Some(applied) if applied.checksum == migration.checksum => {}
            Some(_) => return Err(sqlx::migrate::MigrateError::VersionMismatch(migration.version)),
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Starts a new audit epoch if the database was loaded into another cluster. Audit events are ordered by epoch, and
/// then by transaction id, because the transaction ids of two clusters cannot be compared.
async fn begin_audit_epoch(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let event = Event::new(EventType::Audit, "audit_epochs", "begin", EventResult::Success);
    let started_epoch: Option<i32> = sqlx::query_scalar("select begin_audit_epoch($1)")
        .bind(event.to_json())
        .fetch_one(connection)
        .await?;
    if let Some(epoch) = started_epoch {
        event.log_and_count();
        tracing::warn!(
            epoch,
            "started an epoch of the audit log, because the PostgreSQL cluster is a different one"
        );
    }
    Ok(())
}

/// Grants the privileges of the role `app_runtime` to the service's login role, unless the login role is the owner.
/// Sets [`ROLE_SETTINGS`], the statement timeout and a durable `synchronous_commit` on the login role.
async fn grant_rights(
    connection: &mut PgConnection,
    owner: &str,
    role: &str,
    statement_timeout: Duration,
) -> Result<(), sqlx::Error> {
    if role != owner {
        execute_formatted(connection, "grant app_runtime to %1$I", [role, "", ""]).await?;
    }
    let statement_timeout = statement_timeout.as_millis().to_string();
    let mut settings = vec![("statement_timeout", &*statement_timeout)];
    settings.extend(ROLE_SETTINGS);
    // A commit that precedes the call of another service must survive a crash of the server. Every value except `off`
    // guarantees this, and is kept.
    if synchronous_commit(connection, role).await? == "off" {
        settings.push(("synchronous_commit", "on"));
    }
    for (name, value) in settings {
        let template = "alter role %1$I in database %4$I set %2$I = %3$L";
        match execute_formatted(connection, template, [role, name, value]).await {
            // 22023: the server's operating system does not support the setting.
            Err(error) if sqlstate(&error).is_some_and(|code| code == "22023") => {
                tracing::warn!(
                    setting = name,
                    error = &error as &dyn std::error::Error,
                    "failed to apply a role setting"
                );
            }
            other => other?,
        }
    }
    Ok(())
}

/// Executes a statement that PostgreSQL's function `format` builds, which quotes names (`%I`) and values (`%L`). The
/// last argument of `format` is the database's name.
async fn execute_formatted(
    connection: &mut PgConnection,
    template: &str,
    [first, second, third]: [&str; 3],
) -> Result<(), sqlx::Error> {
    let statement: String = sqlx::query_scalar("select format($1, $2, $3, $4, current_database())")
        .bind(template)
        .bind(first)
        .bind(second)
        .bind(third)
        .fetch_one(&mut *connection)
        .await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
    Ok(())
}

/// Returns the value of `synchronous_commit` in a new session of `role`. A value that is set for the role or for the
/// database takes precedence over the server's value. The server's value is read from this session. If this session's
/// own role overrides the server's value, the server's value is unknown. Then `off` is returned, so that the caller
/// sets the parameter.
async fn synchronous_commit(connection: &mut PgConnection, role: &str) -> Result<String, sqlx::Error> {
    let statement = sqlx::query_scalar(
        "select coalesce(
           (
             select split_part(setting, '=', 2)
             from pg_db_role_setting, unnest(setconfig) as setting
             where setting like 'synchronous_commit=%'
               and setdatabase in (0, (select oid from pg_database where datname = current_database()))
               and setrole in (0, (select oid from pg_roles where rolname = $1))
             order by setrole = 0, setdatabase = 0
             limit 1
           ),
           (
             select case when source in ('user', 'database user') then 'off' else setting end
             from pg_settings
             where name = 'synchronous_commit'
           )
         )",
    );
    statement.bind(role).fetch_one(connection).await
}
