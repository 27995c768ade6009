//! The rules of the chain of seals, and a check that reports the position of the first violation. A seal has the
//! digests of a range of events, and the hash of the previous seal. This module does no I/O: the caller passes seals
//! and their events in order, one at a time.
//!
//! Events may be missing only if three conditions hold. The schema owner recorded their export, a sealed export event
//! confirms that record, and the caller gave the exported file or its hash ([`Exports`]).
//!
//! A logged seal is one whose hash is also in the service's log. Logged seals may be missing only after a restore of
//! the database. The schema owner must have recorded these seals as lost, and a sealed event must confirm that record
//! ([`Restores`]).
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{
    canonical::{EventPosition, GENESIS, Seal, StoredEvent, digest_of_heads},
    seals::Head,
};

/// Heads that were recorded outside of the database. A head is the number and the hash of a seal that is, or was, the
/// last seal of the chain. A number may have several hashes, because after a restore of the database a new seal gets
/// the number of a lost seal.
pub type KnownHeads = BTreeMap<i64, BTreeSet<Vec<u8>>>;

/// The first violation, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainViolation {
    seal: i64,
    event: Option<String>,
    finding: Cow<'static, str>,
}

impl fmt::Display for ChainViolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "seal {}", self.seal)?;
        if let Some(event) = &self.event {
            write!(formatter, ", {event}")?;
        }
        write!(formatter, ": {}", self.finding)
    }
}

/// An export: its event, the range of its seals, and the SHA-256 of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExportRecord {
    /// The id of the export's event.
    pub event_id: Uuid,
    pub first_seal: i64,
    pub last_seal: i64,
    pub file_sha256: String,
}

/// The exports that may explain missing events.
#[derive(Debug, Default)]
pub(super) struct Exports {
    /// The exports that the schema owner recorded. The service's database role can write a false export event, but
    /// cannot add a record.
    pub recorded: Vec<ExportRecord>,
    /// The exports whose export events are in the given files. The export event of an earlier export may be in a later
    /// export, and no longer in the database.
    pub in_files: Vec<ExportRecord>,
    /// The SHA-256 of each given file, and each SHA-256 that was given instead of a file. A database administrator can
    /// record an export that never happened, but cannot provide a file of it.
    pub given: BTreeSet<String>,
}

impl ExportRecord {
    /// Reads an export from its export event. Returns `None` for any other event.
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

/// The restores of the database that may explain missing seals.
#[derive(Debug, Default)]
pub(super) struct Restores {
    /// The restores that the schema owner recorded. The service's database role can write a false restore event, but
    /// cannot add a record.
    pub recorded: Vec<RestoreRecord>,
    /// The restores whose events are in the given files of exports.
    pub in_files: Vec<RestoreEvent>,
}

/// A restore that the schema owner recorded: the seals that were logged and then lost.
#[derive(Debug)]
pub(super) struct RestoreRecord {
    /// The id of the restore's event.
    pub event_id: Uuid,
    pub lost_heads: BTreeSet<(i64, Vec<u8>)>,
}

/// The event of a restore.
#[derive(Debug, Clone)]
pub(super) struct RestoreEvent {
    pub id: Uuid,
    pub recorded_at: DateTime<Utc>,
    pub reason: String,
    pub lost_heads_sha256: String,
}

/// A restore that is recorded, and confirmed by a sealed event.
#[derive(Debug)]
pub(super) struct AcknowledgedRestore {
    pub recorded_at: DateTime<Utc>,
    pub reason: String,
    /// The numbers of the first and the last logged seal that are lost.
    pub lost: Option<(i64, i64)>,
}

impl RestoreEvent {
    /// Reads a restore from its event. Returns `None` for any other event.
    fn from_event(event: &StoredEvent) -> Option<Self> {
        let is_restore = (event.event_type.as_str(), event.action.as_str(), event.result.as_str())
            == ("audit", "restore", "success");
        let text = |key| event.metadata.get(key).and_then(Value::as_str).map(str::to_owned);
        is_restore.then_some(())?;
        Some(Self {
            id: event.id,
            recorded_at: event.recorded_at,
            reason: text("reason")?,
            lost_heads_sha256: text("lost_heads_sha256")?,
        })
    }
}

impl RestoreRecord {
    /// Returns the SHA-256 of the lost heads, in lower-case hexadecimal.
    pub(super) fn digest(&self) -> String {
        hex::encode(digest_of_heads(self.lost_heads.iter().map(|(number, hash)| (*number, hash.as_slice()))))
    }
}

impl Restores {
    /// Returns the heads that no recorded restore lists as lost.
    pub(super) fn without_lost(&self, heads: &KnownHeads) -> KnownHeads {
        let is_lost = |number: i64, hash: &[u8]| {
            self.recorded.iter().any(|restore| restore.lost_heads.contains(&(number, hash.to_vec())))
        };
        let kept = heads.iter().map(|(number, hashes)| {
            (*number, hashes.iter().filter(|hash| !is_lost(*number, hash)).cloned().collect::<BTreeSet<_>>())
        });
        kept.filter(|(_, hashes)| !hashes.is_empty()).collect()
    }

