//! What the audit trail counts.
use lazy_static::lazy_static;
use prometheus::{
    Gauge, IntCounter, IntCounterVec, register_gauge, register_int_counter, register_int_counter_vec,
};

use super::{EventResult, EventType};
use crate::telemetry::metrics::registered;

lazy_static! {
    pub(super) static ref EVENTS: IntCounterVec = registered(register_int_counter_vec!(
        "audit_events_total",
        "Audit events that were written",
        &["event_type", "result"]
    ));
    pub(super) static ref WRITE_FAILURES: IntCounter = registered(register_int_counter!(
        "audit_write_failures_total",
        "Audit events that could not be written"
    ));
    pub(super) static ref SEAL_LAG: Gauge = registered(register_gauge!(
        "audit_seal_lag_seconds",
        "How long the oldest audit event without a seal has been waiting for one"
    ));
}

/// Makes every series, so that rules never meet a missing one.
pub fn initialise() {
    for event_type in EventType::ALL {
        for result in EventResult::ALL {
            EVENTS.with_label_values(&[event_type.as_str(), result.as_str()]);
        }
    }
    lazy_static::initialize(&WRITE_FAILURES);
    lazy_static::initialize(&SEAL_LAG);
}
