//! Audit events that could not be written: counted and alerted (NIST SP 800-53 AU-5).
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::postgres::PgDatabaseError;

use super::metrics::WRITE_FAILURES;
use crate::alerts::{Alert, Alerts, Condition, Severity};

/// Counts a statement of any kind that failed because its audit event could not be recorded.
pub(super) fn on_statement_failure(error: &sqlx::Error) {
    if is_audit_write_failure(error) {
        WRITE_FAILURES.inc();
    }
}

/// Counts the events of a failed statement that only writes events. [`on_statement_failure`] has already counted one of
/// them.
pub(super) fn count(error: &sqlx::Error, events: usize) {
    let counted = usize::from(is_audit_write_failure(error));
    WRITE_FAILURES.inc_by(u64::try_from(events.saturating_sub(counted)).unwrap_or(u64::MAX));
}

/// Returns whether `record_audit_event` failed.
fn is_audit_write_failure(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    error.and_then(PgDatabaseError::r#where).is_some_and(|context| context.contains("record_audit_event"))
}

/// Alerts about events that could not be written.
pub struct WriteFailures {
    alerts: Alerts,
    reported: AtomicU64,
}

impl WriteFailures {
    /// Sends the alerts through `alerts`.
    pub fn new(alerts: Alerts) -> Self {
        Self { alerts, reported: AtomicU64::new(0) }
    }

    /// Raises an alert if events could not be written since the last call.
    pub fn raise_alert(&self) {
        let failures = WRITE_FAILURES.get();
        let reported = self.reported.swap(failures, Ordering::Relaxed);
        if failures > reported {
            self.alerts.raise(Alert {
                condition: Condition::symptom("AuditWriteFailures", "database"),
                severity: Severity::Critical,
                title: "Audit writes failed".to_owned(),
                description:
                    "Operations that could not be audited were rejected. Denied requests are the exception."
                        .to_owned(),
                metadata: [
                    ("events".to_owned(), (failures - reported).to_string()),
                    ("action".to_owned(), "restore the audit log".to_owned()),
                ]
                .into(),
            });
        }
    }
}
