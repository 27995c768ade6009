//! Verification: that the trail is what was sealed, and the chain what was logged.
//!
//! It streams: a page of seals and a page of events are in memory, however long the trail is. It trusts nothing
//! that it reads, and changes nothing, but for the event that says it was done.
use std::{
    collections::VecDeque,
    fmt,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    str::FromStr,
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use super::{
    Event, EventResult, EventType,
    canonical::{Place, StoredEvent},
    chain::{Chain, Exported, Exports, KnownHeads, Verdict},
    export, record,
    seals::{self, Head},
};
use crate::database::Database;

/// Seals in one page.
const SEALS: i64 = 50;
/// Events in one page.
const EVENTS: i64 = 5000;
/// Events without a seal that are counted at most.
const TAIL: i64 = 100_000;

/// Why a trail was not found to be whole.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Something does not fit.
    #[error("the trail does not verify: {0}")]
    Wrong(String),
    /// The database is away.
    #[error("the trail cannot be read: {0}")]
    Database(#[from] sqlx::Error),
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl VerifyError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// An export that is kept outside of the database: the file, or its SHA-256 where the file is too far away.
#[derive(Debug, Clone)]
pub enum KeptExport {
    /// A file, which is verified too.
    File(PathBuf),
    /// The SHA-256 that `audit export` printed, in lower-case hexadecimal.
    Sha256(String),
}

impl FromStr for KeptExport {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(if is_hash { Self::Sha256(text.to_ascii_lowercase()) } else { Self::File(text.into()) })
    }
}

/// How far it is: seals and events so far.
pub type OnProgress<'a> = &'a (dyn Fn(i64, u64) + Send + Sync);

/// A trail that is whole.
#[derive(Debug)]
pub struct Report {
    head: Head,
    events: u64,
    exported: u64,
    exports: Vec<Exported>,
    tail: Option<(i64, Option<DateTime<Utc>>)>,
}

impl Report {
    pub(super) fn of(verdict: Verdict) -> Result<Self, VerifyError> {
        let Verdict { head, events, exported, exports, wrong, .. } = verdict;
        match wrong {
            Some(wrong) => Err(VerifyError::Wrong(wrong.to_string())),
            None => Ok(Self { head, events, exported, exports, tail: None }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "the trail verifies: {} events, up to seal {} with hash {}",
            self.events,
            self.head.number,
            hex::encode(self.head.hash)
        )?;
        if self.exported > 0 {
            writeln!(formatter, "{} sealed events are in exports and no longer here", self.exported)?;
        }
        for Exported { first_seal, last_seal, file_sha256, .. } in &self.exports {
            writeln!(
                formatter,
                "exported: seals {first_seal} to {last_seal}, in the file with SHA-256 {file_sha256}"
            )?;
        }
        match self.tail {
            Some((0, _)) => writeln!(formatter, "every event is sealed"),
            Some((count, oldest)) => writeln!(
                formatter,
                "not sealed yet, and so not verified: {count} events, the oldest of {}",
                oldest.map_or_else(|| "an unknown time".to_owned(), |time| time.to_rfc3339())
            ),
            None => Ok(()),
        }
    }
}

/// Verifies the trail in the database, against the heads that were logged if there are any, and records that this was
/// done. Events may be missing only if they are in one of the exports that are given.
///
/// # Errors
/// The first seal and event that do not fit, or what keeps the trail or an export from being read.
pub async fn verify(
    database: &Database,
    heads: KnownHeads,
    kept: &[KeptExport],
    on_progress: OnProgress<'_>,
) -> Result<Report, VerifyError> {
    let verified = verify_database(database, heads, kept, on_progress).await;
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
    kept: &[KeptExport],
    on_progress: OnProgress<'_>,
) -> Result<Report, VerifyError> {
    let mut exports = Exports::default();
    for kept in kept {
        match kept {
            KeptExport::File(path) => export::add_file(path, &mut exports, &mut heads, on_progress)?,
            KeptExport::Sha256(hash) => drop(exports.given.insert(hash.clone())),
        }
    }
    let mut connection = database.acquire().await?;
    exports.recorded = export::recorded(&mut connection).await?;
    let remembered = seals::head(&mut connection).await?;
    let mut chain = Chain::after(Head::NONE, heads);
    let mut events = Events::default();
    let mut number = 0;
    loop {
        let page = seals::page(&mut connection, number, remembered.number, SEALS).await?;
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
    let verdict = chain.finish(&exports);
    let (end, head, logged_beyond) = (verdict.end, verdict.head, verdict.logged_beyond);
    let mut report = Report::of(verdict)?;
    if head != remembered {
        let missing = format!("seal {}: it ended the chain, and is missing", remembered.number);
        return Err(VerifyError::Wrong(missing));
    }
    if let Some(number) = logged_beyond {
        return Err(VerifyError::Wrong(format!("seal {number}: it was logged, and is missing")));
    }
    let tail = seals::tail(&mut connection, end, TAIL).await?;
    report.tail = Some((tail.count, tail.oldest));
    Ok(report)
}

/// Events in the order of their places, a page at a time.
struct Events {
    page: VecDeque<StoredEvent>,
    /// Everything up to here is in the page, or was.
    read: Place,
}

impl Default for Events {
    fn default() -> Self {
        Self { page: VecDeque::new(), read: Place::START }
    }
}

impl Events {
    /// The next event if it stands at or before `last`; pages reach up to `until`.
    async fn next(
        &mut self,
        connection: &mut PgConnection,
        last: Place,
        until: Place,
    ) -> Result<Option<StoredEvent>, sqlx::Error> {
        if self.page.is_empty() && self.read < last {
            let page = seals::events(connection, self.read, until, EVENTS).await?;
            let whole = i64::try_from(page.len()).is_ok_and(|count| count < EVENTS);
            self.read = match page.last() {
                Some(event) if !whole => event.place(),
                _ => until,
            };
            self.page = page.into();
        }
        let is_next = self.page.front().is_some_and(|event| event.place() <= last);
        Ok(if is_next { self.page.pop_front() } else { None })
    }
}

/// Adds the heads in a file of JSON lines, such as a query of the log store gives: whatever has `seal_number` and
/// `seal_hash` is one. Other lines are passed over.
///
/// # Errors
/// When the file cannot be read, or a seal has two hashes.
pub fn read_heads(path: &Path, heads: &mut KnownHeads) -> Result<(), VerifyError> {
    read_lines(path, heads, |_| true)
}

/// Adds the heads in a log of the service as it was written (`LOG_FORMAT=json`, or a file of `LOG_DIRECTORY`): they are
/// in lines of the target `audit`. The last line may be cut off, and what is no JSON is somebody else's.
///
/// # Errors
/// When the file cannot be read, or a seal has two hashes.
pub fn read_log(path: &Path, heads: &mut KnownHeads) -> Result<(), VerifyError> {
    read_lines(path, heads, |line| line.get("target").and_then(Value::as_str) == Some("audit"))
}

fn read_lines(
    path: &Path,
    heads: &mut KnownHeads,
    counts: impl Fn(&Value) -> bool,
) -> Result<(), VerifyError> {
    let file = std::fs::File::open(path).map_err(VerifyError::file(path))?;
    // Bytes, not text: a line that somebody else wrote may be anything.
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(VerifyError::file(path))?;
        let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
        let Some((number, hash)) = counts(&line).then(|| logged_head(&line)).flatten() else { continue };
        add_head(heads, number, &hash)?;
    }
    Ok(())
}

/// Adds a head.
///
/// # Errors
/// The seal is known with another hash.
pub(super) fn add_head(heads: &mut KnownHeads, number: i64, hash: &[u8]) -> Result<(), VerifyError> {
    match heads.insert(number, hash.to_vec()) {
        Some(before) if before != hash => {
            Err(VerifyError::Wrong(format!("seal {number}: it was logged with two hashes")))
        }
        _ => Ok(()),
    }
}

fn logged_head(line: &Value) -> Option<(i64, Vec<u8>)> {
    let hash = hex::decode(line.get("seal_hash")?.as_str()?).ok()?;
    Some((line.get("seal_number")?.as_i64()?, hash))
}
