//! The rules that a whole chain keeps, and the first place where one does not. No I/O: seals and their events are
//! handed in, in order, one at a time.
//!
//! Events may be missing in one case only: the owner recorded an export of them, an export event in the chain says the
//! same, and the file or its hash is given to the verification ([`Exports`]).
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
};

use serde_json::Value;
use uuid::Uuid;

use super::{
    canonical::{GENESIS, Place, Seal, StoredEvent},
    seals::Head,
};

/// Hashes of seals that were written down elsewhere, by their numbers.
pub type KnownHeads = BTreeMap<i64, Vec<u8>>;

/// What does not fit, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    seal: i64,
    event: Option<String>,
    what: Cow<'static, str>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "seal {}", self.seal)?;
        if let Some(event) = &self.event {
            write!(formatter, ", {event}")?;
        }
        write!(formatter, ": {}", self.what)
    }
}

/// An export: which seals are in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exported {
    /// The id of its event.
    pub event_id: Uuid,
    pub first_seal: i64,
    pub last_seal: i64,
    pub file_sha256: String,
}

/// The exports that verification knows of.
#[derive(Debug, Default)]
pub(super) struct Exports {
    /// Those that the owner of the schema has recorded. The service's role can write an event that looks like an export,
    /// but cannot add a record.
    pub recorded: Vec<Exported>,
    /// Those whose events are in files that were given: the events of earlier exports may have left with later ones.
    pub in_files: Vec<Exported>,
    /// The SHA-256 of each file that was given, or was given in place of a file. An administrator of the database can
    /// record any export, but has not the file.
    pub given: BTreeSet<String>,
}

impl Exported {
    /// Reads an export from its event. `None` if the event is of another kind.
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

/// The seal whose events are being looked at.
struct Open {
    number: i64,
    digests: Vec<u8>,
    matched: usize,
    absent: Option<usize>,
}

/// The chain as far as it was looked at.
pub(super) struct Chain {
    heads: KnownHeads,
    head: Head,
    end: Place,
    open: Option<Open>,
    /// Seals with events that are not there, and the first of these.
    absent: Vec<(i64, String)>,
    exports: Vec<Exported>,
    wrong: Option<Wrong>,
    events: u64,
    missing: u64,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The first seal beyond the end whose hash was written down elsewhere: it was there once.
    pub logged_beyond: Option<i64>,
    pub head: Head,
    pub end: Place,
    pub events: u64,
    pub exported: u64,
    /// The recorded exports whose events are in the chain.
    pub exports: Vec<Exported>,
    /// The export events in the chain.
    pub export_events: Vec<Exported>,
    pub wrong: Option<Wrong>,
}

impl Chain {
    /// A chain from its beginning, or from behind a seal that is taken on trust.
    pub(super) fn after(head: Head, heads: KnownHeads) -> Self {
        Self {
            heads,
            head,
            end: Place::START,
            open: None,
            absent: Vec::new(),
            exports: Vec::new(),
            wrong: None,
            events: 0,
            missing: 0,
        }
    }

    /// The last seal that was looked at.
    pub(super) fn head_number(&self) -> i64 {
        self.head.number
    }

    /// Events that were looked at.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    fn fault(&mut self, seal: i64, event: Option<String>, what: &'static str) {
        if self.wrong.is_none() {
            self.wrong = Some(Wrong { seal, event, what: what.into() });
        }
    }

    /// The next seal; its events follow.
    pub(super) fn seal(&mut self, seal: &Seal) {
        self.close();
        let expected = self.head.number + 1;
        if seal.number != expected {
            self.fault(expected, None, "it is missing");
        } else if seal.previous_hash != self.head.hash {
            self.fault(seal.number, None, "it does not continue the seal before it");
        }
        if seal.computed_hash().as_slice() != seal.hash {
            self.fault(seal.number, None, "its content does not have its hash");
        }
        if seal.first() <= self.end || seal.last() < seal.first() {
            self.fault(seal.number, None, "its range does not follow that of the seal before it");
        }
        self.compare(seal.number, &seal.hash);
        self.head = Head { number: seal.number, hash: seal.hash.as_slice().try_into().unwrap_or(GENESIS) };
        self.end = seal.last();
        self.open =
            Some(Open { number: seal.number, digests: seal.digests.clone(), matched: 0, absent: None });
    }

    fn compare(&mut self, number: i64, hash: &[u8]) {
        if self.heads.remove(&number).is_some_and(|known| known != hash) {
            self.fault(number, None, "its hash is not the one that was logged");
        }
    }

    /// The next event of the present seal's range.
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
            self.exports.extend(Exported::from_event(event));
        } else {
            let number = open.number;
            let what = "it is not what was sealed: changed, moved, or slipped in";
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

    /// Nothing follows. Events may be missing if one of `exports` has them; with none, no event may be missing.
    pub(super) fn finish(mut self, exports: &Exports) -> Verdict {
        self.close();
        let is_sealed =
            |export: &&Exported| self.exports.contains(export) || exports.in_files.contains(export);
        let confirmed: Vec<_> = exports.recorded.iter().filter(is_sealed).cloned().collect();
        for (seal, event) in mem::take(&mut self.absent) {
            let has_seal = |export: &&Exported| (export.first_seal..=export.last_seal).contains(&seal);
            let of_seal: Vec<_> = confirmed.iter().filter(has_seal).collect();
            if of_seal.iter().any(|export| exports.given.contains(&export.file_sha256)) {
                continue;
            }
            let what = match of_seal.first() {
                None => Cow::Borrowed("it is missing, and no export has it"),
                Some(Exported { file_sha256, .. }) => Cow::Owned(format!(
                    "it is missing, and the export that has it was not given (SHA-256 {file_sha256})"
                )),
            };
            if self.wrong.as_ref().is_none_or(|wrong| seal < wrong.seal) {
                self.wrong = Some(Wrong { seal, event: Some(event), what });
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
