//! Times in JSON: RFC 3339, UTC, always with microseconds, which is what PostgreSQL keeps.
//!
//! One width everywhere, so that a time written by SQL and the same time written here are the same text.
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serializer;

/// For `#[serde(serialize_with = "timestamp::serialize")]`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format(time))
}

/// As text: `2026-01-31T12:00:00.000000Z`.
pub fn format(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}
