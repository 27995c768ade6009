//! The audit log: a verifiable record of who did what, when, and with which result (NIST SP 800-53 AU-2, AU-3, AU-12).
//!
//! A change and its audit event commit in **one** statement or transaction, which calls the SQL function
//! `record_audit_event`. Neither exists without the other. For an action that changes no data, such as a denial,
//! [`record`] writes the event alone. Each committed event is also written as a log line.
//!
//! A few seconds later, [`Sealer`] seals the events: it stores their hashes in a chain of seals, and logs the hash of
//! the last seal. So [`verify`], given the logged hashes, detects every later change of a sealed event, even by a role
//! with all privileges. Old events are exported to files that can be verified without the database ([`export`]).
//!
//! Passwords, tokens and card data are never recorded.
mod canonical;
mod chain;
mod denials;
mod event;
mod export;
mod failures;
mod listing;
mod lost_heads;
mod metrics;
mod record;
mod report;
mod restore;
mod sealing;
mod seals;
mod settings;
#[cfg(test)]
mod tests;
mod verify;

pub use chain::KnownHeads;
pub use denials::Denials;
pub use event::{Event, EventResult, EventType, parse_reason};
pub use export::{Export, ExportError, ExportSummary, export, verify_export};
pub use failures::WriteFailureAlert;
pub use listing::{AuditEvent, Filter, list};
pub use record::{PendingEvent, make_partitions, record, record_all_with, record_once_possible, record_with};
pub use report::{OnProgress, Report, VerifyError};
pub use restore::{LostSpan, lost_span, record_restore, seal_restore};
pub use sealing::{SealError, Sealer};
pub use seals::cluster_is_known;
pub use settings::Settings;
pub use verify::{ExternalExport, read_heads, read_log, verify};

/// Creates the metric series of the audit log, and starts to count failed audit writes.
pub fn initialize_metrics() {
    metrics::initialize();
    crate::database::notify_of_failures(failures::on_statement_failure);
}
