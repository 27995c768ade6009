//! Settings: their declarations, and the parsing, printing and checking that follow from the declarations.
//!
//! Each module declares its own settings with [`groups!`](crate::groups), and the service assembles the groups with
//! [`settings!`](crate::settings). Each setting is declared once. Four things are derived from these declarations:
//! - the struct that the code reads
//! - the `--flag` of the command line, unless the setting is declared as `secret` or `no_flag`
//! - the output of the command `config`
//! - the check that the documents list every setting
//!
//! Settings are read once, at start, and the mistakes of **all** settings are reported together. Otherwise an operator
//! would find the second mistake only after correcting the first. Rules between settings are checked only if each
//! setting is valid.
//!
//! The structs have no `Debug`, so that no secret can be printed by accident.
mod process;
mod reader;
pub mod values;

pub use self::{
    process::{Environment, Process},
    reader::{Mistakes, Reader, Setting},
};
