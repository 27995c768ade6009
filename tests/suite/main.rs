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
mod campaign;
mod catalog;
mod checklist;
mod compliance;
mod console;
mod crashes;
mod database;
mod decisions;
mod discrepancies;
mod distrust;
mod example;
mod headers;
mod healing;
mod idempotency;
mod kubernetes;
mod limits;
mod lockout;
mod logs;
mod long_trails;
mod metrics;
mod openapi;
mod operations;
mod orders;
mod outages;
mod panics;
mod payment_traces;
mod payments;
mod permissions;
mod problems;
mod recovery;
mod refunds;
mod replicas;
mod replicated_payments;
mod retention;
mod review;
mod round_trips;
mod seals;
mod secrets;
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
mod webhooks;
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
