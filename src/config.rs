//! Every setting of the service, once: its name, meaning, unit, default, and whether it is a secret.
//!
//! The tables in `platform` and, for each slice that has any, in a file of its own are the only places where a
//! setting is declared. The struct that the code reads, the `--flag` of the command line, the command `config` and
//! the checks of `.env*.example` and `docs/settings*.md` come from them. Settings are read once, at start, and **every**
//! mistake is reported at once: somebody who
//! repairs a deployment at night should not find the second mistake only after the first.
//!
//! [`Config`] has no `Debug`: what cannot be printed cannot leak.
mod payments;
mod platform;
mod reader;
mod values;

use std::time::Duration;

use secrecy::ExposeSecret;

use self::reader::settings;
pub use self::{
    payments::Payments,
    platform::{Accounts, Alerts, Audit, Database, Http, Logs, Process, Shutdown, Traces},
    reader::{Mistakes, Reader, Setting},
    values::{Environment, LogFormat},
};

settings! {
    /// Where and as what the process runs.
    process: Process;
    /// PostgreSQL.
    database: Database;
    /// The two listeners, and the limits of what they accept.
    http: Http;
    /// Users and sessions.
    accounts: Accounts;
    /// The payment gateway, and how its unknown outcomes are recovered.
    payments: Payments;
    /// Logs.
    logs: Logs;
    /// Traces.
    traces: Traces;
    /// The service's own alerts.
    alerts: Alerts;
    /// Shutdown.
    shutdown: Shutdown;
    /// The audit trail.
    audit: Audit;
}

impl Config {
    /// Reads every setting, and the rules between them.
    ///
    /// # Errors
    /// All mistakes, together.
    pub fn read(reader: Reader) -> Result<Self, Mistakes> {
        reader.finish(|reader| {
            let config = Self::read_groups(reader)?;
            config.check(reader);
            Some(config)
        })
    }

    fn check(&self, reader: &mut Reader) {
        let Self { http, payments, shutdown, .. } = self;
        payments.check(http, reader);
        if shutdown.grace.is_some_and(|grace| grace >= shutdown.deadline) {
            reader.mistake("SHUTDOWN_GRACE_SECONDS", "must be below SHUTDOWN_DEADLINE_SECONDS");
        }
        if http.ops_token.as_ref().is_some_and(|token| token.expose_secret().len() < 16) {
            reader.mistake("OPS_TOKEN", "must have at least 16 characters");
        }
    }

    /// How long readiness fails before the listeners close.
    pub fn shutdown_grace(&self) -> Duration {
        let production_like =
            matches!(self.process.environment, Environment::Staging | Environment::Production);
        self.shutdown.grace.unwrap_or(Duration::from_secs(if production_like { 5 } else { 0 }))
    }
}
