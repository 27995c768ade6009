//! Settings of the audit log.
use std::time::Duration;

use crate::settings::values::{count, seconds};

crate::groups! {
    /// The audit trail.
    audit: Settings {
        /// Interval of the sealing of audit events, in seconds.
        "AUDIT_SEAL_INTERVAL_SECONDS" seal_interval: Duration = seconds, default("5");
        /// Time for which audit events stay in the database, in days.
        "AUDIT_RETENTION_DAYS" retention_days: u32 = count, default("400");
    }
}
