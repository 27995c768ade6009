//! The shutdown of the process: its signals and its timeouts.
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::settings::values::seconds;

crate::groups! {
    /// Shutdown.
    shutdown: Settings {
        /// Time between failing readiness and closing the listeners, in seconds. Unset: 0 in development and test, otherwise 5.
        "SHUTDOWN_GRACE_SECONDS" grace: Duration = seconds, optional;
        /// Maximum duration of the shutdown after the signal, in seconds.
        "SHUTDOWN_DEADLINE_SECONDS" deadline: Duration = seconds, default("25");
    }
}

/// SIGTERM and SIGINT. The handlers are installed at start, so that a signal during start-up is not lost.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> Result<Self, std::io::Error> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
