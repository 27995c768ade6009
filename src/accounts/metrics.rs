//! The metrics of accounts.
platform::metrics! {
    /// Failed authentications, by reason.
    pub(super) static AUTHENTICATION_FAILURES: counter = "authentication_failures_total" {
        reason in ["bad_credentials", "locked_out", "bad_token"]
    };
    /// Denied requests, by reason.
    pub(super) static AUTHORIZATION_DENIALS: counter = "authorization_denials_total" {
        reason in ["not_owner", "role"]
    };
}
