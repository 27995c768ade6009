//! The harness of the tests: the real executable, with a database and neighbours of its own.
//!
//! A test starts a [`Service`], lets a [`User`] act on it over sockets, and looks at what came of it: answers,
//! logs, metrics, rows, what its neighbours saw. It links nothing of the service, so it knows only what a client or
//! an operator can know, and it can do to the process what the world does: terminate it, kill it, start it again.
//!
//! The rules that tests live by:
//! - Nothing sleeps. What takes time is waited for with [`eventually`], which has a deadline.
//! - Nothing is shared but the PostgreSQL server: each service has a fresh database, cloned from a template that
//!   the executable's own `migrate` made once for the run.
//! - What knows what the service is for stands in [`example::harness`](crate::example::harness).
//! - A helper that cannot do its work panics and says what it saw: there is nobody to handle an error here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test fails by a panic, in its helpers too"
)]
mod answer;
mod balancer;
mod browser;
mod builder;
mod client;
mod collector;
mod command;
mod database;
mod service;
mod user;

use std::time::{Duration, Instant};

pub use crate::{
    example::harness::*,
    link::Link,
    otlp::{Span, SpanKind, SpanStatus},
    process::Signal,
};

pub use self::{
    answer::Answer,
    balancer::Balancer,
    browser::Browser,
    builder::Builder,
    client::{Attempt, Client, Exchange, Request, Witness},
    collector::{Collector, Mood},
    command::{Finished, run},
    database::{Database, Held, Standby},
    service::Service,
    user::{PASSWORD, User},
};

/// Far longer than anything takes, on a machine that is busy with something else too. Nothing waits this long
/// unless a test fails.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until `look` finds something, and returns it.
///
/// # Panics
/// With `what` if it does not come about [`SOON`].
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(SOON, what, look).await
}

/// Waits until `look` finds something, for what may take longer than [`SOON`].
///
/// # Panics
/// With `what` if it does not come about in time.
pub async fn within<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < deadline, "it did not come about within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
