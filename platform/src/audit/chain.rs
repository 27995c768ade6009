//! The rules of the chain of seals, and the position of the first violation. This module does no I/O: the caller
//! passes seals and their events in order, one at a time.
//!
//! Events may be missing only if three conditions hold. The owner recorded their export, an export event in the chain
//! confirms it, and the verification has the file or its hash ([`Exports`]).
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
};

use serde_json::Value;
use uuid::Uuid;

use super::{
    canonical::{EventPosition, GENESIS, Seal, StoredEvent},
    seals::Head,
};

/// Hashes of seals that were recorded elsewhere, by their numbers.
pub type KnownHeads = BTreeMap<i64, Vec<u8>>;

/// The first violation, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainViolation {
    seal: i64,
    event: Option<String>,
    what: Cow<'static, str>,
}

impl fmt::Display for ChainViolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "seal {}", self.seal)?;
        if let Some(event) = &self.event {
            write!(formatter, ", {event}")?;
        }
        write!(formatter, ": {}", self.what)
    }
}

/// An export: the range of its seals, and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExportRecord {
    /// The id of the export's event.
    pub event_id: Uuid,
    pub first_seal: i64,
    pub last_seal: i64,
    pub file_sha256: String,
}

/// The exports that the verification takes into account.
#[derive(Debug, Default)]
pub(super) struct Exports {
    /// The exports that the schema owner recorded. The service's role can write an event that resembles an export,
    /// but cannot add a record.
    pub recorded: Vec<ExportRecord>,
    /// The exports whose events are in the given files. The events of earlier exports may themselves have been
    /// exported and dropped later.
    pub in_files: Vec<ExportRecord>,
    /// The SHA-256 of each given file, and each SHA-256 that was given instead of a file. A database administrator
    /// can record any export, but does not have the file.
    pub given: BTreeSet<String>,
}

impl ExportRecord {
    /// Reads an export from its event. Returns `None` for an event of another kind.
    pub(super) fn from_event(event: &StoredEvent) -> Option<Self> {
        let is_export = (event.event_type.as_str(), event.action.as_str(), event.result.as_str())
            == ("audit", "export", "success");
        let number = |key| event.metadata.get(key).and_then(Value::as_i64);
        is_export.then_some(())?;
        Some(Self {
            event_id: event.id,
            first_seal: number("first_seal")?,
            last_seal: number("last_seal")?,
            file_sha256: event.metadata.get("file_sha256")?.as_str()?.to_owned(),
        })
    }
}

/// The seal whose events are being checked.
struct Open {
    number: i64,
    digests: Vec<u8>,
    matched: usize,
    absent: Option<usize>,
}

/// The part of the chain that has been checked.
pub(super) struct Chain {
    heads: KnownHeads,
    head: Head,
    end: EventPosition,
    open: Option<Open>,
    /// Seals with missing events, and the first missing event of each.
    absent: Vec<(i64, String)>,
    exports: Vec<ExportRecord>,
    wrong: Option<ChainViolation>,
    events: u64,
    missing: u64,
}

/// The result of the check.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The first seal after the end of the chain whose hash was recorded elsewhere, which proves that the seal
    /// existed.
    pub logged_beyond: Option<i64>,
    pub head: Head,
    pub end: EventPosition,
    pub events: u64,
    pub exported: u64,
    /// The recorded exports whose events are in the chain.
    pub exports: Vec<ExportRecord>,
    /// The export events in the chain.
    pub export_events: Vec<ExportRecord>,
    pub wrong: Option<ChainViolation>,
}

impl Chain {
    /// Starts a check at the beginning of the chain, or after a seal that is trusted.
    pub(super) fn after(head: Head, heads: KnownHeads) -> Self {
        Self {
            heads,
            head,
            end: EventPosition::START,
            open: None,
            absent: Vec::new(),
            exports: Vec::new(),
            wrong: None,
            events: 0,
            missing: 0,
        }
    }

    /// Returns the number of the last checked seal.
    pub(super) fn head_number(&self) -> i64 {
        self.head.number
    }

