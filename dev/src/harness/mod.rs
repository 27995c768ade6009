//! The test harness: the real executable with its own database and simulated dependencies.
//!
//! A test starts a [`Service`], acts as a [`User`] over sockets, and checks the results: responses, logs, metrics,
//! rows, and the requests to the dependencies. The harness does not link the service, so tests use only the service's
//! external interfaces. A test can terminate, kill and restart the process.
//!
//! Rules of tests:
//! - Tests do not sleep. Tests wait for conditions with [`eventually`], which has a deadline.
//! - Tests share only the PostgreSQL server. Each service has a fresh database, by default cloned from a template. The
//!   executable's own `migrate` creates the template's schema once per test process.
//! - Domain code is in [`example::harness`](crate::example::harness).
//! - A helper panics on failure, with a message that describes the failure. Tests handle no errors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test fails by a panic, in its helpers too"
)]
mod balancer;
mod browser;
mod builder;
mod client;
mod collector;
mod command;
mod database;
mod response;
mod schema;
mod service;
mod user;

use std::time::{Duration, Instant};

pub use crate::{
    example::harness::*,
    otlp::{Record, Span, SpanKind, SpanStatus},
    process::Signal,
    tcp_proxy::TcpProxy,
};

pub use self::{
    balancer::Balancer,
    browser::Browser,
    builder::Builder,
    client::{Attempt, Client, Exchange, ExchangeCheck, Request},
    collector::{Collector, CollectorBehavior},
    command::{CommandOutput, run},
    database::{Database, OpenTransaction, Standby},
    response::HttpResponse,
    schema::{RECEIVED_NAMES, Schema},
    service::Service,
    user::{PASSWORD, User},
};

/// Timeout far above the duration of a usual operation, even on a busy machine. Only a failing test waits this long.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until `poll` returns a value, and returns this value.
///
/// # Panics
/// Panics with `what` if there is no value within [`WAIT_TIMEOUT`].
pub async fn eventually<T>(what: &str, poll: impl AsyncFnMut() -> Option<T>) -> T {
    within(WAIT_TIMEOUT, what, poll).await
}

/// Waits until `poll` returns a value, for operations that can take longer than [`WAIT_TIMEOUT`].
///
/// # Panics
/// Panics with `what` if there is no value within the deadline.
pub async fn within<T>(deadline: Duration, what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = poll().await {
            return found;
        }
        assert!(started.elapsed() < deadline, "timed out after {deadline:?}, waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
