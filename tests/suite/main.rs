//! The suite: the real executable, driven over sockets, and what clients and operators may rely on.
//!
//! One folder for each part of the service, one file for each capability; a test's name is the fact that it proves. What
//! knows what the service is for is in [`example`]. What every test needs is in [`dev::harness`]. Every answer that any
//! test receives is held against the OpenAPI document as well: see [`http::openapi::agrees_with_the_document`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, in its helpers too"
)]
mod accounts;
mod audit;
mod console;
mod database;
mod docs;
mod example;
mod http;
mod kubernetes;
mod operations;
mod stack;
mod telemetry;
mod tls;

use dev::harness::{Builder, Service};

/// The executable under test.
const EXECUTABLE: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

/// A running service.
async fn service() -> Service {
    builder().start().await
}

/// A service with settings of its own, about to be started.
fn builder() -> Builder {
    Service::builder(EXECUTABLE).witness(http::openapi::agrees_with_the_document)
}
