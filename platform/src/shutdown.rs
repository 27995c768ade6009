//! The shutdown of the process: its settings, deadlines and signals.
use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

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

/// Time reserved for the flush of telemetry, which exports the last spans and log records, and writes the last log
/// lines. The flush may also use the time that earlier parts of the shutdown did not need.
pub const MIN_FLUSH_TIME: Duration = Duration::from_secs(2);

/// The deadlines of the parts of a shutdown. Each part has its own deadline, so that a client that never finishes its
/// request cannot use up the time for work that must be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownDeadlines {
    /// Deadline for draining the connections.
    pub connections: Instant,
    /// Deadline for workers and background tasks.
    pub work: Instant,
    /// Deadline for everything else: the last audit events and alerts, the operations listener and the database pool.
    /// The flush of telemetry comes later.
    pub rest: Instant,
}

impl ShutdownDeadlines {
    /// Divides the time from `now` to `deadline`, without [`MIN_FLUSH_TIME`]: three quarters for connections, one
    /// eighth for work, and one eighth for the rest.
    pub fn new(now: Instant, deadline: Instant) -> Self {
        let left = deadline.saturating_duration_since(now).saturating_sub(MIN_FLUSH_TIME);
        Self { connections: now + left * 3 / 4, work: now + left * 7 / 8, rest: now + left }
    }
}

/// The signals that start the shutdown: SIGTERM and SIGINT. The handlers are installed at start, so that a signal
/// during start-up is not lost.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_shutdown_ends_before_the_next() {
        let now = Instant::now();
        let seconds = |deadline: Instant| (deadline - now).as_secs();
        let deadlines = ShutdownDeadlines::new(now, now + Duration::from_secs(18));
        assert_eq!([deadlines.connections, deadlines.work, deadlines.rest].map(seconds), [12, 14, 16]);
        let none_left = ShutdownDeadlines { connections: now, work: now, rest: now };
        for left in [Duration::ZERO, MIN_FLUSH_TIME] {
            assert_eq!(ShutdownDeadlines::new(now, now + left), none_left);
        }
    }
}
