//! Exports: seals and their events in a file that can be verified without the database.
//!
//! The file is gzip over JSON lines: a start line, each seal followed by its events, and an end line. Each export
//! continues where the previous export ended, so all exports together are the complete audit log. The database drops
//! only events that were written, synced, read back and verified. A sealed event must also record that they are in
//! the file.
//!
//! Dropping a partition locks the whole table briefly. So the locks are taken with a short timeout, and only when no
//! older transaction holds a lock. Otherwise every audited write would queue behind that transaction.
use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::{
    Event, EventResult, EventType,
    canonical::{EventPosition, GENESIS, Seal, StoredEvent},
    chain::{Chain, ExportRecord, Exports, KnownHeads, Restores, Verdict},
    failures,
    report::{OnProgress, Report, VerifyError, add_head},
    sealing::{self, SealError},
    seals::{self, Head},
};
use crate::database::{Database, observe};

const FORM: &str = "audit-export/1";

/// Number of seals per page.
const SEALS: i64 = 50;

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum time to wait for other transactions that use a partition to be dropped.
const UNLOCK_TIMEOUT: Duration = Duration::from_mins(1);

/// The error of a failed export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database is unreachable, or rejected a statement.
    #[error("the trail cannot be exported: {0}")]
    Database(#[from] sqlx::Error),
    /// The audit log or the written file does not verify.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// No events were recorded before that time, or all of them are already exported.
    #[error("there is nothing to export: no sealed event before that time that is not in an earlier export")]
    Nothing,
    /// Sealing is behind.
    #[error("events before that time are not sealed yet: try again when `serve` has sealed them")]
    NotSealed,
    /// The export's own event could not be sealed.
    #[error("the export is written, but its own event could not be sealed, so nothing was dropped: {0}")]
    OwnEvent(String),
    /// A partition cannot be locked.
    #[error(
        "the export is written and recorded, but {partition} was not dropped: it is in use by {holder}; run the same command again later"
    )]
    InUse {
        /// The partition.
        partition: String,
        /// The transaction that holds a lock on the audit log.
        holder: String,
    },
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Begin {
        form: String,
        after_seal: i64,
        #[serde(with = "hex::serde")]
        after_hash: [u8; 32],
    },
    Seal(Seal),
    Event(Box<StoredEvent>),
    End {
        last_seal: i64,
        events: u64,
    },
}

/// The result of an export: the written file, and the dropped partitions.
#[derive(Debug)]
pub struct Export {
    /// `None` if all events were in earlier exports.
    pub written: Option<ExportSummary>,
    pub dropped: Vec<String>,
}

/// A file that was written and recorded.
#[derive(Debug)]
pub struct ExportSummary {
    pub first_seal: i64,
    pub last_seal: i64,
    pub events: u64,
    pub file_sha256: String,
}

/// Exports the events that were recorded before `until` and are in no earlier export. Then drops the partitions that
/// ended before `until`, are past the retention, and contain only exported events. Runs as the schema owner.
///
/// # Errors
/// The audit log does not verify, or the file or the database fails: then nothing is dropped. Or a partition is in
/// use: then the partitions before it are dropped, and another call continues with it.
pub async fn export(
    owner: &Database,
    until: DateTime<Utc>,
    retention_days: u32,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<Export, ExportError> {
    let mut connection = owner.acquire().await?;
    cancel_with_this_process(&mut connection).await?;
    let place = last_place_before(&mut connection, until).await?.ok_or(ExportError::Nothing)?;
    let last_seal = seals::covering(&mut connection, place).await?.ok_or(ExportError::NotSealed)?;
    let exported = last_export(&mut connection).await?;
    let (head, end) =
        exported.as_ref().map_or((Head::NONE, EventPosition::START), |last| (last.head, last.end));
    let written = if last_seal > head.number {
        let events = write(&mut connection, (head, end), last_seal, path, on_progress).await?;
        verify_export(path, KnownHeads::new(), on_progress)?;
        let written =
            ExportSummary { first_seal: head.number + 1, last_seal, events, file_sha256: sha256_of(path)? };
        record(&mut connection, &written).await?;
        Some(written)
    } else {
        None
    };

    // The export that was just recorded, or an earlier one whose partitions were in use.
    let export = last_export(&mut connection).await?.ok_or(ExportError::Nothing)?;
    sealing::wait_until_sealed(owner, &mut connection, export.event).await.map_err(|error| match error {
        SealError::Database(error) => ExportError::Database(error),
        error => ExportError::OwnEvent(error.to_string()),
    })?;
    let ended_before = until.min(Utc::now() - TimeDelta::days(i64::from(retention_days)));
    let dropped = drop_partitions(&mut connection, ended_before, export.end).await?;
    connection.release();
    if written.is_none() && dropped.is_empty() {
        return Err(ExportError::Nothing);
    }
    Ok(Export { written, dropped })
}

/// Makes PostgreSQL cancel the connection's statement when this process ends. By default PostgreSQL notices only at
/// the end of the statement, so the statement would outlive the command.
async fn cancel_with_this_process(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!("set client_connection_check_interval = '1s'");
    observe("pg_settings.update", statement.execute(connection)).await?;
    Ok(())
}

/// Records an export: its event, and the row that only the owner can add.
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
    let recorded = observe("audit_exports.insert", statement.execute(connection)).await;
    recorded.inspect_err(|error| failures::count(error, 1))?;
    event.mirror();
    Ok(())
}

