//! The count of audit events that could not be written, and the alert about them (NIST SP 800-53 AU-5).
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::postgres::PgDatabaseError;

use super::metrics::WRITE_FAILURES;
use crate::alerts::{Alert, Alerts, Condition, Severity};

/// Counts one lost event if a statement failed because its audit event could not be recorded. Called for every failed
/// statement.
pub(super) fn on_statement_failure(error: &sqlx::Error) {
    if is_audit_write_failure(error) {
        WRITE_FAILURES.inc();
    }
}

/// Counts the `events` audit events that are lost because the statement that writes them failed. If
/// `record_audit_event` failed, [`on_statement_failure`] has already counted one of these events.
pub(super) fn count_lost_events(error: &sqlx::Error, events: usize) {
    let counted = usize::from(is_audit_write_failure(error));
    WRITE_FAILURES.inc_by(u64::try_from(events.saturating_sub(counted)).unwrap_or(u64::MAX));
}

/// Returns whether a statement failed inside of the SQL function `record_audit_event`.
fn is_audit_write_failure(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    error.and_then(PgDatabaseError::r#where).is_some_and(|context| context.contains("record_audit_event"))
}

/// The alert about audit events that could not be written.
pub struct WriteFailureAlert {
    alerts: Alerts,
    reported: AtomicU64,
}

impl WriteFailureAlert {
    /// Creates the alert, which is raised through `alerts`.
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
                    "Operations without a recorded audit event were rejected. Events of denied requests may be lost."
                        .to_owned(),
                metadata: [
                    ("events".to_owned(), (failures - reported).to_string()),
                    ("action".to_owned(), "make the audit log writable again".to_owned()),
                ]
                .into(),
            });
        }
    }
}
