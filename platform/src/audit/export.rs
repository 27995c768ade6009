//! Exports: seals and their events in a file that can be verified without the database.
//!
//! The file is gzip over lines of JSON: where it begins, each seal followed by its events, and where it ends. Each
//! export goes on where the one before ended, so that all of them together are the trail. What the database then
//! lets go of is what was written, synced, read back and verified, and what a sealed event says is in that file.
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
    canonical::{GENESIS, Place, Seal, StoredEvent},
    chain::{Chain, KnownHeads},
    record_with, sealing,
    seals::{self, Head},
    verify::{OnProgress, Report, VerifyError},
};
use crate::database::{Database, observe};

const FORM: &str = "audit-export/1";

/// Seals in one page.
const SEALS: i64 = 50;

/// How long the export's own event may take to be sealed.
const UNTIL_SEALED: Duration = Duration::from_mins(1);
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database is away, or refused.
    #[error("the trail cannot be exported: {0}")]
    Database(#[from] sqlx::Error),
    /// What was read, or what was written, does not verify.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Nothing was recorded before that time, or everything of it is exported already.
    #[error("there is nothing to export: no sealed event before that time that is not in an earlier export")]
    Nothing,
    /// Sealing is behind.
    #[error("events before that time are not sealed yet: try again when `serve` has sealed them")]
    NotSealed,
    /// The export's own event could not be sealed.
    #[error("the export is written, but its own event could not be sealed, so nothing was dropped: {0}")]
    OwnEvent(String),
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

/// What was exported, and what left the database.
#[derive(Debug)]
pub struct Export {
    pub first_seal: i64,
    pub last_seal: i64,
    pub events: u64,
    pub file_sha256: String,
    pub dropped: Vec<String>,
}

/// Exports every event that was recorded before `until` and is in no earlier export, and then drops the partitions
/// that ended before `until` and are past the retention. As the owner.
///
/// # Errors
/// When the trail does not verify, or the file or the database refuses. Nothing is dropped then.
pub async fn export(
    owner: &Database,
    until: DateTime<Utc>,
    retention_days: u32,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<Export, ExportError> {
    let mut connection = owner.acquire().await?;
    let after = exported_until(&mut connection).await?;
    let place = last_place_before(&mut connection, until).await?.ok_or(ExportError::Nothing)?;
    let last_seal = seal_that_covers(&mut connection, place).await?.ok_or(ExportError::NotSealed)?;
    if last_seal <= after.number {
        return Err(ExportError::Nothing);
    }
    let written = write(&mut connection, after, last_seal, path, on_progress).await?;
    verify_export(path, KnownHeads::new(), on_progress)?;
    let file_sha256 = sha256_of(path)?;

    let event = Event::new(EventType::Audit, "audit_events", "export", EventResult::Success)
        .with("first_seal", after.number + 1)
        .with("last_seal", last_seal)
        .with("event_count", written.events)
        .with("file_sha256", file_sha256.clone());
    record_with(&mut connection, event).await?.committed();
    let own_place = newest_export(&mut connection).await?;
    wait_until_sealed(owner, &mut connection, own_place).await?;
    drop(connection);

    let ended_before = until.min(Utc::now() - TimeDelta::days(i64::from(retention_days)));
    let dropped = drop_partitions(owner, ended_before, written.end).await?;
    Ok(Export { first_seal: after.number + 1, last_seal, events: written.events, file_sha256, dropped })
}

struct Written {
    events: u64,
    end: Place,
}

async fn write(
    connection: &mut PgConnection,
    after: Head,
    last_seal: i64,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<Written, ExportError> {
    let refused = |error: io::Error| ExportError::Verify(VerifyError::file(path)(error));
    // Never over a file that may be the only copy of another export.
    let file = File::create_new(path).map_err(refused)?;
    let mut file = GzEncoder::new(BufWriter::new(file), Compression::default());
    let begin = Line::Begin { form: FORM.to_owned(), after_seal: after.number, after_hash: after.hash };
    write_line(&mut file, &begin).map_err(refused)?;
    let mut begins = match seals::page(connection, after.number - 1, after.number, 1).await?.first() {
        Some(seal) => seal.last(),
        None => Place::START,
    };
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
    // What the database lets go of afterwards must not be in a cache only.
    file.and_then(|file| file.sync_all()).map_err(refused)?;
    Ok(Written { events, end: begins })
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

/// Verifies an export by itself, against the heads that were logged if there are any. What comes before its first
/// seal is the business of the export before it.
///
/// # Errors
/// The first seal and event that do not fit, or what keeps the file from being read.
pub fn verify_export(
    path: &Path,
    heads: KnownHeads,
    on_progress: OnProgress<'_>,
) -> Result<Report, VerifyError> {
    let file = File::open(path).map_err(VerifyError::file(path))?;
    let mut lines = BufReader::new(MultiGzDecoder::new(BufReader::new(file))).lines().map(|line| {
        let line = line.map_err(VerifyError::file(path))?;
        serde_json::from_str::<Line>(&line)
            .map_err(|error| VerifyError::Wrong(format!("a line of the export cannot be read: {error}")))
    });
    let Some(Line::Begin { form, after_seal, after_hash }) = lines.next().transpose()? else {
        return Err(VerifyError::Wrong("the file does not begin like an export".to_owned()));
    };
    if form != FORM || (after_seal == 0) != (after_hash == GENESIS) {
        return Err(VerifyError::Wrong("the export begins with what this release does not know".to_owned()));
    }
    let mut chain = Chain::after(Head { number: after_seal, hash: after_hash }, heads);
    while let Some(line) = lines.next().transpose()? {
        match line {
            Line::Begin { .. } => return Err(VerifyError::Wrong("the export begins twice".to_owned())),
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
                    None if ends => Report::of(chain.finish_without_exports()),
                    _ => Err(VerifyError::Wrong("the export does not end where it says".to_owned())),
                };
            }
        }
    }
    Err(VerifyError::Wrong("the export has no end: it was cut off".to_owned()))
}

/// The last seal that is in an export.
async fn exported_until(connection: &mut PgConnection) -> Result<Head, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select max((metadata ->> 'last_seal')::bigint)
        from audit_events
        where event_type = 'audit' and resource = 'audit_events' and action = 'export' and result = 'success'
        "#
    );
    let number = observe("audit_events.exports", statement.fetch_one(&mut *connection)).await?.unwrap_or(0);
    let hash = seals::hash_of(connection, number).await?;
    let hash = hash.and_then(|hash| hash.try_into().ok());
    Ok(hash.map_or(Head::NONE, |hash| Head { number, hash }))
}

