//! Dropping the partitions whose events are all exported.
//!
//! Dropping a partition locks the whole table briefly. While the drop waits for this lock, every audited write queues
//! behind the drop. So the drop starts only when no older transaction holds a lock, and it waits for a lock only for
//! a short time (`lock_timeout`).
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{
    super::{Event, EventResult, EventType, canonical::EventPosition},
    ExportError, POLL_INTERVAL,
};
use crate::database::{instrument_query, is_lock_timeout};

/// Maximum time for which the drop of one partition waits for transactions that hold a lock on the partition or on the
/// whole table.
const UNLOCK_TIMEOUT: Duration = Duration::from_mins(1);

/// Drops the partitions whose months ended before `ended_before` and whose events are all at or before `end`. Each
/// partition is dropped in its own transaction, which also records the drop as an event. Returns the partitions' names.
pub(super) async fn drop_exported(
    connection: &mut PgConnection,
    ended_before: DateTime<Utc>,
    end: EventPosition,
) -> Result<Vec<String>, ExportError> {
    let statement = sqlx::query_scalar!(
        r#"select exported_audit_partitions($1, $2, $3::text::xid8, $4) as "name!""#,
        ended_before,
        end.epoch,
        end.xact_id.to_string(),
        end.sequence,
    );
    let exported = instrument_query("audit_events.exported", statement.fetch_all(&mut *connection)).await?;
    let mut dropped = Vec::new();
    for partition in exported {
        if drop_partition(connection, &partition, ended_before, end).await? {
            dropped.push(partition);
        }
    }
    Ok(dropped)
}

async fn drop_partition(
    connection: &mut PgConnection,
    partition: &str,
    ended_before: DateTime<Utc>,
    end: EventPosition,
) -> Result<bool, ExportError> {
    let deadline = tokio::time::Instant::now() + UNLOCK_TIMEOUT;
    loop {
        wait_for_lock_holders(connection, partition, deadline).await?;
        let event = Event::new(EventType::Audit, "audit_events", "drop_partitions", EventResult::Success)
            .with("partitions", vec![partition.to_owned()]);
        let statement = sqlx::query_scalar!(
            r#"select drop_exported_audit_partition($1, $2, $3, $4::text::xid8, $5, $6) as "dropped!""#,
            partition,
            ended_before,
            end.epoch,
            end.xact_id.to_string(),
            end.sequence,
            event.to_json(),
        );
        match instrument_query("audit_events.drop", statement.fetch_one(&mut *connection)).await {
            Ok(dropped) => {
                if dropped {
                    event.log_and_count();
                }
                return Ok(dropped);
            }
            // A transaction that took its lock after the check above held the lock for too long. The next attempt waits
            // for that transaction.
            Err(error) if is_lock_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until every transaction that holds a lock on the audit log at the time of the call has ended. Returns an error
/// at the deadline. Does not request a lock, so no other statement queues behind this wait.
async fn wait_for_lock_holders(
    connection: &mut PgConnection,
    partition: &str,
    deadline: tokio::time::Instant,
) -> Result<(), ExportError> {
    let mut waited_for = lock_holders(connection, partition).await?;
    while let Some(holder) = waited_for.first() {
        if tokio::time::Instant::now() >= deadline {
            return Err(ExportError::InUse { partition: partition.to_owned(), holder: holder.name.clone() });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        let holders = lock_holders(connection, partition).await?;
        waited_for.retain(|holder| holders.contains(holder));
    }
    Ok(())
}

/// A transaction that holds a lock on the audit log.
#[derive(PartialEq)]
struct LockHolder {
    transaction: String,
    name: String,
}

async fn lock_holders(
    connection: &mut PgConnection,
    partition: &str,
) -> Result<Vec<LockHolder>, sqlx::Error> {
    let statement = sqlx::query_as!(
        LockHolder,
        r#"
        select distinct
          virtualtransaction as "transaction!",
          format('backend %s (%s)', pg_locks.pid, coalesce(nullif(application_name, ''), usename)) as "name!"
        from pg_locks
        left join pg_stat_activity on pg_stat_activity.pid = pg_locks.pid
        where
          granted
          and database = (select oid from pg_database where datname = current_database())
          and relation in ('audit_events'::regclass, 'audit_events_default'::regclass, to_regclass($1))
          and pg_locks.pid is distinct from pg_backend_pid()
        "#,
        partition,
    );
    instrument_query("pg_locks.select", statement.fetch_all(connection)).await
}
