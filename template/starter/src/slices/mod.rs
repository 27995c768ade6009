//! The slices. A slice is one capability of the domain, with its rules, SQL and routes in one directory. No code of
//! `src` outside of `src/slices` names a slice, so the code of a new slice is its directory and a few lines in this
//! file. CONTRIBUTING.md has the steps.
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

/// Error of starting a slice. No slice can fail to start yet.
pub type StartError = std::convert::Infallible;

platform::settings! {
    /// The settings of the slices.
    pub struct Settings {}
}

impl Settings {
    /// Checks the rules between these settings, the environment and the settings of the listeners. There are no rules
    /// yet.
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

/// Returns the routes of every slice. The router and the `OpenAPI` document are both created from these routes.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new().merge(notes::routes())
}

/// Returns the commands of the slices for the command line.
pub fn commands() -> Vec<Command> {
    Vec::new()
}

/// Runs a command of a slice. `settings` reads the settings of the slices.
///
/// # Errors
/// If the command fails. The error is one sentence with the reason.
#[expect(clippy::unused_async, reason = "a command of a slice may wait for the database")]
pub async fn execute(
    _name: &str,
    _arguments: &ArgMatches,
    _database: &Database,
    _settings: Reader,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(())
}

/// Compares the slices' records with those of the services that the slices call, after a restore of the database has
/// lost the changes since `lost_since`. Returns lines to print: one for each difference, and a summary.
///
/// # Errors
/// If a comparison could not be completed. The command `after-restore` can be repeated.
#[expect(clippy::unused_async, reason = "a comparison waits for the database and for the called service")]
pub async fn after_restore(
    _settings: &Settings,
    _database: &Database,
    _lost_since: DateTime<Utc>,
) -> Result<Vec<String>, Box<dyn Error + Send + Sync>> {
    Ok(Vec::new())
}

/// State of the slices. A handler extracts the part that it needs with `State`. Cheap to clone.
#[derive(Clone)]
pub struct Slices {
    database: Database,
}

impl Slices {
    /// Creates the state of the slices. At most `max_waiting` requests wait for another service at the same time.
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

    /// Starts the workers of the slices.
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
