//! The slices of the domain. No code outside of this directory names a slice. A new slice is a directory here and a few
//! lines in this file; CONTRIBUTING.md has the steps.
mod notes;

use std::error::Error;

use axum::extract::FromRef;
use chrono::{DateTime, Utc};
use clap::{ArgMatches, Command};
use platform::{
    alerts::Alerts,
    database::Database,
    http::{self, problem::Kind},
    ops::health,
    settings::{Environment, Reader},
    workers::{BackgroundTasks, Workers},
};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// Error of starting a slice. Notes cannot fail to start.
pub type StartError = std::convert::Infallible;

platform::settings! {
    /// The settings of the slices.
    pub struct Settings {}
}

impl Settings {
    /// Checks the rules between these settings and those of the listener. There are none yet.
    pub fn check(&self, _environment: Environment, _http: &http::Settings, _reader: &mut Reader) {}
}

/// The part of the slices' `OpenAPI` document that is not generated from their routes.
#[derive(OpenApi)]
#[openapi(
    info(description = "Times are in RFC 3339 (UTC)."),
    tags((name = "notes", description = "Notes of customers"))
)]
pub struct Description;

/// The kinds of problems that the slices add to those of the platform.
pub const PROBLEM_KINDS: &[&Kind] = &[];

/// Returns the routes of every slice. The router and the `OpenAPI` document are created from this list.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new().merge(notes::routes())
}

/// Returns the commands of the slices for the command line.
pub fn commands() -> Vec<Command> {
    Vec::new()
}

/// Runs a command of a slice. `settings` has the settings of the slices.
///
/// # Errors
/// The reason of the failure, in one sentence.
#[expect(clippy::unused_async, reason = "a command of a slice may wait for the database")]
pub async fn execute(
    _name: &str,
    _arguments: &ArgMatches,
    _database: &Database,
    _settings: Reader,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(())
}

/// Compares the slices' records with the services that they call, after a restore of the database that has lost the
/// changes since `lost_since`. Returns one line for each difference that a person must resolve.
///
/// # Errors
/// A comparison could not be completed. The command can be repeated.
#[expect(clippy::unused_async, reason = "a comparison waits for the database and for the called service")]
pub async fn after_restore(
    _settings: &Settings,
    _database: &Database,
    _lost_since: DateTime<Utc>,
) -> Result<Vec<String>, Box<dyn Error + Send + Sync>> {
    Ok(Vec::new())
}

/// The state of the slices. Handlers extract the part that they need with `State`. Cheap to clone.
#[derive(Clone)]
pub struct Slices {
    database: Database,
}

impl Slices {
    /// Starts the slices. At most `max_waiting` requests may wait for another service at once.
    ///
    /// # Errors
    /// If a slice cannot work with its settings.
    pub fn start(
        _settings: &Settings,
        database: &Database,
        _alerts: &Alerts,
        _background_tasks: &BackgroundTasks,
        _max_waiting: usize,
    ) -> Result<Self, StartError> {
        notes::initialize_metrics();
        Ok(Self { database: database.clone() })
    }

    /// Starts the periodic work of the slices.
    pub fn start_workers(&self, _workers: &Workers) {}

    /// Adds the slices' checks to readiness and `/health`.
    pub fn add_checks(&self, health: health::Builder) -> health::Builder {
        health
    }
}

impl FromRef<Slices> for Database {
    fn from_ref(slices: &Slices) -> Self {
        slices.database.clone()
    }
}
