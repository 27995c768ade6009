//! The comparison of a database's schema with the migrations of the service.
use std::cmp::Ordering;

use sqlx::{PgConnection, migrate::Migrator};

use super::{Database, connection::await_response};

/// The state of a database's schema: the version of its newest migration, compared with that of the service's newest
/// migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// The schema has the service's newest migration, and no newer one.
    Current,
    /// Migrations are missing.
    Older,
    /// The schema has migrations that are unknown to this release, for example while a newer release is being rolled
    /// out.
    Newer,
}

/// Returns the version of the newest migration, or 0 if there are no migrations.
pub fn newest_version(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or(0)
}

impl Database {
    /// Compares the schema of the database with `migrations`.
    ///
    /// # Errors
    /// The statement failed, or no connection was available. A missing or unreadable table of migrations is no error,
    /// and returns [`SchemaState::Older`].
    pub async fn schema_state(&self, migrations: &Migrator) -> Result<SchemaState, sqlx::Error> {
        let mut connection = self.acquire().await?;
        let state = schema_state(&mut connection, migrations).await?;
        connection.release();
        Ok(state)
    }
}

/// Compares the schema of the database with `migrations`, on the caller's connection. The monitor passes its own
/// connection.
///
/// # Errors
/// The statement failed. A missing or unreadable table of migrations is no error, and returns [`SchemaState::Older`].
pub(super) async fn schema_state(
    connection: &mut PgConnection,
    migrations: &Migrator,
) -> Result<SchemaState, sqlx::Error> {
    let statement = sqlx::query_scalar("select max(version) from _sqlx_migrations where success");
    // Not instrumented, because the statement runs every second, and each run would create a trace.
    let applied: Result<Option<i64>, _> = await_response(statement.fetch_one(connection)).await;
    let applied = match applied {
        // 42P01: the table of migrations does not exist yet; 42501: the role is not allowed to read it yet.
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| code == "42P01" || code == "42501") =>
        {
            None
        }
        other => other?,
    };
    Ok(match applied.unwrap_or(0).cmp(&newest_version(migrations)) {
        Ordering::Less => SchemaState::Older,
        Ordering::Equal => SchemaState::Current,
        Ordering::Greater => SchemaState::Newer,
    })
}