/// The last place of an event that was recorded before a time.
async fn last_place_before(
    connection: &mut PgConnection,
    until: DateTime<Utc>,
) -> Result<Option<Place>, sqlx::Error> {
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
    Ok(row.map(|row| Place { epoch: row.epoch, xact_id: row.xact_id, sequence: row.sequence }))
}

/// The seal whose range has a place in it, if there is one already.
async fn seal_that_covers(connection: &mut PgConnection, place: Place) -> Result<Option<i64>, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select number
        from audit_seals
        where (epoch, last_xact_id, last_sequence) >= ($1, $2, $3)
        order by number
        limit 1
        "#,
        place.epoch,
        place.xact_id,
        place.sequence,
    );
    observe("audit_seals.covering", statement.fetch_optional(connection)).await
}

/// Where the newest event of an export stands.
async fn newest_export(connection: &mut PgConnection) -> Result<Place, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select epoch, xact_id::text::bigint as "xact_id!", sequence
        from audit_events
        where event_type = 'audit' and resource = 'audit_events' and action = 'export'
        order by recorded_at desc, id desc
        limit 1
        "#
    );
    let row = observe("audit_events.newest_export", statement.fetch_one(connection)).await?;
    Ok(Place { epoch: row.epoch, xact_id: row.xact_id, sequence: row.sequence })
}

/// Seals until a place is covered, beside the service that may be doing the same.
async fn wait_until_sealed(
    owner: &Database,
    connection: &mut PgConnection,
    place: Place,
) -> Result<(), ExportError> {
    let deadline = tokio::time::Instant::now() + UNTIL_SEALED;
    while seal_that_covers(connection, place).await?.is_none() {
        if tokio::time::Instant::now() >= deadline {
            let writer = seals::oldest_writer(connection).await?;
            let writer = writer.unwrap_or_else(|| "nobody".to_owned());
            return Err(ExportError::OwnEvent(format!("the oldest transaction that writes is of {writer}")));
        }
        let sealed = sealing::seal_next(owner).await;
        let sealed = sealed.map_err(|error| ExportError::OwnEvent(error.to_string()))?;
        if sealed.is_none_or(|sealed| !sealed.more) {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
    Ok(())
}

async fn drop_partitions(
    owner: &Database,
    ended_before: DateTime<Utc>,
    end: Place,
) -> Result<Vec<String>, sqlx::Error> {
    let mut transaction = owner.begin().await?;
    let statement = sqlx::query_scalar!(
        r#"select drop_exported_audit_partitions($1, $2, $3::text::xid8, $4) as "name!""#,
        ended_before,
        end.epoch,
        end.xact_id.to_string(),
        end.sequence,
    );
    let dropped = observe("audit_events.drop", statement.fetch_all(&mut *transaction)).await?;
    if dropped.is_empty() {
        return Ok(dropped);
    }
    let event = Event::new(EventType::Audit, "audit_events", "drop_partitions", EventResult::Success)
        .with("partitions", dropped.clone());
    let recorded = record_with(&mut transaction, event).await?;
    transaction.commit().await?;
    recorded.committed();
    Ok(dropped)
}
