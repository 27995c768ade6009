//! The example domain: orders, and the payment gateway that takes the money.
//!
//! Everything in this crate that knows what the service is for is in this directory. The rest of the crate uses only the
//! names that are exported below and the functions of [`environment`], [`harness`] and [`traffic`] that it calls. So a
//! project replaces this directory by one of its own, which offers the same names.
//!
//! - [`campaign`]: attacks a service of several replicas, and checks that no money is lost or taken twice
//! - `command`: further commands and flags of `cargo dev`
//! - [`environment`]: the gateway, ledger and products that `cargo dev` starts the service with
//! - `faults`: faults of the gateway
//! - [`gateway`]: the payment-gateway simulator, with faults and a ledger
//! - [`harness`]: the part of the test harness that knows orders and payments
//! - [`invariants`]: compares the service's tables with the gateway's ledger
//! - `neighbours`: the services that ours calls, as the rest of this crate knows them
//! - `panels`: the charts and figures of the console
//! - `stock`: products of the environment
//! - `traffic`: what customers do
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
