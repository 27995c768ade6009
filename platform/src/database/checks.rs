//! Checks of the service's database role and of the role's settings, at the start of the service.
use super::{Database, Settings};

/// The privileges of the service's role on the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileges {
    /// The role can only append to the audit log: events, in the columns granted to it, and seals.
    Restricted,
    /// The role can change, delete or forge rows of the audit log, as a superuser, as the owner, or by granted
    /// privileges.
    TooMany,
}

/// Returns the role's privileges on the tables of the audit log and on each of their partitions. The role may insert
/// events in single columns, which `has_table_privilege` does not report. With `insert` on a whole table, the role could
/// also set the columns that the database fills in.
///
/// # Errors
/// The statement failed, or no connection was available.
pub async fn privileges(database: &Database) -> Result<Privileges, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select
          rolsuper
          or exists (
            select
            from pg_class
            where
              relnamespace = 'public'::regnamespace
              and relkind in ('r', 'p')
              and starts_with(relname, 'audit_')
              and (
                pg_has_role(current_user, relowner, 'member')
                or has_table_privilege(oid, 'update, delete, truncate')
                or has_any_column_privilege(oid, 'update')
                or (has_table_privilege(oid, 'insert') and relname <> 'audit_seals')
              )
          ) as "too_many!"
        from pg_roles
        where rolname = current_user
        "#
    );
    let too_many =
        database.run("pg_roles.select", async |connection| statement.fetch_one(connection).await).await?;
    Ok(if too_many { Privileges::TooMany } else { Privileges::Restricted })
}

/// The durability of the service's commits after a crash of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A commit is on disk before the server confirms it.
    Durable,
    /// `synchronous_commit` is off, so a crash can lose the last confirmed commits.
    Lossy,
}

/// Logs a warning if `plan_cache_mode` or `statement_timeout` differs from the value that `migrate` sets on the
/// service's role. The service then works, but it may be slower, or a long statement is not cancelled at the configured
/// timeout. Returns whether commits are durable.
///
/// # Errors
/// The statement failed, or no connection was available.
pub async fn check_session_settings(
    database: &Database,
    settings: &Settings,
) -> Result<Durability, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select
          current_setting('plan_cache_mode') as "plan_cache_mode!",
          extract(epoch from current_setting('statement_timeout')::interval)::float8 as "statement_timeout!",
          current_setting('synchronous_commit') <> 'off' as "commits_are_durable!"
        "#
    );
    let session =
        database.run("pg_settings.select", async |connection| statement.fetch_one(connection).await).await?;
    let configured = settings.statement_timeout.as_secs_f64();
    if session.plan_cache_mode != "force_generic_plan"
        || (session.statement_timeout - configured).abs() > 0.001
    {
        tracing::warn!(
            plan_cache_mode = session.plan_cache_mode,
            statement_timeout_seconds = session.statement_timeout,
            wanted_statement_timeout_seconds = configured,
            "the settings of this role differ from those that `migrate` sets; run `migrate` again"
        );
    }
    Ok(if session.commits_are_durable { Durability::Durable } else { Durability::Lossy })
}
