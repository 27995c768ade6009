//! The gateway's executed charges and refunds, in memory and optionally in a file with one entry per line.
//!
//! A line is written and flushed to the disk before the response to its charge or refund is sent. So every acknowledged
//! charge and refund is in the file after a restart, even after `kill -9`.
//!
//! A charge or refund takes at most 200 bytes of memory, permanently. The request that caused it is stored in the file
//! only. With the traffic of `cargo dev` the ledger in memory grows by less than a megabyte an hour.
use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Seek, SeekFrom, Write},
    ops::RangeInclusive,
    path::PathBuf,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Error,
    charges::{Charge, ChargeStatus, Refund, RefundStatus},
};

/// Every charge and refund, in order of execution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    pub charges: Vec<Charge>,
    pub refunds: Vec<Refund>,
}

/// Counts of a ledger's charges and refunds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub charges_succeeded: usize,
    pub charges_declined: usize,
    /// Number of distinct payments with a successful charge. A number less than `charges_succeeded` means that a
    /// customer paid twice.
    pub payments_charged: usize,
    pub refunds_succeeded: usize,
    pub refunds_failed: usize,
    /// Number of distinct references with a successful refund. A number less than `refunds_succeeded` means that a
    /// refund was executed twice.
    pub refunds_made: usize,
}

impl Ledger {
    /// Returns the charges for the payment with this reference.
    pub fn charges_for(&self, reference: Uuid) -> impl Iterator<Item = &Charge> {
        self.charges.iter().filter(move |charge| charge.reference == reference)
    }

    /// Returns the gateway's refunds for the client's refund with this reference.
    pub fn refunds_for(&self, reference: Uuid) -> impl Iterator<Item = &Refund> {
        self.refunds.iter().filter(move |refund| refund.reference == reference)
    }

    /// Returns the part of the ledger with references in this range.
    pub(super) fn of(&self, references: RangeInclusive<Uuid>) -> Self {
        let charges = self.charges.iter().filter(|charge| references.contains(&charge.reference));
        let refunds = self.refunds.iter().filter(|refund| references.contains(&refund.reference));
        Self { charges: charges.cloned().collect(), refunds: refunds.cloned().collect() }
    }

    pub fn counts(&self) -> Counts {
        let charged = || self.charges.iter().filter(|charge| charge.status == ChargeStatus::Succeeded);
        let refunded = || self.refunds.iter().filter(|refund| refund.status == RefundStatus::Succeeded);
        Counts {
            charges_succeeded: charged().count(),
            charges_declined: self.charges.len() - charged().count(),
            payments_charged: charged().map(|charge| charge.reference).collect::<BTreeSet<_>>().len(),
            refunds_succeeded: refunded().count(),
            refunds_failed: self.refunds.len() - refunded().count(),
            refunds_made: refunded().map(|refund| refund.reference).collect::<BTreeSet<_>>().len(),
        }
    }

    /// Records a charge or refund, and returns its position.
    pub(super) fn record_entry(&mut self, done: LedgerEntry) -> LedgerIndex {
        match done {
            LedgerEntry::Charge(charge) => {
                self.charges.push(charge);
                LedgerIndex::Charge(self.charges.len() - 1)
            }
            LedgerEntry::Refund(refund) => {
                self.refunds.push(refund);
                LedgerIndex::Refund(self.refunds.len() - 1)
            }
        }
    }

    pub(super) fn charge(&self, id: &str) -> Option<&Charge> {
        self.charges.iter().find(|charge| charge.id == id)
    }

    /// Returns the refunded amount of a charge.
    pub(super) fn refunded_amount(&self, charge_id: &str) -> i64 {
        self.refunds
            .iter()
            .filter(|refund| refund.charge_id == charge_id && refund.status == RefundStatus::Succeeded)
            .map(|refund| refund.amount)
            .sum()
    }
}

/// A client's request with its idempotency key. A request with another path or body is a different request, even with
/// the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyedRequest {
    pub(super) key: String,
    pub(super) path: String,
    /// The body, byte for byte.
    pub(super) body: String,
}

impl KeyedRequest {
    pub(super) fn digest(&self) -> [u8; 32] {
        // A path contains no newline, so path and body cannot be confused.
        Sha256::new().chain_update(&self.path).chain_update("\n").chain_update(&self.body).finalize().into()
    }
}

/// One line of the ledger's file: a charge or refund, its time, and the request that caused it. The request's
/// idempotency key must survive a restart, because otherwise a retry after the restart would charge again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) at: DateTime<Utc>,
    /// `None` for an entry that a test recorded without a request.
    pub(super) keyed: Option<KeyedRequest>,
    pub(super) done: LedgerEntry,
}

/// A charge or a refund.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LedgerEntry {
    Charge(Charge),
    Refund(Refund),
}

/// The position of an entry in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LedgerIndex {
    Charge(usize),
    Refund(usize),
}

/// The ledger's file.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Length of all complete lines, in bytes.
    length: u64,
}

impl Journal {
    /// Opens or creates the file, and calls `add` with its entries in order. An incomplete last line is removed,
    /// because the process ended while it wrote this line, and sent no response. Any other damage is an error.
    pub(super) fn open(path: PathBuf, mut add: impl FnMut(Entry)) -> Result<Self, Error> {
        let unusable = |source| Error::LedgerFile { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut reader = BufReader::new(file.map_err(unusable)?);
        let (mut complete_bytes, mut line) = (0_u64, Vec::new());
        for number in 1.. {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(unusable)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            complete_bytes += line.len() as u64;
            let damaged = |source| Error::LedgerLine { path: path.clone(), line: number, source };
            add(serde_json::from_slice(&line).map_err(damaged)?);
        }
        let mut file = reader.into_inner();
        file.set_len(complete_bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(unusable)?;
        Ok(Self { path, file, length: complete_bytes })
    }

    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), Error> {
        let mut line = serde_json::to_string(entry)?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // Otherwise the next line would continue a line that was written partially, for example to a full disk.
            self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::End(0))).ok();
        } else {
            self.length += line.len() as u64;
        }
        written.map_err(|source| Error::LedgerFile { path: self.path.clone(), source })
    }
}
