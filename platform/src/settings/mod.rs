//! Settings: named, parsed and reported in one place.
//!
//! Each module declares its own settings with [`groups!`](crate::groups); the service assembles the groups with
//! [`settings!`](crate::settings). The struct that the code reads, the `--flag` of the command line, the output of
//! the command `config` and the check of the documents all come from these tables, so a setting is declared once.
//! Settings are read once, at start, and **every** mistake is reported at once: an operator who repairs a deployment
//! must not find the second mistake only after the first.
//!
//! The structs have no `Debug`: what cannot be printed cannot leak.
mod process;
mod reader;
pub mod values;

pub use self::{
    process::{Environment, Process},
    reader::{Mistakes, Reader, Setting},
};
