//! Times in JSON: RFC 3339, UTC, always with microseconds, which is what PostgreSQL keeps.
//!
//! One width everywhere, so that a time written by SQL and the same time written here are the same text. Times of requests
//! are a [`Timestamp`]: chrono reads years that PostgreSQL cannot store.
use chrono::{DateTime, Datelike, SecondsFormat, Utc};
use serde::{Deserialize, Serialize, Serializer};

/// A time that has a year of four digits in UTC, as RFC 3339 demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DateTime<Utc>")]
pub struct Timestamp(DateTime<Utc>);

/// A time with another year.
#[derive(Debug, thiserror::Error)]
#[error("the year of a time must be between 0000 and 9999, in UTC")]
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_time_of_a_request_has_a_year_of_four_digits() {
        for (text, taken) in [
            ("0000-01-01T00:00:00Z", true),
            ("9999-12-31T23:59:59.999999Z", true),
            ("-0001-12-31T23:59:59Z", false),
            ("-4713-01-01T00:00:00Z", false),
            ("+10000-01-01T00:00:00Z", false),
            ("+262142-12-31T23:59:59Z", false),
            // Of the year 10000 and of the year before 0000, in UTC.
            ("9999-12-31T23:59:59-01:00", false),
            ("0000-01-01T00:00:00+01:00", false),
        ] {
            assert_eq!(serde_json::from_value::<Timestamp>(json!(text)).is_ok(), taken, "{text}");
        }
    }
}
