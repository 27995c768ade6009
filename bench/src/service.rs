//! HTTP servers as child processes: the service, the servers with which the service is compared, and the receiver.
use std::{
    net::SocketAddr,
    path::Path,
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dev::process::{Child, Launch};

use crate::test_bed::{Database, GATEWAY_API_KEY, GATEWAY_WEBHOOK_SECRET, TestBed, free_address};

/// Deadline of a start. A start usually takes less than a second.
const READY_DEADLINE: Duration = Duration::from_secs(30);

const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The amount of telemetry that the service emits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Telemetry {
    /// Logs are off (`RUST_LOG=off`; the lines of the audit log cannot be silenced), the trace SDK is disabled, and
    /// standard output is `/dev/null`. Correlation ids and metrics have no switch and stay on.
    Nothing,
    /// JSON logs to a file, metrics, and the given share of all traces to the receiver, if there is a receiver.
    Everything { sampled: f64 },
}

/// A running HTTP server.
pub struct Server {
    pub address: SocketAddr,
    /// The operations listener, if the server has one.
    pub ops: Option<SocketAddr>,
    /// Time from the start of the process until its first ready response.
    pub until_ready: Duration,
    child: Child,
}

impl Server {
    /// Starts the service on a database.
    ///
    /// Rate limits are off, because the whole load comes from one address and few callers.
    pub async fn start(
        test_bed: &TestBed,
        database: &Database,
        telemetry: Telemetry,
        receiver: Option<SocketAddr>,
        settings: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let (address, ops) = (free_address()?, free_address()?);
        let log = match telemetry {
            Telemetry::Nothing => Path::new("/dev/null").to_owned(),
            Telemetry::Everything { .. } => test_bed.directory.join("service.log"),
        };
        let mut launch = Launch::new(&test_bed.executable)
            .args(["serve"])
            .directory(Path::new("/"))
            .env("APP_ENV", "production")
            .env("LOG_FORMAT", "json")
            .env("DATABASE_URL", database.url.as_str())
            .env("API_ADDRESS", address.to_string())
            .env("OPS_ADDRESS", ops.to_string())
            .env("GATEWAY_URL", test_bed.gateway.url().as_str())
            .env("GATEWAY_API_KEY", GATEWAY_API_KEY)
            .env("GATEWAY_WEBHOOK_SECRET", GATEWAY_WEBHOOK_SECRET)
            .env("RATE_LIMIT_CALLER_PER_SECOND", "0")
            .env("RATE_LIMIT_ADDRESS_PER_SECOND", "0")
            // All requests of the load have one address.
            .env("MAX_REQUESTS_IN_FLIGHT_PER_ADDRESS", "0")
            .env("MAX_CONNECTIONS_PER_ADDRESS", "0")
            .env("SHUTDOWN_GRACE_SECONDS", "0")
            .log_to(&log)
            .uncaptured();
        launch = match telemetry {
            Telemetry::Nothing => launch.env("RUST_LOG", "off").env("OTEL_SDK_DISABLED", "true"),
            Telemetry::Everything { sampled } => launch
                .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
                .env("OTEL_TRACES_SAMPLER_ARG", sampled.to_string()),
        };
        if let Some(receiver) = receiver {
            launch = launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{receiver}"));
        }
        for (name, value) in settings {
            launch = launch.env(name, value);
        }
        Self::launch(launch, address, Some(ops), &format!("http://{ops}/readyz")).await
    }

    /// Starts a server, and waits until it is ready. A server with an operations listener is ready once the URL `ready`
    /// returns a success. Any other server is ready once `ready` returns a response with any status.
    pub async fn launch(
        launch: Launch,
        address: SocketAddr,
        ops: Option<SocketAddr>,
        ready: &str,
    ) -> anyhow::Result<Self> {
        let program = launch.program();
        let client = dev::http::client(Duration::from_secs(2))?;
        let began = Instant::now();
        let child = launch.start().with_context(|| format!("failed to start {program}"))?;
        loop {
            let response = client.get(ready).send().await;
            if response.is_ok_and(|response| ops.is_none() || response.status().is_success()) {
                return Ok(Self { address, ops, until_ready: began.elapsed(), child });
            }
            if let Some(status) = child.exited() {
                bail!("{program} exited ({status}) before it was ready");
            }
            if began.elapsed() > READY_DEADLINE {
                bail!("{program} was not ready after {READY_DEADLINE:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Scrapes the operations listener of this server.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let ops = self.ops.context("the server has no operations listener")?;
        let client = dev::http::client(Duration::from_secs(5))?;
        let response = client.get(format!("http://{ops}/metrics")).send().await?;
        Ok(response.error_for_status()?.text().await?)
    }

    /// Returns the value of a series of the operations listener.
    pub async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let text = self.metrics().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value
            .with_context(|| format!("missing series {series}"))?
            .trim()
            .parse()
            .with_context(|| format!("the value of {series} is not a number"))
    }

    /// Stops the server and waits for its exit.
    pub async fn stop(self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.stop(STOP_DEADLINE).await?)
    }
}
