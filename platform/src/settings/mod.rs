//! Settings: named, parsed and reported in one place.
//!
//! Each module declares its own settings with [`groups!`](crate::groups), and the service assembles the groups with
//! [`settings!`](crate::settings). Each setting is declared once. Four things are derived from these declarations:
//! - the struct that the code reads
//! - the `--flag` of the command line
//! - the output of the command `config`
//! - the check that the documents list every setting
//!
//! Settings are read once, at start, and **every** mistake is reported at once. Otherwise an operator would find the
//! second mistake only after correcting the first.
//!
//! The structs have no `Debug`, so that no secret can be printed by accident.
mod process;
mod reader;
pub mod values;

pub use self::{
    process::{Environment, Process},
    reader::{Mistakes, Reader, Setting},
};
