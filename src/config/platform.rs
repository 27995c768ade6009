//! The settings of what every service has: the process, its database and listeners, users, telemetry, alerts, audit.
use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::{
    Environment, LogFormat, Reader, Setting,
    reader::groups,
    values::{
        address, count, directory, environment, flag, http_url, list_of_networks, list_of_origins,
        log_format, milliseconds, positive, postgres_url, seconds, secret, text,
    },
};

groups! {
    /// Where and as what the process runs.
    process: Process {
        /// `development`, `test`, `staging` or `production`. Only in development is a `.env` file read.
        "APP_ENV" environment: Environment = environment, default("development");
    }

    /// PostgreSQL.
    database: Database {
        /// The database, as the service's restricted role.
        "DATABASE_URL" url: PgConnectOptions = postgres_url, required, secret;
        /// The database, as its owner: for `migrate` and `MIGRATE_ON_START`. `DATABASE_URL` where it is not set.
        "DATABASE_MIGRATION_URL" migration_url: PgConnectOptions = postgres_url, optional, secret;
        /// Connections in the pool.
        "DATABASE_MAX_CONNECTIONS" max_connections: NonZeroU32 = positive, default("16");
        /// How long a request waits for a connection, in milliseconds.
        "DATABASE_ACQUIRE_TIMEOUT_MS" acquire_timeout: Duration = milliseconds, default("2000");
        /// The longest statement, in milliseconds; `migrate` sets it on the service's role.
        "DATABASE_STATEMENT_TIMEOUT_MS" statement_timeout: Duration = milliseconds, default("5000");
        /// How long `serve` and the commands wait for a database that cannot be reached yet, in seconds.
        "DATABASE_STARTUP_WAIT_SECONDS" startup_wait: Duration = seconds, default("30");
        /// Apply pending migrations in `serve`, before it listens.
        "MIGRATE_ON_START" migrate_on_start: bool = flag, default("false");
    }

    /// The two listeners, and the limits of what they accept.
    http: Http {
        /// Where the API listens; port 0 takes a free one, and the start-up log line says which.
        "API_ADDRESS" api_address: SocketAddr = address, default("127.0.0.1:8080");
        /// Where operations listens: probes, metrics, log level. Never exposed to the public.
        "OPS_ADDRESS" ops_address: SocketAddr = address, default("127.0.0.1:9000");
        /// Lets callers other than loopback change the log level on the operations listener.
        "OPS_TOKEN" ops_token: SecretString = secret, optional, secret;
        /// Networks (CIDR, comma-separated) whose `Forwarded` and `X-Forwarded-For` are believed, right to left.
        "TRUSTED_PROXIES" trusted_proxies: Vec<IpNet> = list_of_networks, default("");
        /// The deadline of one request, in milliseconds.
        "REQUEST_TIMEOUT_MS" request_timeout: Duration = milliseconds, default("10000");
        /// The largest request body, in bytes.
        "REQUEST_BODY_LIMIT_BYTES" body_limit: usize = count, default("65536");
        /// Requests worked on at once; one more is refused with 503.
        "MAX_REQUESTS_IN_FLIGHT" max_requests_in_flight: usize = count, default("512");
        /// Connections open at once on the API listener; one more waits to be accepted.
        "MAX_CONNECTIONS" max_connections: usize = count, default("10000");
        /// How long a client may take over its request's headers, in milliseconds.
        "HEADER_TIMEOUT_MS" header_timeout: Duration = milliseconds, default("5000");
        /// Origins (comma-separated) that browsers may call from. None: CORS is off.
        "CORS_ALLOWED_ORIGINS" cors_allowed_origins: Vec<axum::http::HeaderValue> = list_of_origins, default("");
        /// Requests a second from one caller, steadily; bursts of ten times that. 0 is off.
        "RATE_LIMIT_CALLER_PER_SECOND" rate_limit_caller: u32 = count, default("50");
        /// Requests a second from one address, steadily; bursts of ten times that. 0 is off.
        "RATE_LIMIT_ADDRESS_PER_SECOND" rate_limit_address: u32 = count, default("100");
    }

    /// Users and sessions.
    accounts: Accounts {
        /// How long a session lasts, in seconds.
        "SESSION_TTL_SECONDS" session_ttl: Duration = seconds, default("43200");
        /// Memory of one password hash, in KiB.
        "ARGON2_MEMORY_KIB" argon2_memory_kib: NonZeroU32 = positive, default("19456");
        /// Passes of one password hash.
        "ARGON2_ITERATIONS" argon2_iterations: NonZeroU32 = positive, default("2");
        /// Lanes of one password hash.
        "ARGON2_PARALLELISM" argon2_parallelism: NonZeroU32 = positive, default("1");
        /// Logins and registrations a minute from one address. 0 is off.
        "LOGIN_RATE_PER_ADDRESS_PER_MINUTE" login_rate: u32 = count, default("30");
        /// Failed logins, for one account from one address, before it is locked out there (NIST AC-7).
        "LOGIN_ATTEMPTS_BEFORE_LOCKOUT" attempts_before_lockout: NonZeroU32 = positive, default("5");
        /// How long a lockout lasts, in seconds.
        "LOCKOUT_SECONDS" lockout: Duration = seconds, default("900");
    }

    /// Logs.
    logs: Logs {
        /// `pretty` or `json`. Unset: pretty on a terminal, otherwise json.
        "LOG_FORMAT" format: LogFormat = log_format, optional;
        /// What is logged, as a `tracing` filter. Unset: by `APP_ENV`.
        "RUST_LOG" filter: String = text, optional;
        /// Also write daily files there.
        "LOG_DIRECTORY" directory: PathBuf = directory, optional;
        /// How many of these files are kept.
        "LOG_FILES_KEPT" files_kept: usize = count, default("14");
    }

    /// Traces: the variables of the OpenTelemetry specification, which says more about each.
    traces: Traces {
        /// Where spans are sent. Unset: nowhere, and logs still carry trace ids.
        "OTEL_EXPORTER_OTLP_ENDPOINT" endpoint: Url = http_url, optional, no_flag;
        /// `grpc` or `http/protobuf`.
        "OTEL_EXPORTER_OTLP_PROTOCOL" protocol: String = text, default("grpc"), no_flag;
        /// The service's name in every signal. Unset: the package's.
        "OTEL_SERVICE_NAME" service_name: String = text, optional, no_flag;
        /// More attributes of every span, as `key=value,key=value`.
        "OTEL_RESOURCE_ATTRIBUTES" resource_attributes: String = text, optional, no_flag;
        /// Which traces are kept.
        "OTEL_TRACES_SAMPLER" sampler: String = text, default("parentbased_always_on"), no_flag;
        /// The sampler's argument: a ratio, for the samplers that take one.
        "OTEL_TRACES_SAMPLER_ARG" sampler_argument: String = text, optional, no_flag;
        /// How a trace comes in from and goes out to others.
        "OTEL_PROPAGATORS" propagators: String = text, default("tracecontext,baggage"), no_flag;
        /// No spans at all.
        "OTEL_SDK_DISABLED" disabled: bool = flag, default("false"), no_flag;
    }

    /// The service's own alerts, for what must not wait for a scrape.
    alerts: Alerts {
        /// A URL that takes `{severity, title, description, timestamp, metadata}`.
        "ALERT_WEBHOOK_URL" webhook_url: Url = http_url, optional;
        /// An Alertmanager (v2 API).
        "ALERTMANAGER_URL" alertmanager_url: Url = http_url, optional;
        /// The same alert is sent at most once in this many seconds.
        "ALERT_REPEAT_INTERVAL_SECONDS" repeat_interval: Duration = seconds, default("300");
    }

    /// Shutdown.
    shutdown: Shutdown {
        /// How long readiness fails before the listeners close, in seconds. Unset: 0 in development and test, otherwise 5.
        "SHUTDOWN_GRACE_SECONDS" grace: Duration = seconds, optional;
        /// The whole shutdown, counted from the signal, in seconds.
        "SHUTDOWN_DEADLINE_SECONDS" deadline: Duration = seconds, default("25");
    }

    /// The audit trail.
    audit: Audit {
        /// How often audit events are sealed, in seconds.
        "AUDIT_SEAL_INTERVAL_SECONDS" seal_interval: Duration = seconds, default("5");
        /// How long audit events are kept in the database, in days.
        "AUDIT_RETENTION_DAYS" retention_days: u32 = count, default("400");
    }
}

impl Database {
    /// The owner's connection: `DATABASE_MIGRATION_URL`, or `DATABASE_URL` where that is not set.
    pub fn owner(&self) -> &PgConnectOptions {
        self.migration_url.as_ref().unwrap_or(&self.url)
    }
}
