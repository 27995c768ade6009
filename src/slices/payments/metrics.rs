//! The metrics of payments.
use super::{
    model::FailureReason,
    reconciliation::{Kind, Scope},
};

platform::metrics! {
    /// Payments settled, by outcome.
    pub(super) static PAYMENTS: counter = "payments_total" { outcome in ["succeeded", "declined", "failed"] };
    /// Payments that took no money at once, by reason.
    pub(super) static PAYMENT_FAILURES: counter = "payment_failures_total" {
        reason in FailureReason::ALL.map(FailureReason::as_str)
    };
    /// Payments and refunds in the database whose outcome is unknown.
    pub(super) static PAYMENTS_PROCESSING: gauge = "payments_processing";
    /// Age of the oldest payment or refund whose outcome is unknown.
    pub(super) static OLDEST_PROCESSING: gauge = "payment_oldest_processing_seconds";
    /// Payments and refunds that need review by an operator.
    pub(super) static PAYMENTS_PARKED: gauge = "payments_parked";
    /// Discrepancies with the gateway that are not closed.
    pub(super) static DISCREPANCIES_OPEN: gauge = "payment_discrepancies_open";
    /// Charges and refunds of the gateway that reconciliation has compared, including repeated comparisons.
    pub(super) static RECONCILED: counter = "reconciliation_compared_total" { resource in ["charges", "refunds"] };
    /// Discrepancies that reconciliation has recorded, by kind.
    pub(super) static RECONCILIATION_DISCREPANCIES: counter = "reconciliation_discrepancies_total" {
        kind in Kind::ALL.map(Kind::as_str)
    };
    /// Time at which the latest complete reconciliation began, by scope.
    pub(super) static LAST_RECONCILIATION: float_gauge = "reconciliation_last_success_timestamp_seconds" {
        scope in Scope::ALL.map(Scope::as_str)
    };
}
