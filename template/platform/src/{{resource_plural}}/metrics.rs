//! What {{resource_plural_words}} count.
use lazy_static::lazy_static;
use prometheus::{IntCounter, register_int_counter};

use crate::platform::telemetry::metrics::registered;

lazy_static! {
    pub(super) static ref CREATED: IntCounter =
        registered(register_int_counter!("{{resource_plural}}_created_total", "{{Resource}} records that were created"));
}

/// Makes every series, so that rules never meet a missing one.
pub fn initialise() {
    lazy_static::initialize(&CREATED);
}
