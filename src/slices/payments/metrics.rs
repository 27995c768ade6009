//! The metrics of payments.
use super::model::FailureReason;

platform::metrics! {
    /// Payments settled, by outcome.
    pub(super) static PAYMENTS: counter = "payments_total" { outcome in ["succeeded", "declined", "failed"] };
    /// Payment attempts without an immediate charge, by reason.
    pub(super) static PAYMENT_FAILURES: counter = "payment_failures_total" {
        reason in FailureReason::ALL.map(FailureReason::as_str)
    };
    /// Payments and refunds in the database whose outcome is unknown.
    pub(super) static PAYMENTS_PROCESSING: gauge = "payments_processing";
    /// Age of the oldest payment or refund whose outcome is unknown.
    pub(super) static OLDEST_PROCESSING: gauge = "payment_oldest_processing_seconds";
    /// Payments and refunds that need review by an operator.
    pub(super) static PAYMENTS_PARKED: gauge = "payments_parked";
    /// Open discrepancies with the gateway.
    pub(super) static DISCREPANCIES_OPEN: gauge = "payment_discrepancies_open";
}
