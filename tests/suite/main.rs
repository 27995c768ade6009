//! The test suite. Most tests drive the real executable over sockets, and assert the behaviour that clients and
//! operators rely on. The other tests check files of the repository, such as documents, manifests and alert rules, or
//! run development tools of [`dev`], such as the console.
//!
//! Each directory has the tests of one part of the service or of the repository. The name of a test states the
//! behaviour that it proves. The tests of the example domain are in [`example`], and the harness is in
//! [`dev::harness`].
//!
//! A [`dev::harness::Client`] of a service that [`builder`] starts compares each response with the OpenAPI document:
//! see [`http::openapi::agrees_with_the_document`]. Responses through a [`dev::harness::Balancer`] are not compared.
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

/// Starts a service with the default settings of the harness.
async fn service() -> Service {
    builder().start().await
}

/// Returns the builder of a service, for tests that change its settings.
fn builder() -> Builder {
    Service::builder(EXECUTABLE).exchange_check(http::openapi::agrees_with_the_document)
}
