//! Settings of the audit log.
use std::time::Duration;

use crate::settings::values::{days, seconds};

crate::groups! {
    /// The audit log.
    audit: Settings {
        /// Interval at which audit events are sealed, in seconds.
        "AUDIT_SEAL_INTERVAL_SECONDS" seal_interval: Duration = seconds, default("5");
        /// Retention time of audit events in the database, in days.
        "AUDIT_RETENTION_DAYS" retention_days: u32 = days, default("400");
    }
}
