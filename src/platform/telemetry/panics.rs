//! Panics: one `error` line each, and a count.
//!
//! The default hook writes to standard error, past the log: nobody would find a panic by its correlation id.
use std::{
    backtrace::Backtrace,
    panic::{self, PanicHookInfo},
    thread,
};

use lazy_static::lazy_static;
use prometheus::{IntCounter, register_int_counter};

use super::metrics::registered;

lazy_static! {
    static ref PANICS: IntCounter =
        registered(register_int_counter!("panics_total", "Panics, caught or not."));
}

/// From here on, panics are logged and counted.
pub(super) fn start() {
    lazy_static::initialize(&PANICS);
    panic::set_hook(Box::new(report));
}

fn report(panic: &PanicHookInfo<'_>) {
    PANICS.inc();
    tracing::error!(
        target: "panic",
        thread = thread::current().name(),
        location = panic.location().map(tracing::field::display),
        backtrace = %Backtrace::force_capture(),
        "panicked: {}",
        panic.payload_as_str().unwrap_or("(not a text)"),
    );
}
