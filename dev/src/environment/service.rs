//! The service as a child process.
use std::{path::Path, process::ExitStatus, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Error, database::Database, ports::Ports};
use crate::{
    http,
    process::{Child, Follower, Launch, Stream},
};

/// Deadline of a start. A start usually takes a second, and more on a busy machine.
const READY_DEADLINE: Duration = Duration::from_mins(1);

/// Deadline of a stop. The deadline exceeds the service's own shutdown deadline, so that the service can report
/// unfinished work before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Maximum number of log lines in the error after an unexpected end or a failed start.
const MAX_LAST_LINES: usize = 20;

/// Input for starting the service.
pub(super) struct Start<'a> {
    pub(super) executable: &'a Path,
    pub(super) database: &'a Database,
    pub(super) ports: Ports,
    pub(super) log: &'a Path,
    pub(super) echo: bool,
    /// Further settings, by name.
    pub(super) settings: &'a [(String, String)],
}

/// The running service.
#[derive(Debug)]
pub(super) struct Service {
    child: Child,
}

impl Service {
    /// Starts the service and waits until it is ready.
    pub(super) async fn start(start: Start<'_>) -> Result<Self, Error> {
        let echo: &[Stream] = if start.echo { &[Stream::Stdout, Stream::Stderr] } else { &[] };
        let mut launch = Launch::new(start.executable)
            .args(["serve"])
            // A directory without a `.env` file, which the service would read in development.
            .directory(Path::new("/"))
            .env("APP_ENV", "development")
            .env("DATABASE_URL", &start.database.service_url)
            .env("API_ADDRESS", start.ports.api.to_string())
            .env("OPS_ADDRESS", start.ports.ops.to_string())
            .log_to(start.log)
            .echo(echo);
        for (name, value) in start.settings {
            launch = launch.env(name, value);
        }
        let service = Self { child: launch.start().map_err(Error::Start)? };
        service.wait_until_ready(&format!("http://{}/readyz", start.ports.ops)).await?;
        Ok(service)
    }

    async fn wait_until_ready(&self, readiness: &str) -> Result<(), Error> {
        let client = http::client(Duration::from_secs(2))?;
        let deadline = Instant::now() + READY_DEADLINE;
        while Instant::now() < deadline {
            if self.child.exited().is_some() {
                return Err(self.wait_for_end().await);
            }
            let response = client.get(readiness).send().await;
            if response.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(Error::NotReady { waited: READY_DEADLINE, last_lines: self.last_lines() })
    }

    /// Returns a reader of the service's output, which starts at the oldest line in memory.
    pub(super) fn log(&self) -> Follower {
        self.child.follow()
    }

    /// Waits until the service ends. Returns the error with the exit status and the last log lines.
    pub(super) async fn wait_for_end(&self) -> Error {
        let forever = Duration::from_hours(24 * 365);
        match self.child.wait(forever).await {
            Ok(status) => Error::ServiceEnded { status, last_lines: self.last_lines() },
            Err(error) => error.into(),
        }
    }

    /// Requests a graceful stop of the service, and waits for its exit. Kills the service after [`STOP_DEADLINE`].
    pub(super) async fn stop(self) -> Result<ExitStatus, Error> {
        Ok(self.child.stop(STOP_DEADLINE).await?)
    }

    fn last_lines(&self) -> String {
        let lines: Vec<String> = self.child.tail(MAX_LAST_LINES).into_iter().map(|line| line.text).collect();
        lines.join("\n")
    }
}
