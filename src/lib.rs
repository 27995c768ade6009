//! The service. Start reading with [`service`], which runs the process from start to end, or with [`api`], which
//! receives requests.
//!
//! - [`cli`]: the command line
//! - [`config`]: the settings, in the groups that the modules declare
//! - [`service`]: the wiring, which starts and stops everything that lives as long as the process
//! - [`api`]: the API's router: the routes, the layers and their order, the `OpenAPI` document
//! - [`accounts`]: users, roles, sessions, and the authentication layer
//! - [`audit_events`]: the route that lists audit events
//! - [`slices`]: the slices, each of which is a submodule. A slice is one capability of the domain, with its rules, SQL
//!   and routes
//!
//! In each slice, the module `model` has rules and no I/O, `store` has SQL, and `routes` has the handlers of HTTP
//! requests. Larger slices have further modules. A slice uses `platform`, `accounts`, and the items that other slices
//! re-export in their `mod.rs`.
pub mod accounts;
pub mod api;
pub mod audit_events;
pub mod cli;
pub mod config;
pub mod service;
pub mod slices;

use platform::build_info::BuildInfo;
use sqlx::migrate::Migrator;

/// The build of this service.
pub const BUILD: BuildInfo = BuildInfo {
    name: env!("CARGO_PKG_NAME"),
    version: env!("CARGO_PKG_VERSION"),
    commit: env!("BUILD_COMMIT"),
    rustc: env!("BUILD_RUSTC"),
};

/// The migrations of this service, compiled in.
pub static MIGRATIONS: Migrator = sqlx::migrate!();
