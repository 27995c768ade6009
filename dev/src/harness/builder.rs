//! Builder that starts a service for a test.
use std::{path::PathBuf, sync::Arc};

use super::{Collector, Database, ExchangeCheck, Service, TcpProxy, service::Dependencies};
use crate::example::harness::ExternalServices;

/// Default settings of every service in tests.
const SETTINGS: [(&str, &str); 10] = [
    ("API_ADDRESS", "127.0.0.1:0"),
    ("OPS_ADDRESS", "127.0.0.1:0"),
    ("LOG_FORMAT", "json"),
    ("DATABASE_MAX_CONNECTIONS", "4"),
    // A connection can take several seconds on a busy machine.
    ("DATABASE_ACQUIRE_TIMEOUT_MS", "10000"),
    // A low cost of argon2, so that logins are fast.
    ("ARGON2_MEMORY_KIB", "64"),
    ("ARGON2_ITERATIONS", "1"),
    ("LOGIN_RATE_PER_ADDRESS_PER_MINUTE", "0"),
    ("RATE_LIMIT_CALLER_PER_SECOND", "0"),
    ("RATE_LIMIT_ADDRESS_PER_SECOND", "0"),
];

/// A service before its start.
#[derive(Debug, Clone)]
#[must_use = "the service starts with start()"]
pub struct Builder {
    executable: PathBuf,
    settings: Vec<(String, String)>,
    exchange_check: Option<ExchangeCheck>,
    has_schema: bool,
    has_database_proxy: bool,
    has_dedicated_server: bool,
}

impl Builder {
    pub(super) fn new(executable: PathBuf) -> Self {
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            executable,
            settings: settings.into(),
            exchange_check: None,
            has_schema: true,
            has_database_proxy: false,
            has_dedicated_server: false,
        }
    }

    /// Sets a setting of the service.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.retain(|(existing, _)| existing != name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes the service send its spans to this collector, within about 50 ms of their end.
    pub fn with_traces_to(self, collector: &Collector) -> Self {
        self.setting("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
            .setting("OTEL_BSP_SCHEDULE_DELAY", "50")
    }

    /// Makes the service send its spans and log records to this collector, within about 50 ms.
    pub fn with_logs_to(self, collector: &Collector) -> Self {
        self.with_traces_to(collector)
            .setting("OTEL_LOGS_EXPORTER", "otlp")
            .setting("OTEL_BLRP_SCHEDULE_DELAY", "50")
    }

    /// Sets the check that runs on every request and its response.
    pub fn exchange_check(mut self, exchange_check: ExchangeCheck) -> Self {
        self.exchange_check = Some(exchange_check);
        self
    }

    /// Uses an empty database. The test must set `MIGRATE_ON_START`, so that the service migrates the database.
    pub fn without_schema(mut self) -> Self {
        self.has_schema = false;
        self
    }

    /// Adds a [`TcpProxy`] between the service and its database.
    pub fn with_database_proxy(mut self) -> Self {
        self.has_database_proxy = true;
        self
    }

    /// Uses a separate PostgreSQL server, or the server of `DEV_DATABASE_URL` or `DATABASE_URL` if one is configured.
    pub fn on_a_dedicated_server(mut self) -> Self {
        self.has_dedicated_server = true;
        self
    }

    /// Starts the service, and waits until it is ready.
    pub async fn start(self) -> Service {
        let database = if self.has_dedicated_server {
            Database::create_on_dedicated_server(&self.executable, &self.settings).await
        } else if self.has_schema {
            Database::create(&self.executable, &self.settings).await
        } else {
            Database::create_empty().await
        };
        let database = Arc::new(database);
        let external_services = Arc::new(ExternalServices::start().await);
        let mut settings = self.settings;
        let proxy = if self.has_database_proxy {
            let proxy = TcpProxy::to(database.service_url()).await.expect("failed to open a TCP proxy");
            settings.push(("DATABASE_URL".to_owned(), proxy.url_through(database.service_url()).to_string()));
            Some(Arc::new(proxy))
        } else {
            None
        };
        // Settings of the test take precedence over the settings of the dependencies.
        for (name, value) in external_services.settings().into_iter().chain(database.settings()) {
            if !settings.iter().any(|(existing, _)| existing == name) {
                settings.push((name.to_owned(), value));
            }
        }
        let dependencies = Dependencies { external_services, database, database_proxy: proxy };
        Service::launch(self.executable, settings, self.exchange_check, dependencies).await
    }
}
