//! Restores of the database to an earlier state. The service's log then still has the heads (number and hash) of the
//! lost seals.
//!
//! Without an acknowledgement, verification rightly reports those heads as missing. The command `after-restore` writes
//! an acknowledgement: rows and an event. The rows record the restore and the lost heads, and only the schema owner can
//! write them. The event has the hash of the list of lost heads. With an acknowledgement, verification accepts that
//! these heads are missing, and reports the gap each time.
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Event, EventResult, EventType, PendingEvent,
    canonical::EventPosition,
    chain::{KnownHeads, RestoreRecord},
    record_with,
    sealing::{self, SealError},
};
use crate::database::{Database, instrument_query};

/// The part of the audit log that a restore has lost.
#[derive(Debug)]
pub struct LostSpan {
    /// The time of the newest seal that is not lost, or the beginning of the first epoch if there is no such seal.
    /// Changes before that time are in the restored database.
    pub since: DateTime<Utc>,
    /// True if this restore is recorded, and every logged head is either in the chain or recorded as lost.
    pub is_recorded: bool,
    incarnation: String,
    record: RestoreRecord,
}

impl LostSpan {
    /// Returns the number of logged heads that are neither in the chain nor recorded as lost.
    pub fn head_count(&self) -> usize {
        self.record.lost_heads.len()
    }

    /// Returns the numbers of the first and the last of the logged heads that are neither in the chain nor recorded as
    /// lost.
    pub fn numbers(&self) -> Option<(i64, i64)> {
        let ends = self.record.lost_heads.first().zip(self.record.lost_heads.last());
        ends.map(|((first, _), (last, _))| (*first, *last))
    }
}

/// Returns the part of the audit log that the latest restore has lost, according to the logged heads. Takes a lock, so
/// that other callers wait until the transaction ends.
///
/// [`LostSpan::is_recorded`] is false if no recorded restore has the current cluster, timeline and database. It is also
/// false if a logged head is neither in the chain nor recorded as lost. The second condition detects a restore that
/// copied the data files back, which keeps the cluster and the timeline.
///
/// # Errors
/// A statement failed.
pub async fn lost_span(connection: &mut PgConnection, logged: &KnownHeads) -> Result<LostSpan, sqlx::Error> {
    let lock = sqlx::query!("select pg_advisory_xact_lock(hashtext('public.audit_restores'))");
    instrument_query("audit_restores.lock", lock.execute(&mut *connection)).await?;
    let heads = logged.iter().flat_map(|(number, hashes)| hashes.iter().map(|hash| (*number, hash.clone())));
    let (numbers, hashes): (Vec<_>, Vec<_>) = heads.unzip();
    let statement = sqlx::query!(
        r#"
        select logged.number as "number!", logged.hash as "hash!"
        from unnest($1::bigint[], $2::bytea[]) as logged (number, hash)
        where
          logged.number > 0
          and not exists (
            select from audit_seals where audit_seals.number = logged.number and audit_seals.hash = logged.hash
          )
          and not exists (
            select
            from audit_lost_heads
            where audit_lost_heads.number = logged.number and audit_lost_heads.hash = logged.hash
          )
        "#,
        &numbers,
        &hashes,
    );
    let lost = instrument_query("audit_seals.unknown", statement.fetch_all(&mut *connection)).await?;
    let record = RestoreRecord {
        event_id: Uuid::nil(),
        lost_heads: lost.into_iter().map(|head| (head.number, head.hash)).collect(),
    };
    let first_lost = record.lost_heads.first().map_or(i64::MAX, |(number, _)| *number);
    let statement = sqlx::query!(
        r#"
        select
          coalesce(
            (select sealed_at from audit_seals where number < $1 order by number desc limit 1),
            (select min(began_at) from audit_epochs)
          ) as "since!",
          incarnation as "incarnation!",
          exists (select from audit_restores where audit_restores.incarnation = here.incarnation) as "is_recorded!"
        from (
          select
            format(
              '%s/%s/%s',
              system_identifier,
              left(pg_walfile_name(pg_current_wal_lsn()), 8),
              (select oid from pg_database where datname = current_database())
            ) as incarnation
          from pg_control_system()
        ) as here
        "#,
        first_lost,
    );
    let state = instrument_query("audit_restores.state", statement.fetch_one(connection)).await?;
    Ok(LostSpan {
        since: state.since,
        is_recorded: state.is_recorded && record.lost_heads.is_empty(),
        incarnation: state.incarnation,
        record,
    })
}

/// Begins an epoch, and records that a restore has lost `span`, within the caller's transaction. In the new epoch, no
/// event gets the position of a lost event. Returns the epoch's number, and the audit events of the epoch and of the
/// restore.
///
/// # Errors
/// A statement failed, or the audit log could not be locked in time, because other transactions kept writing events.
pub async fn record_restore(
    connection: &mut PgConnection,
    span: &LostSpan,
    reason: &str,
) -> Result<(i32, [PendingEvent; 2]), sqlx::Error> {
    let begun = Event::new(EventType::Audit, "audit_epochs", "begin", EventResult::Success);
    let statement = sqlx::query_scalar!(r#"select begin_audit_epoch($1, true) as "epoch!""#, begun.to_json());
    let epoch = instrument_query("audit_epochs.insert", statement.fetch_one(&mut *connection)).await?;
    let numbers = span.numbers();
    let event = Event::new(EventType::Audit, "audit_restores", "restore", EventResult::Success)
        .with("reason", reason)
        .with("lost_since", span.since.to_rfc3339())
        .with("lost_head_count", span.head_count())
        .with("first_lost_seal", numbers.map(|(first, _)| first))
        .with("last_lost_seal", numbers.map(|(_, last)| last))
        .with("lost_heads_sha256", span.record.digest());
    let (numbers, hashes): (Vec<_>, Vec<_>) = span.record.lost_heads.iter().cloned().unzip();
    let statement = sqlx::query!(
        r#"
        with restore as (
          insert into audit_restores (event_id, lost_since, incarnation)
          values (($1::jsonb ->> 'id')::uuid, $2, $3)
          returning event_id
        )
        insert into audit_lost_heads (event_id, number, hash)
        select restore.event_id, lost.number, lost.hash
        from restore, unnest($4::bigint[], $5::bytea[]) as lost (number, hash)
        "#,
        event.to_json(),
        span.since,
        span.incarnation,
        &numbers,
        &hashes,
    );
    instrument_query("audit_restores.insert", statement.execute(&mut *connection)).await?;
    let event = record_with(connection, event).await?;
    Ok((epoch, [PendingEvent::of(begun), event]))
}

/// Seals events until the event of the latest restore is sealed. Until then, verification does not accept that the lost
/// heads are missing. Returns the time since which changes are lost.
///
/// # Errors
/// The event could not be sealed within a minute, no restore is recorded, or a statement failed.
pub async fn seal_restore(owner: &Database) -> Result<DateTime<Utc>, SealError> {
    let statement = sqlx::query!(
        r#"
        select epoch, xact_id::text::bigint as "xact_id!", sequence, lost_since
        from audit_restores
        join audit_events on (audit_events.recorded_at, id) = (audit_restores.recorded_at, event_id)
        order by audit_restores.recorded_at desc
        limit 1
        "#
    );
    let event =
        owner.run("audit_restores.last", async |connection| statement.fetch_one(connection).await).await?;
    let position = EventPosition { epoch: event.epoch, xact_id: event.xact_id, sequence: event.sequence };
    sealing::wait_until_sealed(owner, position).await?;
    Ok(event.lost_since)
}
