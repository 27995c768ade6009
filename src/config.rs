//! The settings of the service. Each module declares the group of its own settings.
use std::time::Duration;

use platform::{
    alerts, audit, database, http,
    settings::{Mistakes, Process, Reader},
    shutdown, telemetry,
};
use secrecy::ExposeSecret;

use crate::{accounts, slices};

/// Minimum length of `OPS_TOKEN`, in characters.
const MIN_OPS_TOKEN_LENGTH: usize = 16;

/// Minimum time between the end of the grace period and the shutdown deadline, for requests and workers to end. Two
/// seconds of this time are reserved for the export of the last spans and log lines.
const MIN_DRAIN_TIME: Duration = Duration::from_secs(3);

platform::settings! {
    /// All settings of the service, in one group for each module.
    pub struct Config {
        /// The process.
        process: Process,
        /// PostgreSQL.
        database: database::Settings,
        /// The two listeners, and their limits.
        http: http::Settings,
        /// Users and sessions.
        accounts: accounts::Settings,
        /// The slices.
        slices: slices::Settings,
        /// Logs.
        logs: telemetry::Logs,
        /// OpenTelemetry.
        opentelemetry: telemetry::OpenTelemetry,
        /// The alerts that the service sends without Prometheus.
        alerts: alerts::Settings,
        /// Shutdown.
        shutdown: shutdown::Settings,
        /// The audit log.
        audit: audit::Settings,
    }
}

impl Config {
    /// Reads every setting, and checks the rules between settings.
    ///
    /// # Errors
    /// If settings are missing or invalid. The error lists all invalid values, or all contradictions.
    pub fn load(reader: Reader) -> Result<Self, Mistakes> {
        reader.finish(|reader| {
            let config = Self::read(reader)?;
            config.check(reader);
            Some(config)
        })
    }

    fn check(&self, reader: &mut Reader) {
        let Self { process, database, http, accounts, slices, shutdown, .. } = self;
        accounts.check(reader);
        slices.check(process.environment, http, reader);
        database.check(process.environment, reader);
        // The rule uses the effective grace period, which has a default of 5 seconds outside of development and test.
        if self.shutdown_grace() + MIN_DRAIN_TIME > shutdown.deadline {
            let name =
                if shutdown.grace.is_some() { "SHUTDOWN_GRACE_SECONDS" } else { "SHUTDOWN_DEADLINE_SECONDS" };
            let rule =
                "must leave at least 3 seconds between SHUTDOWN_GRACE_SECONDS and SHUTDOWN_DEADLINE_SECONDS";
            reader.mistake(name, rule);
        }
        if http
            .ops_token
            .as_ref()
            .is_some_and(|token| token.expose_secret().chars().count() < MIN_OPS_TOKEN_LENGTH)
        {
            reader.mistake("OPS_TOKEN", format!("must have at least {MIN_OPS_TOKEN_LENGTH} characters"));
        }
    }

    /// Returns the grace period of the shutdown: the time between failing readiness and closing the API's listener.
    pub fn shutdown_grace(&self) -> Duration {
        let by_environment = if self.process.environment.is_production_like() { 5 } else { 0 };
        self.shutdown.grace.unwrap_or(Duration::from_secs(by_environment))
    }
}
