//! Everything in this crate that is specific to the domain of the service: notes.
//!
//! The rest of the crate uses only the names that this module exports, items of [`environment`], [`harness`] and
//! [`traffic`], and the script `domain.js` for the console's page.
//!
//! - [`environment`]: the external services that `cargo dev` starts (none), and the commands that the terminal shows
//! - [`harness`]: the part of the test harness that is specific to notes
//! - `panels`: the charts, figures and first trace of the console, and the end of the terminal's status line
//! - `traffic`: the requests of simulated customers
pub mod environment;
pub mod harness;
mod panels;
pub(crate) mod traffic;

use std::{
    error::Error,
    future::{Ready, ready},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use url::Url;

pub use self::traffic::memory::Counts;
pub(crate) use self::{
    harness::TABLE,
    panels::{FIGURES, FIRST_TRACE, PANELS, status_line},
};
use crate::console::Comparison;

/// Further commands of `cargo dev`: none.
#[derive(Debug, Subcommand)]
pub enum Command {}

impl Command {
    /// Runs the command. `print` prints a line for the user.
    pub fn run(self, _print: &dyn Fn(&str)) -> Ready<Result<ExitCode, Box<dyn Error>>> {
        match self {}
    }
}

/// Further flags of the environment: none.
#[derive(Clone, Debug, Args)]
pub struct Flags {}

/// The addresses of the external services: none.
#[derive(Clone, Debug)]
pub struct Addresses;

/// Returns the comparison of the service's tables with the records of the external services: none.
pub fn comparison(_owner_url: &Url, _external_services: &Addresses) -> Option<Comparison> {
    None
}

/// Faults of the external services: the name of each, and its line in `--help`.
pub(crate) const FAULTS: &[(&str, &str)] = &[];

/// Error of setting the faults of an external service.
#[derive(Debug, thiserror::Error)]
#[error("failed to set the faults of {0}")]
pub struct FaultError(&'static str);

/// Replaces the faults of the external services by the faults with these names.
pub(crate) fn set_faults(_external_services: &Addresses, _names: &[&str]) -> Ready<Result<(), FaultError>> {
    ready(Ok(()))
}

/// Inserts the initial data of the environment into its database: none.
pub(crate) fn seed_data(_owner_url: &Url, _progress: &dyn Fn(&str)) -> Ready<Result<(), sqlx::Error>> {
    ready(Ok(()))
}
