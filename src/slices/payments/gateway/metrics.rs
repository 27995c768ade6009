//! The metrics of the gateway's client.
use lazy_static::lazy_static;
use platform::telemetry::metrics::TracedHistograms;
use prometheus::register_histogram_vec;

use super::SERVICE;

const BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

lazy_static! {
    pub(super) static ref GATEWAY_DURATION: TracedHistograms = TracedHistograms::new(
        register_histogram_vec!(
            "http_client_request_duration_seconds",
            "Time of a call to another service",
            &["service", "outcome"],
            BUCKETS.to_vec()
        ),
        BUCKETS
    );
}

/// Creates every series, so that no rule meets a missing one.
pub fn initialise() {
    for outcome in ["success", "refused", "error", "timeout"] {
        GATEWAY_DURATION.declare(&[SERVICE, outcome]);
    }
}