    /// Returns the number of checked events.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    fn fault(&mut self, seal: i64, event: Option<String>, what: &'static str) {
        if self.wrong.is_none() {
            self.wrong = Some(ChainViolation { seal, event, what: what.into() });
        }
    }

    /// Checks the next seal. Its events follow.
    pub(super) fn seal(&mut self, seal: &Seal) {
        self.close();
        let expected = self.head.number + 1;
        if seal.number != expected {
            self.fault(expected, None, "missing");
        } else if seal.previous_hash != self.head.hash {
            self.fault(seal.number, None, "previous_hash is not the hash of the previous seal");
        }
        if seal.computed_hash().as_slice() != seal.hash {
            self.fault(seal.number, None, "content and hash do not match");
        }
        if seal.first() <= self.end || seal.last() < seal.first() {
            self.fault(seal.number, None, "the range does not follow that of the previous seal");
        }
        self.compare(seal.number, &seal.hash);
        self.head = Head { number: seal.number, hash: seal.hash.as_slice().try_into().unwrap_or(GENESIS) };
        self.end = seal.last();
        self.open =
            Some(Open { number: seal.number, digests: seal.digests.clone(), matched: 0, absent: None });
    }

    fn compare(&mut self, number: i64, hash: &[u8]) {
        if self.heads.remove(&number).is_some_and(|known| known != hash) {
            self.fault(number, None, "the hash differs from the logged one");
        }
    }

    /// Checks the next event in the current seal's range.
    pub(super) fn event(&mut self, event: &StoredEvent) {
        self.events += 1;
        let Some(open) = &mut self.open else { return };
        let digest = event.digest();
        let mut rest = open.digests.chunks_exact(digest.len()).skip(open.matched);
        if let Some(skipped) = rest.position(|known| known == digest) {
            if skipped > 0 {
                open.absent.get_or_insert(open.matched);
                self.missing += u64::try_from(skipped).unwrap_or(u64::MAX);
            }
            open.matched += skipped + 1;
            self.exports.extend(ExportRecord::from_event(event));
        } else {
            let number = open.number;
            let what = "not as sealed: changed, moved or inserted";
            self.fault(number, Some(format!("event {}", event.id)), what);
        }
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let sealed = open.digests.len() / GENESIS.len();
        let first_absent = open.absent.or((open.matched < sealed).then_some(open.matched));
        self.missing += u64::try_from(sealed - open.matched).unwrap_or(u64::MAX);
        if let Some(index) = first_absent {
            self.absent.push((open.number, format!("event {} of {sealed}", index + 1)));
        }
    }

    /// Ends the check. Events may be missing only if one of `exports` contains them.
    pub(super) fn finish(mut self, exports: &Exports) -> Verdict {
        self.close();
        let is_sealed =
            |export: &&ExportRecord| self.exports.contains(export) || exports.in_files.contains(export);
        let confirmed: Vec<_> = exports.recorded.iter().filter(is_sealed).cloned().collect();
        for (seal, event) in mem::take(&mut self.absent) {
            let has_seal = |export: &&ExportRecord| (export.first_seal..=export.last_seal).contains(&seal);
            let of_seal: Vec<_> = confirmed.iter().filter(has_seal).collect();
            if of_seal.iter().any(|export| exports.given.contains(&export.file_sha256)) {
                continue;
            }
            let what = match of_seal.first() {
                None => Cow::Borrowed("missing, and in no export"),
                Some(ExportRecord { file_sha256, .. }) => Cow::Owned(format!(
                    "missing, and in an export that was not given (SHA-256 {file_sha256})"
                )),
            };
            if self.wrong.as_ref().is_none_or(|wrong| seal < wrong.seal) {
                self.wrong = Some(ChainViolation { seal, event: Some(event), what });
            }
            break;
        }
        Verdict {
            logged_beyond: self.heads.keys().copied().find(|number| *number > self.head.number),
            head: self.head,
            end: self.end,
            events: self.events,
            exported: self.missing,
            exports: confirmed,
            export_events: self.exports,
            wrong: self.wrong,
        }
    }
}
