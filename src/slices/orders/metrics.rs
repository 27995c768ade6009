//! What orders count.
use lazy_static::lazy_static;
use platform::telemetry::metrics::registered;
use prometheus::{IntCounter, register_int_counter};

lazy_static! {
    pub(super) static ref ORDERS_CREATED: IntCounter =
        registered(register_int_counter!("orders_created_total", "Orders that were placed"));
}

/// Makes every series, so that rules never meet a missing one.
pub fn initialise() {
    lazy_static::initialize(&ORDERS_CREATED);
}
