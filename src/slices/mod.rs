//! The slices of the domain. No code outside of this directory names a slice. A new slice is a directory here and a few
//! lines in this file; CONTRIBUTING.md has the steps.
mod catalog;
mod orders;
mod payments;

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

use self::payments::Payments;

pub use self::payments::StartError;

platform::settings! {
    /// The settings of the slices.
    pub struct Settings {
        /// The payment gateway, and the recovery of unknown outcomes.
        payments: payments::Settings,
    }
}

impl Settings {
    /// Checks the rules between these settings, the environment and the settings of the listener.
    pub fn check(&self, environment: Environment, http: &http::Settings, reader: &mut Reader) {
        self.payments.check(environment, http, reader);
    }
}

/// The part of the slices' `OpenAPI` document that is not generated from their routes.
#[derive(OpenApi)]
#[openapi(
    info(description = "Orders and payments. Amounts are in minor units, times in RFC 3339 (UTC)."),
    tags(
        (name = "catalog", description = "Products and their prices"),
        (name = "orders", description = "Orders"),
        (name = "payments", description = "Payments and refunds"),
        (name = "gateway", description = "Events of the payment gateway"),
    )
)]
pub struct Description;

/// The kinds of problems that the slices add to those of the platform.
pub const PROBLEM_KINDS: &[&Kind] = payments::PROBLEM_KINDS;

/// Returns the routes of every slice. The router and the `OpenAPI` document are created from this list.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new().merge(catalog::routes()).merge(orders::routes()).merge(payments::routes())
}

/// Returns the commands of the slices for the command line.
pub fn commands() -> Vec<Command> {
    vec![payments::commands::command()]
}

/// Runs a command of a slice. `settings` has the settings of the slices.
///
/// # Errors
/// The reason of the failure, in one sentence.
pub async fn execute(
    name: &str,
    arguments: &ArgMatches,
    database: &Database,
    settings: Reader,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    match name {
        "payments" => payments::commands::execute(arguments, database, settings).await,
        _ => Ok(()),
    }
}

/// Compares the slices' records with the services that they call, after a restore of the database that has lost the
/// changes since `lost_since`. Returns one line for each difference that a person must resolve.
///
/// # Errors
/// A comparison could not be completed. The command can be repeated.
pub async fn after_restore(
    settings: &Settings,
    database: &Database,
    lost_since: DateTime<Utc>,
) -> Result<Vec<String>, Box<dyn Error + Send + Sync>> {
    let mut lines = Vec::new();
    payments::commands::compare_since(&settings.payments, database, lost_since, |line| lines.push(line))
        .await?;
    Ok(lines)
}

/// The state of the slices. Handlers extract the part that they need with `State`. Cheap to clone.
#[derive(Clone)]
pub struct Slices {
    database: Database,
    payments: Payments,
}

impl Slices {
    /// Starts the slices. At most `max_waiting` requests may wait for another service at once.
    ///
    /// # Errors
    /// If a slice cannot work with its settings.
    pub fn start(
        settings: &Settings,
        database: &Database,
        alerts: &Alerts,
        background_tasks: &BackgroundTasks,
        max_waiting: usize,
    ) -> Result<Self, StartError> {
        orders::initialize_metrics();
        payments::initialize_metrics();
        let payments = Payments::start(&settings.payments, database, alerts, background_tasks, max_waiting)?;
        Ok(Self { database: database.clone(), payments })
    }

    /// Starts the periodic work of the slices.
    pub fn start_workers(&self, workers: &Workers) {
        self.payments.start_workers(workers);
    }

    /// Adds the slices' checks to readiness and `/health`.
    pub fn add_checks(&self, health: health::Builder) -> health::Builder {
        self.payments.add_checks(health)
    }
}

impl FromRef<Slices> for Database {
    fn from_ref(slices: &Slices) -> Self {
        slices.database.clone()
    }
}

impl FromRef<Slices> for Payments {
    fn from_ref(slices: &Slices) -> Self {
        slices.payments.clone()
    }
}