    /// Returns the recorded restores that an event confirms. The event is in `sealed` or in a given file. The event
    /// must have the recorded id and the hash of the recorded list of lost heads.
    fn acknowledged(&self, sealed: &[RestoreEvent]) -> Vec<(&RestoreRecord, AcknowledgedRestore)> {
        let confirmed = self.recorded.iter().filter_map(|record| {
            let digest = record.digest();
            let event = sealed
                .iter()
                .chain(&self.in_files)
                .find(|event| event.id == record.event_id && event.lost_heads_sha256 == digest)?;
            let ends = record.lost_heads.first().zip(record.lost_heads.last());
            let acknowledged = AcknowledgedRestore {
                recorded_at: event.recorded_at,
                reason: event.reason.clone(),
                lost: ends.map(|((first, _), (last, _))| (*first, *last)),
            };
            Some((record, acknowledged))
        });
        confirmed.collect()
    }
}

/// The seal whose events are being checked. `matched` is the number of its digests that matched an event, or were
/// skipped because their event is missing. `absent` is the index of the first missing event.
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
    restores: Vec<RestoreEvent>,
    /// The seals of the chain whose numbers were logged.
    logged: Vec<LoggedSeal>,
    violation: Option<ChainViolation>,
    events: u64,
    missing: u64,
}

/// A seal of the chain whose number was logged.
struct LoggedSeal {
    number: i64,
    /// True if the hash in the chain is one of the hashes that were logged for this number. `others` are the logged
    /// hashes that differ from the hash in the chain.
    is_hash_logged: bool,
    others: BTreeSet<Vec<u8>>,
}

/// The result of the check.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The number of the first logged seal beyond the end of the chain, except for seals that a restore has lost. The
    /// logged hash proves that the seal existed. So seals were removed from the database, or, if the seals were read from
    /// the file of an export, this file ends before that seal.
    pub logged_beyond: Option<i64>,
    pub head: Head,
    pub end: EventPosition,
    pub events: u64,
    pub exported: u64,
    /// The recorded exports whose export events are in the chain or in a given file.
    pub exports: Vec<ExportRecord>,
    /// The export events in the chain.
    pub export_events: Vec<ExportRecord>,
    /// The recorded restores whose events are in the chain or in a given file.
    pub restores: Vec<AcknowledgedRestore>,
    /// The restore events in the chain.
    pub restore_events: Vec<RestoreEvent>,
    pub violation: Option<ChainViolation>,
}

