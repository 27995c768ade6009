//! Times in JSON: RFC 3339, UTC, always with microseconds, which is PostgreSQL's precision.
//!
//! All times have the same number of digits, so that SQL and Rust format a time as the same text. Times in requests are
//! read as [`Timestamp`], because chrono accepts years that PostgreSQL cannot store.
use chrono::{DateTime, Datelike, SecondsFormat, Utc};
use serde::{Deserialize, Serialize, Serializer};

/// A time whose year has four digits in UTC, as RFC 3339 requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DateTime<Utc>")]
pub struct Timestamp(DateTime<Utc>);

/// The error for a time whose year does not have four digits in UTC.
#[derive(Debug, thiserror::Error)]
#[error("the year must be between 0000 and 9999 in UTC")]
pub struct YearOutOfRange;

impl TryFrom<DateTime<Utc>> for Timestamp {
    type Error = YearOutOfRange;

    fn try_from(time: DateTime<Utc>) -> Result<Self, YearOutOfRange> {
        if (0..=9999).contains(&time.year()) { Ok(Self(time)) } else { Err(YearOutOfRange) }
    }
}

impl From<Timestamp> for DateTime<Utc> {
    fn from(time: Timestamp) -> Self {
        time.0
    }
}

/// Serializes a time, for `#[serde(serialize_with = "timestamp::serialize")]`.
pub fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format(time))
}

/// Formats a time, such as `2026-01-31T12:00:00.000000Z`.
pub fn format(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_in_requests_have_four_digit_years() {
        for (text, accepted) in [
            ("0000-01-01T00:00:00Z", true),
            ("9999-12-31T23:59:59.999999Z", true),
            ("-0001-12-31T23:59:59Z", false),
            ("-4713-01-01T00:00:00Z", false),
            ("+10000-01-01T00:00:00Z", false),
            ("+262142-12-31T23:59:59Z", false),
            // In UTC these times are in the year 10000 and in the year before 0000.
            ("9999-12-31T23:59:59-01:00", false),
            ("0000-01-01T00:00:00+01:00", false),
        ] {
            assert_eq!(serde_json::from_value::<Timestamp>(json!(text)).is_ok(), accepted, "{text}");
        }
    }
}
