//! Settings of the database.
use std::{num::NonZeroU32, time::Duration};

use super::DatabaseUrl;
use crate::settings::{
    Environment, Reader,
    values::{flag, milliseconds, pool_size, seconds},
};

crate::groups! {
    /// PostgreSQL.
    database: Settings {
        /// URL of the database with the service's restricted role. Of several hosts (`a:5432,b:5433`), the first writable one is used.
        "DATABASE_URL" url: DatabaseUrl = database_url, required, secret;
        /// URL of the database with the schema owner's role, for `migrate`, `MIGRATE_ON_START`, `audit export` and `after-restore`. Unset: `DATABASE_URL`.
        "DATABASE_MIGRATION_URL" migration_url: DatabaseUrl = database_url, optional, secret;
        /// Maximum number of connections in the pool.
        "DATABASE_MAX_CONNECTIONS" max_connections: NonZeroU32 = pool_size, default("16");
        /// Timeout of a request's wait for a pool connection, in milliseconds.
        "DATABASE_ACQUIRE_TIMEOUT_MS" acquire_timeout: Duration = milliseconds, default("2000");
        /// Timeout of a statement, in milliseconds; `migrate` sets it on the service's role.
        "DATABASE_STATEMENT_TIMEOUT_MS" statement_timeout: Duration = milliseconds, default("5000");
        /// Time from the start for which `serve` and the commands wait for the database, in seconds.
        "DATABASE_STARTUP_WAIT_SECONDS" startup_wait: Duration = seconds, default("30");
        /// Apply pending migrations in `serve` before it listens.
        "MIGRATE_ON_START" migrate_on_start: bool = flag, default("false");
    }
}

impl Settings {
    /// Returns the URL of the schema owner: `DATABASE_MIGRATION_URL`, or `DATABASE_URL` if `DATABASE_MIGRATION_URL` is
    /// not set.
    pub fn owner(&self) -> &DatabaseUrl {
        self.migration_url.as_ref().unwrap_or(&self.url)
    }

    /// Rejects a URL that disables TLS for a remote host in production, because the connection carries passwords and
    /// customer data.
    pub fn check(&self, environment: Environment, reader: &mut Reader) {
        let urls =
            [("DATABASE_URL", Some(&self.url)), ("DATABASE_MIGRATION_URL", self.migration_url.as_ref())];
        for (name, url) in urls {
            if environment == Environment::Production && url.is_some_and(DatabaseUrl::is_plaintext) {
                reader.mistake(
                    name,
                    "must not turn TLS off (sslmode) for a host other than loopback in production",
                );
            }
        }
    }
}

fn database_url(text: &str) -> Result<DatabaseUrl, String> {
    text.parse()
}