impl Chain {
    /// Starts a check after `head`, which is either the beginning of the chain or a trusted seal.
    pub(super) fn after(head: Head, heads: KnownHeads) -> Self {
        Self {
            heads,
            head,
            end: EventPosition::START,
            open: None,
            absent: Vec::new(),
            exports: Vec::new(),
            restores: Vec::new(),
            logged: Vec::new(),
            violation: None,
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

    fn record_violation(&mut self, seal: i64, event: Option<String>, finding: &'static str) {
        if self.violation.is_none() {
            self.violation = Some(ChainViolation { seal, event, finding: finding.into() });
        }
    }

    /// Checks the next seal. The caller then passes the seal's events to [`Self::event`].
    pub(super) fn seal(&mut self, seal: &Seal) {
        self.close();
        let expected = self.head.number + 1;
        if seal.number != expected {
            self.record_violation(expected, None, "missing");
        } else if seal.previous_hash != self.head.hash {
            self.record_violation(seal.number, None, "previous_hash is not the hash of the previous seal");
        }
        if seal.computed_hash().as_slice() != seal.hash {
            self.record_violation(seal.number, None, "content and hash do not match");
        }
        if seal.first() <= self.end || seal.last() < seal.first() {
            self.record_violation(
                seal.number,
                None,
                "the range of its events does not follow the range of the previous seal",
            );
        }
        self.compare_with_logged(seal.number, &seal.hash);
        self.head = Head { number: seal.number, hash: seal.hash.as_slice().try_into().unwrap_or(GENESIS) };
        self.end = seal.last();
        self.open =
            Some(Open { number: seal.number, digests: seal.digests.clone(), matched: 0, absent: None });
    }

    fn compare_with_logged(&mut self, number: i64, hash: &[u8]) {
        if let Some(mut others) = self.heads.remove(&number) {
            let is_hash_logged = others.remove(hash);
            self.logged.push(LoggedSeal { number, is_hash_logged, others });
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
            self.restores.extend(RestoreEvent::from_event(event));
        } else {
            let number = open.number;
            let finding = "not as sealed: changed, moved or inserted";
            self.record_violation(number, Some(format!("event {}", event.id)), finding);
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

    /// Records a violation, unless a violation in the same or in an earlier seal is already recorded.
    fn record_earliest_violation(&mut self, seal: i64, event: Option<String>, finding: Cow<'static, str>) {
        if self.violation.as_ref().is_none_or(|violation| seal < violation.seal) {
            self.violation = Some(ChainViolation { seal, event, finding });
        }
    }

    /// Ends the check. Events may be missing only if one of `exports` contains them. Logged seals may be missing only
    /// if one of `restores` has lost them.
    pub(super) fn finish(mut self, exports: &Exports, restores: &Restores) -> Verdict {
        self.close();
        let acknowledged = restores.acknowledged(&self.restores);
        let are_lost = |number: i64, hashes: &BTreeSet<Vec<u8>>| {
            let is_lost = |hash: &Vec<u8>| {
                acknowledged.iter().any(|(record, _)| record.lost_heads.contains(&(number, hash.clone())))
            };
            hashes.iter().all(is_lost)
        };
        let logged = mem::take(&mut self.logged);
        if let Some(seal) = logged.iter().find(|seal| !are_lost(seal.number, &seal.others)) {
            let finding = if seal.is_hash_logged {
                "it was logged with two hashes"
            } else {
                "the hash differs from the logged one"
            };
            self.record_earliest_violation(seal.number, None, finding.into());
        }
        let mut beyond = self.heads.iter().filter(|(number, _)| **number > self.head.number);
        let logged_beyond = beyond.find(|(number, hashes)| !are_lost(**number, hashes));
        let logged_beyond = logged_beyond.map(|(number, _)| *number);
        let is_sealed =
            |export: &&ExportRecord| self.exports.contains(export) || exports.in_files.contains(export);
        let confirmed: Vec<_> = exports.recorded.iter().filter(is_sealed).cloned().collect();
        for (seal, event) in mem::take(&mut self.absent) {
            let has_seal = |export: &&ExportRecord| (export.first_seal..=export.last_seal).contains(&seal);
            let exports_of_seal: Vec<_> = confirmed.iter().filter(has_seal).collect();
            if exports_of_seal.iter().any(|export| exports.given.contains(&export.file_sha256)) {
                continue;
            }
            let finding = match exports_of_seal.first() {
                None => Cow::Borrowed("missing, and in no export"),
                Some(ExportRecord { file_sha256, .. }) => Cow::Owned(format!(
                    "missing, and in an export that was not given (SHA-256 {file_sha256})"
                )),
            };
            self.record_earliest_violation(seal, Some(event), finding);
            break;
        }
        Verdict {
            logged_beyond,
            head: self.head,
            end: self.end,
            events: self.events,
            exported: self.missing,
            exports: confirmed,
            export_events: self.exports,
            restores: acknowledged.into_iter().map(|(_, acknowledged)| acknowledged).collect(),
            restore_events: self.restores,
            violation: self.violation,
        }
    }
}