/// Writes the seals after `head` up to `last_seal`, with their events, which come after `begins`. Returns the number
/// of events.
async fn write(
    connection: &mut PgConnection,
    (after, mut begins): (Head, EventPosition),
    last_seal: i64,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<u64, ExportError> {
    let refused = |error: io::Error| ExportError::Verify(VerifyError::file(path)(error));
    // Existing files are never overwritten, because one may be the only copy of another export.
    let file = File::create_new(path).map_err(refused)?;
    let mut file = GzEncoder::new(BufWriter::new(file), Compression::default());
    let begin = Line::Begin { form: FORM.to_owned(), after_seal: after.number, after_hash: after.hash };
    write_line(&mut file, &begin).map_err(refused)?;
    let (mut number, mut events) = (after.number, 0);
    loop {
        let page = seals::page(connection, number, last_seal, SEALS).await?;
        let Some(last) = page.last() else { break };
        number = last.number;
        for seal in page {
            let end = seal.last();
            let of_seal = seals::events(connection, begins, end, i64::from(seal.event_count) + 1).await?;
            events += u64::try_from(of_seal.len()).unwrap_or_default();
            write_line(&mut file, &Line::Seal(seal)).map_err(refused)?;
            for event in of_seal {
                write_line(&mut file, &Line::Event(Box::new(event))).map_err(refused)?;
            }
            begins = end;
        }
        on_progress(number, events);
    }
    write_line(&mut file, &Line::End { last_seal, events }).map_err(refused)?;
    let file = file.finish().and_then(|buffer| buffer.into_inner().map_err(io::IntoInnerError::into_error));
    // The data must be on disk, not only in a cache, before the database drops it.
    file.and_then(|file| file.sync_all()).map_err(refused)?;
    Ok(events)
}

fn write_line(file: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
}

fn sha256_of(path: &Path) -> Result<String, VerifyError> {
    let mut hash = Sha256::new();
    let mut file = BufReader::new(File::open(path).map_err(VerifyError::file(path))?);
    loop {
        let read = file.fill_buf().map_err(VerifyError::file(path))?;
        if read.is_empty() {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(read);
        let length = read.len();
        file.consume(length);
    }
}

/// Verifies an export without the database, and against logged heads if there are any. The export before it covers
/// everything before its first seal.
///
/// # Errors
/// The first seal and event that do not verify, or the reason that the file cannot be read.
pub fn verify_export(
    path: &Path,
    heads: KnownHeads,
    on_progress: OnProgress<'_>,
) -> Result<Report, VerifyError> {
    Report::of(verify_file(path, heads, on_progress)?)
}

/// Adds a file that contains events which may be missing from the database. The file is first verified without the
/// database. Its seals must be those of the database, so the hash of its last seal is added to `heads`.
pub(super) fn add_file(
    path: &Path,
    exports: &mut Exports,
    restores: &mut Restores,
    heads: &mut KnownHeads,
    on_progress: OnProgress<'_>,
) -> Result<(), VerifyError> {
    let verdict = verify_file(path, restores.without_lost(heads), on_progress)?;
    if let Some(wrong) = verdict.wrong {
        return Err(VerifyError::ChainViolation(format!("{}: {wrong}", path.display())));
    }
    exports.given.insert(sha256_of(path)?);
    exports.in_files.extend(verdict.export_events);
    restores.in_files.extend(verdict.restore_events);
    add_head(heads, verdict.head.number, &verdict.head.hash);
    Ok(())
}

fn verify_file(path: &Path, heads: KnownHeads, on_progress: OnProgress<'_>) -> Result<Verdict, VerifyError> {
    let file = File::open(path).map_err(VerifyError::file(path))?;
    let mut lines = BufReader::new(MultiGzDecoder::new(BufReader::new(file))).lines().map(|line| {
        let line = line.map_err(VerifyError::file(path))?;
        serde_json::from_str::<Line>(&line).map_err(|error| {
            VerifyError::ChainViolation(format!("a line of the export cannot be read: {error}"))
        })
    });
    let Some(Line::Begin { form, after_seal, after_hash }) = lines.next().transpose()? else {
        return Err(VerifyError::ChainViolation("the file does not begin like an export".to_owned()));
    };
    if form != FORM || (after_seal == 0) != (after_hash == GENESIS) {
        return Err(VerifyError::ChainViolation(
            "the export begins with what this release does not know".to_owned(),
        ));
    }
    let mut chain = Chain::after(Head { number: after_seal, hash: after_hash }, heads);
    while let Some(line) = lines.next().transpose()? {
        match line {
            Line::Begin { .. } => {
                return Err(VerifyError::ChainViolation("the export begins twice".to_owned()));
            }
            Line::Seal(seal) => {
                if seal.number % SEALS == 0 {
                    on_progress(seal.number, chain.events());
                }
                chain.seal(&seal);
            }
            Line::Event(event) => chain.event(&event),
            Line::End { last_seal, events } => {
                let ends = (chain.head_number(), chain.events()) == (last_seal, events);
                return match lines.next() {
                    None if ends => Ok(chain.finish(&Exports::default(), &Restores::default())),
                    _ => Err(VerifyError::ChainViolation("the export does not end where it says".to_owned())),
                };
            }
        }
    }
    Err(VerifyError::ChainViolation("the export has no end: it was cut off".to_owned()))
}

/// The last export that was recorded.
struct LastExport {
    /// The export's last seal.
    head: Head,
    /// The position of that seal's end.
    end: EventPosition,
    /// The position of the export's own event.
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
    let Some(row) = observe("audit_exports.last", statement.fetch_optional(connection)).await? else {
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

/// Returns every export that the owner has recorded.
pub(super) async fn recorded(connection: &mut PgConnection) -> Result<Vec<ExportRecord>, sqlx::Error> {
    let statement = sqlx::query_as!(
        ExportRecord,
        "select event_id, first_seal, last_seal, file_sha256 from audit_exports order by first_seal"
    );
    observe("audit_exports.select", statement.fetch_all(connection)).await
}

/// Returns the position of the last event that was recorded before a time.
async fn last_place_before(
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
    let row = observe("audit_events.last", statement.fetch_optional(connection)).await?;
    Ok(row.map(|row| EventPosition { epoch: row.epoch, xact_id: row.xact_id, sequence: row.sequence }))
}

/// Drops the partitions that ended before a time and whose events all come at or before `end`. Each partition is
/// dropped in its own transaction, which also writes the event of it. Returns the partitions' names.
async fn drop_partitions(
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
    let exported = observe("audit_events.exported", statement.fetch_all(&mut *connection)).await?;
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
        match observe("audit_events.drop", statement.fetch_one(&mut *connection)).await {
            Ok(dropped) => {
                if dropped {
                    event.mirror();
                }
                return Ok(dropped);
            }
            // A transaction that began meanwhile holds a lock for longer than `lock_timeout`. The next attempt waits
            // for it.
            Err(error) if is_lock_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

/// Waits until every transaction that now holds a lock has ended. Does not request a lock, so no other statement
/// queues behind this wait.
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
    observe("pg_locks.select", statement.fetch_all(connection)).await
}
