//! Exports: seals and their events in a file that can be verified without the database.
//!
//! Each export continues where the previous export ended, so the exports and the database together are the complete
//! audit log. Events are dropped only after their file was written, synced, read back and verified. The event that
//! records the file's hash must also be sealed before the drop.
mod file;
mod partitions;

use std::{path::Path, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use super::{
    Event, EventResult, EventType,
    canonical::EventPosition,
    chain::{ExportRecord, KnownHeads},
    failures,
    report::{OnProgress, VerifyError},
    sealing::{self, SealError},
    seals::{self, Head},
};
use crate::database::{Database, instrument_query};

pub(super) use self::file::add_file;
pub use self::file::verify_export;

/// Pause between two queries for the holders of a lock.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The error of a failed export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database is unreachable, or rejected a statement.
    #[error("failed to export the audit log: {0}")]
    Database(#[from] sqlx::Error),
    /// The written part of the audit log does not verify, or the file cannot be written or read.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// No event before the `until` of [`export`] is left to export, and no partition could be dropped.
    #[error("nothing to export: every sealed event before that time is in an earlier export")]
    Nothing,
    /// Some events from before `until` are not sealed yet.
    #[error(
        "events before that time are not sealed yet: run the command again after `serve` has sealed them"
    )]
    NotSealed,
    /// The event that records the export could not be sealed.
    #[error("wrote the export, but failed to seal its own event, so nothing was dropped: {0}")]
    OwnEvent(String),
    /// A partition with exported events was not dropped, because a transaction uses it.
    #[error(
        "wrote and recorded the export, but {partition} was not dropped, because {holder} uses it; run the same command again later"
    )]
    InUse {
        /// The partition.
        partition: String,
        /// The transaction that holds a lock on the audit log.
        holder: String,
    },
}

/// The result of an export: the written file, and the dropped partitions.
#[derive(Debug)]
pub struct Export {
    /// `None` if all events from before `until` were in earlier exports.
    pub written: Option<ExportSummary>,
    pub dropped: Vec<String>,
}

/// The summary of a file that was written and recorded.
#[derive(Debug)]
pub struct ExportSummary {
    pub first_seal: i64,
    pub last_seal: i64,
    pub events: u64,
    pub file_sha256: String,
}

