//! The result of a verification: a report, or the first error.
use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};

use super::{
    chain::{AcknowledgedRestore, ExportRecord, KnownHeads, Verdict},
    seals::Head,
};

/// The error of a failed verification.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The audit log or a file violates a rule.
    #[error("the audit log does not verify: {0}")]
    ChainViolation(String),
    /// The database is unreachable, or a statement failed.
    #[error("failed to read the audit log: {0}")]
    Database(#[from] sqlx::Error),
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl VerifyError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// A callback for the progress of an export or a verification. The arguments are the number of the last seal that was
/// written or checked, and the number of events up to then.
pub type OnProgress<'a> = &'a (dyn Fn(i64, u64) + Send + Sync);

/// The report of a successful verification.
#[derive(Debug)]
pub struct Report {
    pub(super) head: Head,
    events: u64,
    exported: u64,
    exports: Vec<ExportRecord>,
    restores: Vec<AcknowledgedRestore>,
    pub(super) unsealed: Option<(i64, Option<DateTime<Utc>>)>,
}

impl Report {
    pub(super) fn of(verdict: Verdict) -> Result<Self, VerifyError> {
        let Verdict { head, events, exported, exports, restores, violation, .. } = verdict;
        match violation {
            Some(violation) => Err(VerifyError::ChainViolation(violation.to_string())),
            None => Ok(Self { head, events, exported, exports, restores, unsealed: None }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "the audit log verifies: {} events, up to seal {} with hash {}",
            self.events,
            self.head.number,
            hex::encode(self.head.hash)
        )?;
        if self.exported > 0 {
            writeln!(formatter, "{} sealed events are in exports only", self.exported)?;
        }
        for ExportRecord { first_seal, last_seal, file_sha256, .. } in &self.exports {
            writeln!(
                formatter,
                "exported: seals {first_seal} to {last_seal}, in the file with SHA-256 {file_sha256}"
            )?;
        }
        for AcknowledgedRestore { recorded_at, reason, lost } in &self.restores {
            write!(formatter, "restored: ")?;
            match lost {
                Some((first, last)) => write!(formatter, "seals {first} to {last} were logged and are lost")?,
                None => write!(formatter, "no logged seal is lost")?,
            }
            writeln!(formatter, "; acknowledged at {}: {reason}", recorded_at.to_rfc3339())?;
        }
        match self.unsealed {
            Some((0, _)) => writeln!(formatter, "every event is sealed"),
            Some((count, oldest)) => writeln!(
                formatter,
                "not sealed yet, so not verified: {count} events, the oldest from {}",
                oldest.map_or_else(|| "an unknown time".to_owned(), |time| time.to_rfc3339())
            ),
            None => Ok(()),
        }
    }
}

/// Adds the hash of a seal to the known heads.
pub(super) fn add_head(heads: &mut KnownHeads, number: i64, hash: &[u8]) {
    heads.entry(number).or_default().insert(hash.to_vec());
}
