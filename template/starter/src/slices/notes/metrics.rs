//! The metrics of notes.
use lazy_static::lazy_static;
use prometheus::{IntCounter, register_int_counter};
use platform::telemetry::metrics::registered;

lazy_static! {
    pub(super) static ref CREATED: IntCounter =
        registered(register_int_counter!("notes_created_total", "Notes created."));
}

/// Creates every series, so that no rule meets a missing one.
pub fn initialise() {
    lazy_static::initialize(&CREATED);
}