/// Exports the events that were recorded before `until` and are in no earlier export. Seals are exported whole, so the
/// file may also have later events of its last seal. Then drops the partitions that ended before `until`, are past the
/// retention, and contain only exported events. Runs as the schema owner.
///
/// # Errors
/// Nothing is dropped if the file cannot be written, verified or recorded, or if the event that records the export
/// cannot be sealed. If a partition cannot be dropped, earlier partitions are already dropped, and another call
/// continues with the failed partition.
pub async fn export(
    owner: &Database,
    until: DateTime<Utc>,
    retention_days: u32,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<Export, ExportError> {
    // The statements that may take long share one connection, because `cancel_with_this_process` sets a parameter of
    // that connection.
    let mut connection = owner.acquire().await?;
    cancel_with_this_process(&mut connection).await?;
    let position = last_position_before(&mut connection, until).await?.ok_or(ExportError::Nothing)?;
    let last_seal = seals::covering(owner, position).await?.ok_or(ExportError::NotSealed)?;
    let exported = last_export(&mut connection).await?;
    let (head, end) =
        exported.as_ref().map_or((Head::NONE, EventPosition::START), |last| (last.head, last.end));
    let written = if last_seal > head.number {
        let partial = file::create_partial(path)?;
        let events = file::write(&mut connection, (head, end), last_seal, &partial, on_progress).await?;
        verify_export(partial.path(), KnownHeads::new(), on_progress)?;
        let written = ExportSummary {
            first_seal: head.number + 1,
            last_seal,
            events,
            file_sha256: file::sha256_of(partial.path())?,
        };
        file::publish(partial, path)?;
        record(&mut connection, &written).await?;
        Some(written)
    } else {
        None
    };

    // This is the export that was just recorded. If there was nothing to write, it is an earlier export, some of whose
    // partitions may not have been dropped yet.
    let export = last_export(&mut connection).await?.ok_or(ExportError::Nothing)?;
    sealing::wait_until_sealed(owner, export.event).await.map_err(|error| match error {
        SealError::Database(error) => ExportError::Database(error),
        error => ExportError::OwnEvent(error.to_string()),
    })?;
    let ended_before = until.min(Utc::now() - TimeDelta::days(i64::from(retention_days)));
    let dropped = partitions::drop_exported(&mut connection, ended_before, export.end).await?;
    connection.release();
    if written.is_none() && dropped.is_empty() {
        return Err(ExportError::Nothing);
    }
    Ok(Export { written, dropped })
}

/// Makes PostgreSQL cancel the connection's statement when this process ends. By default PostgreSQL notices the closed
/// connection only at the end of the statement, so the statement would outlive the command.
async fn cancel_with_this_process(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!("set client_connection_check_interval = '1s'");
    instrument_query("pg_settings.update", statement.execute(connection)).await?;
    Ok(())
}

/// Records an export: its event, and the row that only the schema owner can add.
async fn record(connection: &mut PgConnection, written: &ExportSummary) -> Result<(), sqlx::Error> {
    let event = Event::new(EventType::Audit, "audit_events", "export", EventResult::Success)
        .with("first_seal", written.first_seal)
        .with("last_seal", written.last_seal)
        .with("event_count", written.events)
        .with("file_sha256", written.file_sha256.clone());
    let statement = sqlx::query!(
        r#"
        insert into audit_exports (event_id, first_seal, last_seal, file_sha256)
        select ($1::jsonb ->> 'id')::uuid, $2, $3, $4
        from record_audit_event($1)
        "#,
        event.to_json(),
        written.first_seal,
        written.last_seal,
        written.file_sha256,
    );
    let recorded = instrument_query("audit_exports.insert", statement.execute(connection)).await;
    recorded.inspect_err(|error| failures::count_lost_events(error, 1))?;
    event.log_and_count();
    Ok(())
}

/// The last export that was recorded.
struct LastExport {
    /// The export's last seal.
    head: Head,
    /// The position of that seal's last event.
    end: EventPosition,
    /// The position of the event that records the export.
    event: EventPosition,
}

async fn last_export(connection: &mut PgConnection) -> Result<Option<LastExport>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select
          number, hash, audit_seals.epoch, last_xact_id, last_sequence,
          audit_events.epoch as event_epoch, audit_events.xact_id::text::bigint as "event_xact_id!",
          audit_events.sequence as event_sequence
        from audit_exports
        join audit_seals on number = last_seal
        join audit_events on (recorded_at, id) = (exported_at, event_id)
        order by last_seal desc
        limit 1
        "#
    );
    let Some(row) = instrument_query("audit_exports.last", statement.fetch_optional(connection)).await?
    else {
        return Ok(None);
    };
    Ok(Some(LastExport {
        head: Head::read(row.number, &row.hash)?,
        end: EventPosition { epoch: row.epoch, xact_id: row.last_xact_id, sequence: row.last_sequence },
        event: EventPosition {
            epoch: row.event_epoch,
            xact_id: row.event_xact_id,
            sequence: row.event_sequence,
        },
    }))
}

/// Returns every export that the schema owner has recorded.
pub(super) async fn recorded(connection: &mut PgConnection) -> Result<Vec<ExportRecord>, sqlx::Error> {
    let statement = sqlx::query_as!(
        ExportRecord,
        "select event_id, first_seal, last_seal, file_sha256 from audit_exports order by first_seal"
    );
    instrument_query("audit_exports.select", statement.fetch_all(connection)).await
}

/// Returns the position of the last event that was recorded before a time.
async fn last_position_before(
    connection: &mut PgConnection,
    until: DateTime<Utc>,
) -> Result<Option<EventPosition>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select epoch, xact_id::text::bigint as "xact_id!", sequence
        from audit_events
        where recorded_at < $1
        order by epoch desc, audit_events.xact_id desc, sequence desc
        limit 1
        "#,
        until
    );
    let row = instrument_query("audit_events.last", statement.fetch_optional(connection)).await?;
    Ok(row.map(|row| EventPosition { epoch: row.epoch, xact_id: row.xact_id, sequence: row.sequence }))
}
