//! Verification that the audit log is unchanged since it was sealed, and that the chain of seals matches the logged
//! heads. A head is the number and the hash of a seal.
//!
//! Verification keeps only one page of seals and one page of events in memory. It computes every hash again from the
//! events and seals in the database. Only the logged heads reveal a chain that was regenerated as a whole. Verification
//! changes nothing, except that it adds an event about itself.
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::Value;
use sqlx::PgConnection;

use super::{
    Event, EventResult, EventType,
    canonical::{EventPosition, StoredEvent},
    chain::{Chain, Exports, KnownHeads, Restores},
    export, lost_heads, record,
    report::{OnProgress, Report, VerifyError, add_head},
    seals::{self, Head},
};
use crate::database::Database;

/// Number of seals per page.
const SEALS_PER_PAGE: i64 = 50;
/// Number of events per page.
const EVENTS_PER_PAGE: i64 = 5000;
/// Maximum number of unsealed events that the report counts.
const MAX_TAIL_EVENTS: i64 = 100_000;

/// An export that is kept outside of the database: the file, or its SHA-256 if the file is not available.
#[derive(Debug, Clone)]
pub enum ExternalExport {
    /// A file, which is also verified.
    File(PathBuf),
    /// The SHA-256 that `audit export` printed, in lower-case hexadecimal.
    Sha256(String),
}

impl FromStr for ExternalExport {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(if is_hash { Self::Sha256(text.to_ascii_lowercase()) } else { Self::File(text.into()) })
    }
}

/// Verifies the audit log in the database, and compares it with the logged heads. Records the verification as an event.
/// Events may be missing only if one of the given exports contains them, and a row of `audit_exports` and a sealed
/// event confirm that export. Logged seals may be missing only if a row of `audit_restores` and a sealed event confirm
/// the restore that lost them.
///
/// # Errors
/// The chain has a violation (the error names the first one), the audit log or an export cannot be read, or the
/// verification cannot be recorded.
pub async fn verify(
    database: &Database,
    heads: KnownHeads,
    external_exports: &[ExternalExport],
    on_progress: OnProgress<'_>,
) -> Result<Report, VerifyError> {
    let verified = verify_database(database, heads, external_exports, on_progress).await;
    let result = if verified.is_ok() { EventResult::Success } else { EventResult::Failure };
    let event = Event::new(EventType::Audit, "audit_seals", "verify", result);
    let event = match &verified {
        Ok(report) => {
            event.with("head_number", report.head.number).with("head_hash", hex::encode(report.head.hash))
        }
        Err(error) => event.with("finding", error.to_string()),
    };
    record(database, event).await?;
    verified
}

async fn verify_database(
    database: &Database,
    mut heads: KnownHeads,
    external_exports: &[ExternalExport],
    on_progress: OnProgress<'_>,
) -> Result<Report, VerifyError> {
    let mut connection = database.acquire().await?;
    let recorded = export::recorded(&mut connection).await?;
    let mut exports = Exports { recorded, ..Exports::default() };
    let recorded = lost_heads::recorded(&mut connection).await?;
    let mut restores = Restores { recorded, ..Restores::default() };
    for external in external_exports {
        match external {
            ExternalExport::File(path) => {
                export::add_file(path, &mut exports, &mut restores, &mut heads, on_progress)?;
            }
            ExternalExport::Sha256(hash) => drop(exports.given.insert(hash.clone())),
        }
    }
    let stored_head = seals::head(&mut connection).await?;
    let mut chain = Chain::after(Head::NONE, heads);
    let mut events = Events::default();
    let mut number = 0;
    loop {
        let page = seals::page(&mut connection, number, stored_head.number, SEALS_PER_PAGE).await?;
        let Some(last) = page.last() else { break };
        number = last.number;
        let until = last.last();
        for seal in &page {
            chain.seal(seal);
            while let Some(event) = events.next(&mut connection, seal.last(), until).await? {
                chain.event(&event);
            }
        }
        on_progress(number, chain.events());
    }
    let verdict = chain.finish(&exports, &restores);
    let (end, head, logged_beyond) = (verdict.end, verdict.head, verdict.logged_beyond);
    let mut report = Report::of(verdict)?;
    if head != stored_head {
        let number = stored_head.number;
        let violation =
            format!("seal {number}: not the end of the chain, although the database stores it as the head");
        return Err(VerifyError::ChainViolation(violation));
    }
    if let Some(number) = logged_beyond {
        return Err(VerifyError::ChainViolation(format!("seal {number}: missing, although it was logged")));
    }
    let unsealed = seals::count_unsealed(&mut connection, end, MAX_TAIL_EVENTS).await?;
    report.unsealed = Some((unsealed.count, unsealed.oldest));
    Ok(report)
}

/// Events in the order of their positions, read one page at a time.
struct Events {
    page: VecDeque<StoredEvent>,
    /// Position up to which events have been read.
    read: EventPosition,
}

impl Default for Events {
    fn default() -> Self {
        Self { page: VecDeque::new(), read: EventPosition::START }
    }
}

impl Events {
    /// Returns the next event if its position is at or before `last`. After the last event of a page, reads the next
    /// page of events up to `until`.
    async fn next(
        &mut self,
        connection: &mut PgConnection,
        last: EventPosition,
        until: EventPosition,
    ) -> Result<Option<StoredEvent>, sqlx::Error> {
        if self.page.is_empty() && self.read < last {
            let page = seals::events(connection, self.read, until, EVENTS_PER_PAGE).await?;
            let is_last_page = i64::try_from(page.len()).is_ok_and(|count| count < EVENTS_PER_PAGE);
            self.read = match page.last() {
                Some(event) if !is_last_page => event.position(),
                _ => until,
            };
            self.page = page.into();
        }
        let is_next = self.page.front().is_some_and(|event| event.position() <= last);
        Ok(if is_next { self.page.pop_front() } else { None })
    }
}

/// Adds the heads in a file of JSON lines, such as the result of a log store query. Each line with `seal_number` and
/// `seal_hash` has a head. Other lines are ignored.
///
/// # Errors
/// The file cannot be read.
pub fn read_heads(path: &Path, heads: &mut KnownHeads) -> Result<(), VerifyError> {
    read_lines(path, heads, |_| true)
}

/// Adds the heads in a JSON log that the service wrote (`LOG_FORMAT=json`, or a file of `LOG_DIRECTORY`). Heads are in
/// lines of the target `audit`. Other lines, a truncated last line, and lines that are not JSON are ignored.
///
/// # Errors
/// The file cannot be read.
pub fn read_log(path: &Path, heads: &mut KnownHeads) -> Result<(), VerifyError> {
    read_lines(path, heads, |line| line.get("target").and_then(Value::as_str) == Some("audit"))
}

fn read_lines(
    path: &Path,
    heads: &mut KnownHeads,
    is_selected: impl Fn(&Value) -> bool,
) -> Result<(), VerifyError> {
    let file = std::fs::File::open(path).map_err(VerifyError::file(path))?;
    // Lines are read as bytes, because lines of other programs may not be UTF-8.
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(VerifyError::file(path))?;
        let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
        let Some((number, hash)) = is_selected(&line).then(|| logged_head(&line)).flatten() else { continue };
        add_head(heads, number, &hash);
    }
    Ok(())
}

fn logged_head(line: &Value) -> Option<(i64, Vec<u8>)> {
    let hash = hex::decode(line.get("seal_hash")?.as_str()?).ok()?;
    Some((line.get("seal_number")?.as_i64()?, hash))
}
