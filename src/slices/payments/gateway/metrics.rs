//! The metrics of the gateway's client.
use super::SERVICE;

const BUCKETS_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

platform::metrics! {
    /// Duration of a call to another service.
    pub(super) static GATEWAY_DURATION: histogram(BUCKETS_SECONDS) = "http_client_request_duration_seconds" {
        service in [SERVICE], outcome in ["success", "refused", "error", "timeout"]
    };
}
