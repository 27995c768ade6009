//! What payments count.
use lazy_static::lazy_static;
use platform::telemetry::metrics::registered;
use prometheus::{IntCounterVec, IntGauge, register_int_counter_vec, register_int_gauge};

use super::model::FailureReason;

lazy_static! {
    pub(super) static ref PAYMENTS: IntCounterVec = registered(register_int_counter_vec!(
        "payments_total",
        "Payments that were settled, by outcome",
        &["outcome"]
    ));
    pub(super) static ref PAYMENT_FAILURES: IntCounterVec = registered(register_int_counter_vec!(
        "payment_failures_total",
        "Payments that took no money at once, by reason",
        &["reason"]
    ));
    pub(super) static ref PAYMENTS_PROCESSING: IntGauge = registered(register_int_gauge!(
        "payments_processing",
        "Payments and refunds in the database whose outcome is not known"
    ));
    pub(super) static ref OLDEST_PROCESSING: IntGauge = registered(register_int_gauge!(
        "payment_oldest_processing_seconds",
        "Age of the oldest payment or refund whose outcome is not known"
    ));
    pub(super) static ref PAYMENTS_PARKED: IntGauge =
        registered(register_int_gauge!("payments_parked", "Payments and refunds that a person must look at"));
}

/// Makes every series, so that rules never meet a missing one.
pub fn initialise() {
    lazy_static::initialize(&PAYMENTS_PROCESSING);
    lazy_static::initialize(&OLDEST_PROCESSING);
    lazy_static::initialize(&PAYMENTS_PARKED);
    for outcome in ["succeeded", "declined", "failed"] {
        PAYMENTS.with_label_values(&[outcome]);
    }
    for reason in FailureReason::ALL {
        PAYMENT_FAILURES.with_label_values(&[reason.as_str()]);
    }
    super::gateway::initialise_metrics();
}
