//! The metrics of reconciliation.
use super::{FindingKind, Scope};

platform::metrics! {
    /// Charges and refunds of the gateway that reconciliation has compared, including repeated comparisons.
    pub(super) static RECONCILED: counter = "reconciliation_compared_total" { resource in ["charges", "refunds"] };
    /// Discrepancies that reconciliation has recorded, by kind.
    pub(super) static RECONCILIATION_DISCREPANCIES: counter = "reconciliation_discrepancies_total" {
        kind in FindingKind::ALL.map(FindingKind::as_str)
    };
    /// Time at which the latest complete reconciliation began, by scope.
    pub(super) static LAST_RECONCILIATION: float_gauge = "reconciliation_last_success_timestamp_seconds" {
        scope in Scope::ALL.map(Scope::as_str)
    };
}
