//! The contenders that speak HTTP: the service itself, and what it is compared with.
use std::{
    net::SocketAddr,
    path::Path,
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dev::process::{Child, Launch};

use crate::stage::{Database, GATEWAY_API_KEY, GATEWAY_WEBHOOK_SECRET, Stage, free_address};

/// A start takes less than a second.
const READY_DEADLINE: Duration = Duration::from_secs(30);

const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How much the service says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seeing {
    /// Logs are off (`RUST_LOG=off`; the audit trail's lines cannot be silenced), the SDK of traces is disabled, and
    /// standard output is `/dev/null`. Correlation ids and metrics, which have no switch, stay.
    Nothing,
    /// JSON logs into a file, metrics, and this share of all traces to a receiver.
    Everything { sampled: f64 },
}

/// A process that answers HTTP.
pub struct Server {
    pub address: SocketAddr,
    /// The operations listener, where there is one.
    pub ops: Option<SocketAddr>,
    /// From the start of the process until it answered that it is ready.
    pub until_ready: Duration,
    child: Child,
}

impl Server {
    /// Starts the service on a database.
    ///
    /// Rate limits are off, since all load has one address and few callers.
    pub async fn start(
        stage: &Stage,
        database: &Database,
        seeing: Seeing,
        receiver: Option<SocketAddr>,
        settings: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let (address, ops) = (free_address()?, free_address()?);
        let log = match seeing {
            Seeing::Nothing => Path::new("/dev/null").to_owned(),
            Seeing::Everything { .. } => stage.directory.join("service.log"),
        };
        let mut launch = Launch::new(&stage.executable)
            .args(["serve"])
            .directory(Path::new("/"))
            .env("APP_ENV", "production")
            .env("LOG_FORMAT", "json")
            .env("DATABASE_URL", database.url.as_str())
            .env("API_ADDRESS", address.to_string())
            .env("OPS_ADDRESS", ops.to_string())
            .env("GATEWAY_URL", stage.gateway.url().as_str())
            .env("GATEWAY_API_KEY", GATEWAY_API_KEY)
            .env("GATEWAY_WEBHOOK_SECRET", GATEWAY_WEBHOOK_SECRET)
            .env("RATE_LIMIT_CALLER_PER_SECOND", "0")
            .env("RATE_LIMIT_ADDRESS_PER_SECOND", "0")
            .env("SHUTDOWN_GRACE_SECONDS", "0")
            .log_to(&log)
            .uncaptured();
        launch = match seeing {
            Seeing::Nothing => launch.env("RUST_LOG", "off").env("OTEL_SDK_DISABLED", "true"),
            Seeing::Everything { sampled } => launch
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

    /// Starts any other server, which is ready as soon as `ready` is answered, whatever the answer.
    pub async fn launch(
        launch: Launch,
        address: SocketAddr,
        ops: Option<SocketAddr>,
        ready: &str,
    ) -> anyhow::Result<Self> {
        let program = launch.program();
        let client = dev::http::client(Duration::from_secs(2))?;
        let began = Instant::now();
        let child = launch.start().with_context(|| format!("start {program}"))?;
        loop {
            let answer = client.get(ready).send().await;
            if answer.is_ok_and(|answer| ops.is_none() || answer.status().is_success()) {
                return Ok(Self { address, ops, until_ready: began.elapsed(), child });
            }
            if let Some(status) = child.exited() {
                bail!("{program} has ended ({status}) before it was ready");
            }
            if began.elapsed() > READY_DEADLINE {
                bail!("{program} is not ready after {READY_DEADLINE:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// A scrape of its operations listener.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let ops = self.ops.context("it has no operations listener")?;
        let client = dev::http::client(Duration::from_secs(5))?;
        let answer = client.get(format!("http://{ops}/metrics")).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// The value of a series on the operations listener.
    pub async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let text = self.metrics().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.with_context(|| format!("there is no {series}"))?.trim().parse().context("a number")
    }

    /// Ends it, and waits for that.
    pub async fn stop(self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.stop(STOP_DEADLINE).await?)
    }
}
