//! The kinds of problems of payments.
platform::problem_kinds! {
    /// The webhook's signature is missing, wrong, or older than five minutes.
    BAD_SIGNATURE = BAD_REQUEST "bad-signature" "Invalid signature";
}
