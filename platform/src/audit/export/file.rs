//! The file of an export: JSON lines, compressed with gzip. The first line is a header. Then each seal is followed by
//! its events. The last line states the number of the last seal and the number of events.
use std::{
    ffi::OsString,
    fs::{File, Permissions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use tempfile::NamedTempFile;

use super::{
    super::{
        canonical::{EventPosition, GENESIS, Seal, StoredEvent},
        chain::{Chain, Exports, KnownHeads, Restores, Verdict},
        report::{OnProgress, Report, VerifyError, add_head},
        seals::{self, Head},
    },
    ExportError,
};

const FORMAT: &str = "audit-export/1";

/// Number of seals that one query reads. Writing and verification report their progress after as many seals.
const SEALS_PER_PAGE: i64 = 50;

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

/// Creates a file with another name in the directory of `path`. The file is written and verified under this name, and
/// [`publish`] then renames the file to `path`. So an interrupted export leaves no truncated file at `path`, and the
/// same command can be repeated.
pub(super) fn create_partial(path: &Path) -> Result<NamedTempFile, VerifyError> {
    let create = || {
        // `publish` also rejects an existing file, but only after the whole export is written.
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut prefix = path.file_name().map(OsString::from).unwrap_or_default();
        prefix.push(".");
        tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory_of(path))
    };
    create().map_err(VerifyError::file(path))
}

/// Renames a complete file to `path`. An existing file is never overwritten, because it may be the only copy of another
/// export.
pub(super) fn publish(partial: NamedTempFile, path: &Path) -> Result<(), VerifyError> {
    let renamed = partial.persist_noclobber(path).map_err(|error| error.error);
    // The new name must be on disk, not only in a cache, before the database drops the exported events.
    renamed.and_then(|_| File::open(directory_of(path))?.sync_all()).map_err(VerifyError::file(path))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the seals after the seal `after` up to `last_seal`, with their events. `position` is the position of the last
/// event of the seal `after`. Returns the number of events.
pub(super) async fn write(
    connection: &mut PgConnection,
    (after, mut position): (Head, EventPosition),
    last_seal: i64,
    partial: &NamedTempFile,
    on_progress: OnProgress<'_>,
) -> Result<u64, ExportError> {
    let file_error = |error: io::Error| VerifyError::file(partial.path())(error);
    let mut file = GzEncoder::new(BufWriter::new(partial.as_file()), Compression::default());
    let begin = Line::Begin { form: FORMAT.to_owned(), after_seal: after.number, after_hash: after.hash };
    write_line(&mut file, &begin).map_err(file_error)?;
    let (mut number, mut events) = (after.number, 0);
    loop {
        let page = seals::page(connection, number, last_seal, SEALS_PER_PAGE).await?;
        let Some(last) = page.last() else { break };
        number = last.number;
        for seal in page {
            let end = seal.last();
            let seal_events =
                seals::events(connection, position, end, i64::from(seal.event_count) + 1).await?;
            events += u64::try_from(seal_events.len()).unwrap_or_default();
            write_line(&mut file, &Line::Seal(seal)).map_err(file_error)?;
            for event in seal_events {
                write_line(&mut file, &Line::Event(Box::new(event))).map_err(file_error)?;
            }
            position = end;
        }
        on_progress(number, events);
    }
    write_line(&mut file, &Line::End { last_seal, events }).map_err(file_error)?;
    let file = file.finish().and_then(|buffer| buffer.into_inner().map_err(io::IntoInnerError::into_error));
    // The contents must be on disk, not only in a cache, before the database drops the exported events.
    file.and_then(File::sync_all).map_err(file_error)?;
    Ok(events)
}

fn write_line(file: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
}

pub(super) fn sha256_of(path: &Path) -> Result<String, VerifyError> {
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

/// Verifies the file of an export without the database, and compares its seals with `heads`. Trusts the hash of the
/// previous seal in the file's header, because that seal is in an earlier export.
///
/// # Errors
/// The export violates a rule (the error states the first violation), or the file cannot be read.
pub fn verify_export(
    path: &Path,
    heads: KnownHeads,
    on_progress: OnProgress<'_>,
) -> Result<Report, VerifyError> {
    Report::of(verify_file(path, heads, on_progress)?)
}

/// Verifies the file of an export without the database. Adds the file's SHA-256 and export events to `exports`, and its
/// restore events to `restores`. Adds the hash of the file's last seal to `heads`, so that the verification of the
/// database detects a file whose seals differ from those in the database.
pub fn add_file(
    path: &Path,
    exports: &mut Exports,
    restores: &mut Restores,
    heads: &mut KnownHeads,
    on_progress: OnProgress<'_>,
) -> Result<(), VerifyError> {
    let verdict = verify_file(path, restores.without_lost(heads), on_progress)?;
    if let Some(violation) = verdict.violation {
        return Err(VerifyError::ChainViolation(format!("{}: {violation}", path.display())));
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
            VerifyError::ChainViolation(format!("failed to read a line of the export: {error}"))
        })
    });
    let Some(Line::Begin { form, after_seal, after_hash }) = lines.next().transpose()? else {
        return Err(VerifyError::ChainViolation(
            "the file is not an export: its first line is not a header".to_owned(),
        ));
    };
    if form != FORMAT || (after_seal == 0) != (after_hash == GENESIS) {
        return Err(VerifyError::ChainViolation(
            "the header of the export is unknown to this release".to_owned(),
        ));
    }
    let mut chain = Chain::after(Head { number: after_seal, hash: after_hash }, heads);
    while let Some(line) = lines.next().transpose()? {
        match line {
            Line::Begin { .. } => {
                return Err(VerifyError::ChainViolation("the export has two headers".to_owned()));
            }
            Line::Seal(seal) => {
                if seal.number % SEALS_PER_PAGE == 0 {
                    on_progress(seal.number, chain.events());
                }
                chain.seal(&seal);
            }
            Line::Event(event) => chain.event(&event),
            Line::End { last_seal, events } => {
                let is_complete = (chain.head_number(), chain.events()) == (last_seal, events);
                return match lines.next() {
                    None if is_complete => Ok(chain.finish(&Exports::default(), &Restores::default())),
                    _ => Err(VerifyError::ChainViolation(
                        "the last seal or the number of events differs from the last line of the export"
                            .to_owned(),
                    )),
                };
            }
        }
    }
    Err(VerifyError::ChainViolation("the export is truncated".to_owned()))
}
