//! The example domain: orders, and the payment gateway.
//!
//! This directory contains all domain code of the crate. The rest of the crate uses only the names exported below and
//! the functions of [`environment`], [`harness`] and [`traffic`] that it calls. So a project replaces this directory
//! with its own, which exports the same names.
//!
//! - [`campaign`]: tests a service of several replicas under faults, and checks that no money is lost or taken twice
//! - `command`: further commands and flags of `cargo dev`
//! - [`environment`]: the gateway, ledger and products that `cargo dev` starts the service with
//! - `faults`: faults of the gateway
//! - [`gateway`]: the payment-gateway simulator, with faults and a ledger
//! - [`harness`]: the domain part of the test harness, for orders and payments
//! - [`invariants`]: compares the service's tables with the gateway's ledger
//! - `neighbours`: the interface of the external services for the rest of this crate
//! - `panels`: the charts and figures of the console
//! - `stock`: products of the environment
//! - `traffic`: the actions of customers
pub mod campaign;
mod command;
pub mod environment;
mod faults;
pub mod gateway;
pub mod harness;
pub mod invariants;
mod neighbours;
mod panels;
mod stock;
pub(crate) mod traffic;

pub use self::{
    command::{Command, Flags},
    faults::Error as FaultError,
    neighbours::{Addresses, comparison},
    traffic::memory::{Counts, Payments},
};
pub(crate) use self::{
    faults::{FAULTS, set as set_faults},
    harness::TABLE,
    panels::{FIGURES, FIRST_TRACE, PANELS, essentials},
    stock::offer as stock,
};
