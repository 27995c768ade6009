//! The example domain: orders, and the payment gateway.
//!
//! This directory contains all domain code of the crate. The rest of the crate uses only the names exported below, and
//! items of [`environment`], [`harness`] and [`traffic`]. A project generated without the example has another directory
//! in this place, which exports the names that the rest of the crate uses.
//!
//! - [`campaign`]: tests several replicas of the service under faults: no payment may be lost or charged twice
//! - `command`: the domain's commands and flags of `cargo dev`
//! - [`environment`]: the payment gateway of `cargo dev`, and the example `curl` commands that the terminal shows
//! - `faults`: the gateway's faults that `cargo dev` and its console switch on and off
//! - [`gateway`]: the payment-gateway simulator, with faults and a ledger
//! - [`harness`]: the domain part of the test harness, for orders and payments
//! - [`invariants`]: compares the service's tables with the gateway's ledger
//! - `external_services`: addresses of external services, and the comparison of their records with the service's tables
//! - `panels`: the charts and figures of the console and the terminal
//! - `seed_products`: the products that `cargo dev` creates
//! - `traffic`: the actions of simulated customers
pub mod campaign;
mod command;
pub mod environment;
mod external_services;
mod faults;
pub mod gateway;
pub mod harness;
pub mod invariants;
mod panels;
mod seed_products;
pub(crate) mod traffic;

pub use self::{
    command::{Command, Flags},
    external_services::{Addresses, comparison},
    faults::Error as FaultError,
    traffic::memory::{Counts, Payments},
};
pub(crate) use self::{
    faults::{FAULTS, set as set_faults},
    harness::TABLE,
    panels::{FIGURES, FIRST_TRACE, PANELS, status_line},
    seed_products::seed as seed_data,
};
