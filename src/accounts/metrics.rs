//! What accounts count.
use lazy_static::lazy_static;
use platform::telemetry::metrics::registered;
use prometheus::{IntCounterVec, register_int_counter_vec};

lazy_static! {
    pub(super) static ref AUTHENTICATION_FAILURES: IntCounterVec = registered(register_int_counter_vec!(
        "authentication_failures_total",
        "Times that somebody failed to prove who they are",
        &["reason"]
    ));
    pub(super) static ref AUTHORIZATION_DENIALS: IntCounterVec = registered(register_int_counter_vec!(
        "authorization_denials_total",
        "Times that somebody asked for what they may not have",
        &["reason"]
    ));
}

/// Makes every series, so that rules never meet a missing one.
pub fn initialise() {
    for reason in ["bad_credentials", "locked_out", "bad_token"] {
        AUTHENTICATION_FAILURES.with_label_values(&[reason]);
    }
    for reason in ["not_owner", "role"] {
        AUTHORIZATION_DENIALS.with_label_values(&[reason]);
    }
}
