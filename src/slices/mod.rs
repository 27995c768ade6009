//! The slices. A slice is one capability of the domain, with its rules, SQL and routes in one directory. No code of
//! `src` outside of `src/slices` names a slice, so the code of a new slice is its directory and a few lines in this
//! file. CONTRIBUTING.md has the steps.
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
        /// The payment gateway, and the recovery of payments and refunds whose outcome is unknown.
        payments: payments::Settings,
    }
}

impl Settings {
    /// Checks the rules between these settings, the environment and the settings of the listeners.
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

/// Returns the routes of every slice. The router and the `OpenAPI` document are both created from these routes.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new().merge(catalog::routes()).merge(orders::routes()).merge(payments::routes())
}

/// Returns the commands of the slices for the command line.
pub fn commands() -> Vec<Command> {
    vec![payments::commands::command()]
}

/// Runs a command of a slice. `settings` reads the settings of the slices.
///
/// # Errors
/// If the command fails. The error is one sentence with the reason.
pub async fn execute(
    name: &str,
    arguments: &ArgMatches,
    database: &Database,
    settings: Reader,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    match name {
        "payments" => payments::commands::execute(arguments, database, settings).await,
        _ => Err(format!("no slice executes the command {name}").into()),
    }
}

/// Compares the slices' records with those of the services that the slices call, after a restore of the database has
/// lost the changes since `lost_since`. Records each difference, and settles records of unknown outcome. Returns lines
/// to print: one for each difference, and a summary.
///
/// # Errors
/// If a comparison could not be completed. The command `after-restore` can be repeated.
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

/// State of the slices. A handler extracts the part that it needs with `State`. Cheap to clone.
#[derive(Clone)]
pub struct Slices {
    database: Database,
    payments: Payments,
}

impl Slices {
    /// Creates the state of the slices. At most `max_waiting` requests wait for another service at the same time.
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

    /// Starts the workers of the slices.
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
