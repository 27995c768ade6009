//! The suite: the real executable, driven over sockets, and what clients and operators may rely on.
//!
//! One file for each capability; a test's name is the fact that it proves. What every test needs is in
//! [`dev::harness`]. Every answer that any test receives is held against the OpenAPI document as well: see
//! [`openapi::agrees_with_the_document`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, in its helpers too"
)]
mod accounts;
mod alerts;
mod audit;
mod compliance;
mod console;
mod database;
mod decisions;
mod headers;
mod healing;
mod kubernetes;
mod limits;
mod lockout;
mod logs;
mod long_trails;
mod metrics;
mod {{resource_plural}};
mod openapi;
mod operations;
mod panics;
mod permissions;
mod problems;
mod replicas;
mod retention;
mod round_trips;
mod seals;
mod settings;
mod shutdown;
mod stack;
mod startup;
mod structure;
mod telemetry;
mod telemetry_outages;
mod traces;
mod traffic;
mod verification;
mod workflows;

use dev::harness::{Builder, Service};

/// The executable under test.
const EXECUTABLE: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

/// A running service.
async fn service() -> Service {
    builder().start().await
}

/// A service with settings of its own, about to be started.
fn builder() -> Builder {
    Service::builder(EXECUTABLE).witness(openapi::agrees_with_the_document)
}
