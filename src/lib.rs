//! Orders and payments over HTTP, with everything that production asks for.
//!
//! The map of the house. A reader may start with [`service`], where a process is born and dies, or with [`api`],
//! where a request comes in.
//!
//! - [`cli`]: the command line
//! - [`config`]: every setting, once
//! - [`service`]: the wiring: whatever lives as long as the process is made, and ended, there
//! - [`api`]: the API's router: the slices' routes, the layers in their one order, the `OpenAPI` document
//! - [`accounts`]: users, sessions, and the authentication layer
//! - [`catalog`]: products and their prices
//! - [`orders`]: what was ordered, and whether it is paid
//! - [`payments`]: taking money once, giving it back once, and never losing track of it
//! - [`platform`]: what every service needs; it knows nothing of orders
//!
//! A slice is read in one sitting: `model.rs` has the rules and no I/O, `store.rs` the SQL, `routes.rs` the HTTP.
//! Slices use `platform` and what other slices' `mod.rs` re-exports; `platform` uses no slice.
pub mod accounts;
pub mod api;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod orders;
pub mod payments;
pub mod platform;
pub mod service;

#[cfg(test)]
mod instructions;
