//! Metrics of the audit log.

use super::{EventResult, EventType};

crate::metrics! {
    /// Audit events recorded.
    pub(super) static EVENTS: counter = "audit_events_total" {
        event_type in EventType::ALL.map(EventType::as_str),
        result in EventResult::ALL.map(EventResult::as_str)
    };
    /// Audit events that failed to be recorded.
    pub(super) static WRITE_FAILURES: counter = "audit_write_failures_total";
    /// Age of the oldest audit event that is not sealed.
    pub(super) static SEAL_LAG: float_gauge = "audit_seal_lag_seconds";
    /// Number of the last seal, zero before the first one.
    pub(super) static SEAL_NUMBER: gauge = "audit_seal_number";
    /// Restores of the database that `after-restore` has recorded.
    pub(super) static RESTORES: gauge = "audit_restores";
}
