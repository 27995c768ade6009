//! The service itself, as a child process.
use std::{path::Path, process::ExitStatus, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Error, database::Database, ports::Ports};
use crate::{
    http,
    process::{Child, Follower, Launch, Stream},
};

/// A start takes a second; a machine that compiles something else at the same time may need more.
const READY_DEADLINE: Duration = Duration::from_mins(1);

/// Longer than the service's own deadline, so that it is the one to cut something short, and to say what.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The last lines of a service that has ended, for the one who wonders why.
const LAST_LINES: usize = 20;

/// What the service is started with.
pub(super) struct Start<'a> {
    pub(super) executable: &'a Path,
    pub(super) database: &'a Database,
    pub(super) ports: Ports,
    pub(super) log: &'a Path,
    pub(super) echo: bool,
    /// Further settings, by their names.
    pub(super) settings: &'a [(String, String)],
}

/// The service, under way.
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
            // Far from any `.env`, which the service would read in development.
            .directory(Path::new("/"))
            .env("APP_ENV", "development")
            .env("DATABASE_URL", start.database.url.as_str())
            .env("API_ADDRESS", start.ports.api.to_string())
            .env("OPS_ADDRESS", start.ports.ops.to_string())
            .log_to(start.log)
            .echo(echo);
        for (name, value) in start.settings {
            launch = launch.env(name, value);
        }
        let service = Self { child: launch.start().map_err(Error::Start)? };
        service.becomes_ready(&format!("http://{}/readyz", start.ports.ops)).await?;
        Ok(service)
    }

    async fn becomes_ready(&self, readiness: &str) -> Result<(), Error> {
        let client = http::client(Duration::from_secs(2))?;
        let deadline = Instant::now() + READY_DEADLINE;
        while Instant::now() < deadline {
            if self.child.exited().is_some() {
                return Err(self.ended().await);
            }
            let answer = client.get(readiness).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(Error::NotReady { waited: READY_DEADLINE, last_lines: self.last_lines() })
    }

    /// What it prints, from its start.
    pub(super) fn log(&self) -> Follower {
        self.child.follow()
    }

    /// Ends when the service does, with the reason as far as it told one.
    pub(super) async fn ended(&self) -> Error {
        let forever = Duration::from_hours(24 * 365);
        match self.child.wait(forever).await {
            Ok(status) => Error::ServiceEnded { status, last_lines: self.last_lines() },
            Err(error) => error.into(),
        }
    }

    /// Asks the service to end, and waits until it has.
    pub(super) async fn stop(self) -> Result<ExitStatus, Error> {
        Ok(self.child.stop(STOP_DEADLINE).await?)
    }

    fn last_lines(&self) -> String {
        let lines: Vec<String> = self.child.tail(LAST_LINES).into_iter().map(|line| line.text).collect();
        lines.join("\n")
    }
}
