//! The statements on the tables of payments and refunds, and of reconciliation.
pub mod payments;
pub mod reconciliation;
pub mod refunds;
pub mod settling;

use std::time::Duration;

use chrono::{DateTime, Utc};
use platform::database::{Database, instrument_query};
use sqlx::PgConnection;
use uuid::Uuid;

use super::gateway_key::GatewayKey;

/// Declares the statements that count sends and end leases, which are the same for payments and refunds. The functions
/// come from a macro, because `sqlx` checks only literal statements, and the table's name is a part of the literal.
macro_rules! declare_sends_and_leases {
    ($table:tt) => {
        /// Counts an attempt, and commits before the caller sends it. Returns the new count, or `None` if the record is
        /// settled and must not be sent again.
        pub async fn count_attempt(database: &Database, id: Uuid) -> Result<Option<i32>, sqlx::Error> {
            let statement = sqlx::query_scalar!(
                "update "
                    + $table
                    + " set attempts = attempts + 1 where id = $1 and status = 'processing' returning attempts",
                id,
            );
            let name = concat!($table, ".update");
            database.run(name, async |connection| statement.fetch_optional(connection).await).await
        }

        /// Subtracts a counted attempt, for callers that are certain that nothing was sent.
        pub async fn uncount_attempt(database: &Database, id: Uuid) -> Result<(), sqlx::Error> {
            let statement = sqlx::query!(
                "update "
                    + $table
                    + " set attempts = attempts - 1 where id = $1 and status = 'processing' and attempts > 0",
                id,
            );
            let name = concat!($table, ".update");
            database.run(name, async |connection| statement.execute(connection).await).await?;
            Ok(())
        }

        /// Replaces the lease by a pause, after which recovery polls the gateway. `needs_review` marks the record for
        /// review, and nothing removes the mark until the settlement.
        pub async fn release(
            database: &Database,
            id: Uuid,
            pause: Duration,
            needs_review: bool,
        ) -> Result<(), sqlx::Error> {
            let statement = sqlx::query!(
                "update " + $table
                    + r#"
        set
          lease_expires_at = now() + $2::interval,
          parked_at = case when $3 then coalesce(parked_at, now()) else parked_at end
        where id = $1 and status = 'processing'
        "#,
                id,
                interval(pause),
                needs_review,
            );
            let name = concat!($table, ".update");
            database.run(name, async |connection| statement.execute(connection).await).await?;
            Ok(())
        }
    };
}
use declare_sends_and_leases;

/// The id or gateway key by which a payment or refund is found.
#[derive(Debug, Clone, Copy)]
pub enum By {
    Id(Uuid),
    /// The key under which the gateway was called.
    GatewayKey(GatewayKey),
}

impl By {
    /// Returns the id and the gateway key, one of which is `None`.
    fn parameters(self) -> (Option<Uuid>, Option<Uuid>) {
        match self {
            Self::Id(id) => (Some(id), None),
            Self::GatewayKey(key) => (None, Some(key.0)),
        }
    }
}

/// Counts of payments and refunds whose outcome is unknown, and of open discrepancies.
#[derive(Debug, Clone, Copy)]
pub struct UnsettledCounts {
    pub count: i64,
    /// Payments and refunds that are marked for review.
    pub needs_review: i64,
    /// Creation time of the oldest payment or refund whose outcome is unknown.
    pub oldest: Option<DateTime<Utc>>,
    /// Open discrepancies, except those of unknown outcomes. [`needs_review`](Self::needs_review) counts the payments
    /// and refunds with unknown outcomes that an operator must review.
    pub discrepancies: i64,
}

/// Counts payments and refunds whose outcome is unknown, and open discrepancies.
pub async fn unsettled(database: &Database) -> Result<UnsettledCounts, sqlx::Error> {
    let statement = sqlx::query_as!(
        UnsettledCounts,
        r#"
        select
          count(*) as "count!", count(parked_at) as "needs_review!", min(created_at) as oldest,
          (
            select count(*) from discrepancies where closed_at is null and what <> 'outcome unknown'
          ) as "discrepancies!"
        from (
          select parked_at, created_at from payments where status = 'processing'
          union all
          select parked_at, created_at from refunds where status = 'processing'
        ) as unsettled
        "#
    );
    database.run("payments.count", async |connection| statement.fetch_one(connection).await).await
}

/// Returns whether a payment or refund is marked for review or has an open discrepancy.
pub async fn needs_review(connection: &mut PgConnection, id: Uuid) -> Result<bool, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select exists (
          select from payments where id = $1 and parked_at is not null
          union all
          select from refunds where id = $1 and parked_at is not null
          union all
          select from discrepancies where record_id = $1 and closed_at is null
        ) as "needs_review!"
        "#,
        id,
    );
    instrument_query("payments.select", statement.fetch_one(connection)).await
}

pub fn interval(duration: Duration) -> sqlx::postgres::types::PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    sqlx::postgres::types::PgInterval { months: 0, days: 0, microseconds }
}

/// Converts an age in seconds from the database. A negative age counts as zero, because the database's clock may have
/// been set back.
fn age(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
