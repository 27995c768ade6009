//! Log sinks, their queues, and the counting of lost lines.
use std::{
    error::Error,
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use prometheus::{
    IntCounter, Opts,
    core::{Collector, Desc, Describer},
    proto::MetricFamily,
};
use tracing_appender::{
    non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard},
    rolling::{RollingFileAppender, Rotation},
};

use super::{Format, Records, is_audit};
use crate::{
    build_info::BuildInfo,
    telemetry::{
        otlp::ExportError,
        settings::{LogFormat, Logs},
    },
};

/// The error when the logs cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The directory cannot be created, or is not writable.
    #[error("LOG_DIRECTORY: failed to write a log file in {directory}")]
    Directory {
        /// The configured directory.
        directory: PathBuf,
        /// The operating system's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The export of log records cannot be set up.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A metric could not be registered, which is a bug.
    #[error("failed to register log_lines_dropped_total")]
    Metric(#[from] prometheus::Error),
}

/// Maximum number of queued lines per sink: a few megabytes, or the lines of a busy service in about a second. This
/// limits the memory that is used while the reader of the output stalls.
const MAX_QUEUED_LINES: usize = 8_192;

/// Maximum number of queued audit log lines per sink: those of a busy service in about half a minute. Audit log lines
/// have a queue of their own, so that a flood of other lines does not cause their loss. The queue is long, so that no
/// lines are lost while a reader is slow for a short time. A reader that stalls permanently must not stop the service,
/// so lines that do not fit are dropped and counted. The audit events of dropped lines are not lost, because the
/// database stores them. A dropped line about a seal does no harm, because the newest seal (see `docs/audit.md`) is
/// logged again at each sealing interval.
const MAX_QUEUED_AUDIT_LINES: usize = 16_384;

/// A queue, and a thread that writes its lines.
pub(in crate::telemetry) struct Sink {
    pub(super) format: Format,
    kind: SinkKind,
    queue: NonBlocking,
}

/// The lines that a sink accepts. Audit log lines always have sinks of their own, because other lines must not cause
/// their loss, and because the audit log files have other readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SinkKind {
    Audit,
    Regular,
}

impl SinkKind {
    fn max_queued_lines(self) -> usize {
        match self {
            Self::Audit => MAX_QUEUED_AUDIT_LINES,
            Self::Regular => MAX_QUEUED_LINES,
        }
    }
}

/// The guards of the writing threads. Dropping a guard ends its thread.
pub(in crate::telemetry) struct Guards(Vec<WorkerGuard>);

impl Guards {
    /// Lets each thread write its queued lines, for at most `timeout`.
    ///
    /// Each guard is dropped on a separate thread. If the reader of standard output stalls and a queue is full,
    /// dropping the queue's guard blocks forever, because the guard prints an error to standard output. Such a guard
    /// must delay neither the other sinks nor the end of the process.
    pub(in crate::telemetry) fn finish(self, timeout: Duration) {
        let (finished, all_finished) = mpsc::channel::<()>();
        for guard in self.0 {
            let finished = finished.clone();
            thread::spawn(move || {
                drop(guard);
                drop(finished);
            });
        }
        drop(finished);
        // The channel disconnects when every thread has dropped its sender.
        let _finished_or_timed_out = all_finished.recv_timeout(timeout);
    }
}

/// Opens all configured sinks. Lines that the sinks or `records` lose are counted in one metric. Files are always JSON,
/// because programs read them.
pub(in crate::telemetry) fn open(
    settings: &Logs,
    records: Option<Records>,
) -> Result<(Vec<Sink>, Guards), LogsError> {
    let mut opened = OpenSinks::default();
    // Two threads share standard output. Each thread writes whole batches under this lock.
    let stdout = Arc::default();
    let format = stdout_format(settings.format);
    opened.add("log-stdout", format, SinkKind::Regular, io::stdout(), Arc::clone(&stdout));
    opened.add("log-stdout-audit", format, SinkKind::Audit, io::stdout(), stdout);
    if let Some(directory) = &settings.directory {
        let files = [
            ("log-file", BuildInfo::current().name, SinkKind::Regular),
            // Pruning selects files by their name prefix, so neither name may be a prefix of the other.
            ("log-audit", "audit", SinkKind::Audit),
        ];
        for (thread, name, kind) in files {
            let appender = daily_files(directory, name, settings.files_kept)
                .map_err(|source| LogsError::Directory { directory: directory.clone(), source })?;
            opened.add(thread, Format::Json, kind, appender, Arc::default());
        }
    }
    opened.losses.records = records;
    prometheus::register(Box::new(opened.losses.collector()?))?;
    Ok((opened.sinks, Guards(opened.guards)))
}

/// Opens a writer of daily files (UTC). The writer keeps the newest `kept` files, and at least one. It may keep one
/// more file, which a restart can delete.
fn daily_files(
    directory: &Path,
    name: &str,
    kept: usize,
) -> Result<RollingFileAppender, Box<dyn Error + Send + Sync>> {
    // The appender would also create a missing directory, but would first print an error to standard error.
    fs::create_dir_all(directory)?;
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(name)
        .filename_suffix("log")
        // At a start, tracing-appender 0.2 deletes all but the newest `max - 1` files, and then opens the current file,
        // which may be one of those. With a maximum of `kept`, only `kept - 1` files could remain.
        .max_log_files(kept.max(1).saturating_add(1))
        .build(directory)?;
    Ok(appender)
}

fn stdout_format(format: Option<LogFormat>) -> Format {
    let terminal = io::stdout().is_terminal();
    match format {
        Some(LogFormat::Json) => Format::Json,
        None if !terminal => Format::Json,
        Some(LogFormat::Pretty) | None => {
            Format::Pretty { coloured: terminal && std::env::var_os("NO_COLOR").is_none() }
        }
    }
}

#[derive(Default)]
struct OpenSinks {
    sinks: Vec<Sink>,
    guards: Vec<WorkerGuard>,
    losses: Losses,
}

impl OpenSinks {
    /// Adds a sink. Sinks that write to the same output share `output`.
    fn add(
        &mut self,
        thread: &str,
        format: Format,
        kind: SinkKind,
        writer: impl Write + Send + 'static,
        output: Arc<Mutex<OutputState>>,
    ) {
        let failed = Arc::clone(&self.losses.failed);
        let writer = Batch { inner: writer, output, lines: Vec::new(), count: 0, failed };
        let (queue, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(kind.max_queued_lines())
            .thread_name(thread)
            .finish(writer);
        self.losses.overflowed.push(queue.error_counter());
        self.sinks.push(Sink { format, kind, queue });
        self.guards.push(guard);
    }
}

impl Sink {
    /// Returns whether the sink accepts lines of this target.
    pub(super) fn accepts(&self, target: &str) -> bool {
        match self.kind {
            SinkKind::Audit => is_audit(target),
            SinkKind::Regular => !is_audit(target),
        }
    }

    /// Queues a line, or counts it as lost.
    pub(super) fn write(&self, line: &[u8]) {
        let _never_fails = self.queue.clone().write(line);
    }
}

/// Pause of the writing thread after it has emptied the queue, during which the next lines are queued. Without this
/// pause, most batches would be a single line, and each line would cost a thread wake-up and a write.
const BATCH_PAUSE: Duration = Duration::from_millis(2);

/// Number of bytes from which a batch is written even if more lines are queued.
const MAX_BATCH_BYTES: usize = 64 * 1024;

/// Pause before the next attempt to write to a full output, such as a pipe with a slow reader.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// Maximum time for which a write to a full output is retried. Then the batch is lost.
const MAX_FULL_TIME: Duration = Duration::from_secs(5);

/// The state of an output, which several threads may share.
#[derive(Debug, Default)]
struct OutputState {
    /// `true` if the last write ended within a line. Then the next batch starts with a newline. Without it, the first
    /// line of the batch would be appended to the torn line, and both would be unreadable.
    is_within_line: bool,
}

/// A writer that writes queued lines together. It counts the lines whose write fails, because the writing thread
/// ignores errors. The writing thread flushes the writer as soon as the queue is empty.
///
/// Container runtimes and test runners may pass a non-blocking pipe as the output. If the reader of the pipe is slow, a
/// write may end in the middle of a line. The rest is then retried.
struct Batch<W> {
    inner: W,
    /// Locked while a batch is written. One batch may take several writes, and no other sink may write between them.
    output: Arc<Mutex<OutputState>>,
    lines: Vec<u8>,
    count: usize,
    failed: Arc<AtomicUsize>,
}

impl<W: Write> Batch<W> {
    /// Writes the batch. If a write fails, all lines of the batch count as lost.
    fn write_out(&mut self) -> io::Result<()> {
        let written = self.write_batch();
        if written.is_err() {
            self.failed.fetch_add(self.count, Ordering::Relaxed);
        }
        self.lines.clear();
        self.count = 0;
        written
    }

    fn write_batch(&mut self) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if output.is_within_line {
            self.lines.insert(0, b'\n');
        }
        let mut rest = self.lines.as_slice();
        while !rest.is_empty() {
            let written = retry_while_full(|| self.inner.write(rest))?;
            let (taken, left) = rest
                .split_at_checked(written)
                .filter(|(taken, _)| !taken.is_empty())
                .ok_or(io::ErrorKind::WriteZero)?;
            output.is_within_line = !taken.ends_with(b"\n");
            rest = left;
        }
        retry_while_full(|| self.inner.flush())
    }
}

/// Retries a write that was interrupted, and a write to a full output for at most [`MAX_FULL_TIME`].
fn retry_while_full<T>(mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && started.elapsed() < MAX_FULL_TIME => {
                thread::sleep(FULL_PAUSE);
            }
            finished => return finished,
        }
    }
}

impl<W: Write> Write for Batch<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.extend_from_slice(line);
        self.count += 1;
        if self.lines.len() >= MAX_BATCH_BYTES {
            self.write_out()?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.count > 0 {
            self.write_out()?;
            thread::sleep(BATCH_PAUSE);
        }
        Ok(())
    }
}

/// The counters of lost lines: one for each queue, one for all failed writes, and one for the export.
#[derive(Default)]
struct Losses {
    overflowed: Vec<ErrorCounter>,
    failed: Arc<AtomicUsize>,
    records: Option<Records>,
}

impl Losses {
    fn total(&self) -> u64 {
        let overflowed: usize = self.overflowed.iter().map(ErrorCounter::dropped_lines).sum();
        let lost_lines: u64 =
            overflowed.saturating_add(self.failed.load(Ordering::Relaxed)).try_into().unwrap_or(u64::MAX);
        lost_lines.saturating_add(self.records.as_ref().map_or(0, Records::lost))
    }

    fn collector(self) -> prometheus::Result<LossesCollector> {
        let help = "Log lines lost because the queue was full, or the write or the export failed.";
        let options = Opts::new("log_lines_dropped_total", help);
        Ok(LossesCollector { description: options.describe()?, options, losses: self })
    }
}

/// The metric `log_lines_dropped_total`, read at each scrape.
struct LossesCollector {
    description: Desc,
    options: Opts,
    losses: Losses,
}

impl Collector for LossesCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // This never fails, because the same options have already produced a valid description.
        let Ok(counter) = IntCounter::with_opts(self.options.clone()) else { return Vec::new() };
        counter.inc_by(self.losses.total());
        counter.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    struct FullDisk;

    impl Write for FullDisk {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let mut opened = OpenSinks::default();
        opened.add("log-test", Format::Json, SinkKind::Regular, FullDisk, Arc::default());
        for sink in &opened.sinks {
            sink.write(b"{}\n");
            sink.write(b"{}\n");
        }
        drop(opened.guards);
        assert_eq!(opened.losses.total(), 2);
    }

    /// A writer that sends its data to the test, and then waits for the test.
    struct SlowWriter {
        writes: mpsc::Sender<Vec<u8>>,
        resume: mpsc::Receiver<()>,
    }

    impl Write for SlowWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes.send(bytes.to_vec()).unwrap();
            self.resume.recv().unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn queued_lines_are_written_in_one_batch() {
        let (writes, written) = mpsc::channel();
        let (resume_sender, resume) = mpsc::channel();
        let mut opened = OpenSinks::default();
        opened.add(
            "log-test",
            Format::Json,
            SinkKind::Regular,
            SlowWriter { writes, resume },
            Arc::default(),
        );
        let sink = &opened.sinks[0];
        sink.write(b"first\n");
        assert_eq!(written.recv().unwrap(), b"first\n");
        sink.write(b"second\n");
        sink.write(b"third\n");
        resume_sender.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), b"second\nthird\n");
        resume_sender.send(()).unwrap();
    }

    /// Reads in small pieces, with pauses in which the socket fills.
    fn read_slowly(mut reader: impl io::Read) -> String {
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let length = reader.read(&mut piece).unwrap();
            if length == 0 {
                return String::from_utf8(text).unwrap();
            }
            text.extend_from_slice(&piece[..length]);
            thread::sleep(Duration::from_micros(200));
        }
    }

    #[test]
    fn a_slow_reader_of_a_non_blocking_output_gets_every_line_whole() {
        const LINES: usize = 4_000;
        let (output, reader) = UnixStream::pair().unwrap();
        output.set_nonblocking(true).unwrap();
        let reader = thread::spawn(move || read_slowly(reader));
        let mut opened = OpenSinks::default();
        let shared = Arc::default();
        for kind in [SinkKind::Regular, SinkKind::Audit] {
            // Standard output buffers in the same way.
            let output = io::LineWriter::new(output.try_clone().unwrap());
            opened.add("log-test", Format::Json, kind, output, Arc::clone(&shared));
        }
        drop(output);
        let line = |number: usize| format!("{{\"number\":{number},\"text\":\"{}\"}}", "x".repeat(700));
        for number in 0..LINES {
            opened.sinks[number % 2].write((line(number) + "\n").as_bytes());
        }
        drop(opened.guards);
        drop(opened.sinks);
        let text = reader.join().unwrap();
        assert_eq!(opened.losses.total(), 0);
        let mut lines: Vec<_> = text.lines().collect();
        let mut expected: Vec<_> = (0..LINES).map(line).collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }

    /// A writer that takes half of the first write, and fails the second.
    struct TornWriter(Arc<Mutex<Vec<u8>>>, usize);

    impl Write for TornWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            let length = match self.1 {
                1 => bytes.len() / 2,
                2 => return Err(io::ErrorKind::StorageFull.into()),
                _ => bytes.len(),
            };
            self.0.lock().unwrap().extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_line_after_a_torn_line_is_whole() {
        let text = Arc::default();
        let failed = Arc::default();
        let (inner, counted) = (TornWriter(Arc::clone(&text), 0), Arc::clone(&failed));
        let mut batch = Batch { inner, output: Arc::default(), lines: Vec::new(), count: 0, failed: counted };
        batch.write_all(b"first\n").unwrap();
        assert!(batch.flush().is_err());
        batch.write_all(b"second\n").unwrap();
        batch.flush().unwrap();
        assert_eq!(*text.lock().unwrap(), b"fir\nsecond\n");
        assert_eq!(failed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn any_number_of_kept_files_is_supported() {
        let directory = tempfile::tempdir().unwrap();
        for kept in [0, usize::MAX] {
            assert!(daily_files(directory.path(), "log-test", kept).is_ok(), "{kept}");
        }
    }

    #[test]
    fn the_error_names_a_log_directory_that_is_not_writable() {
        let settings =
            Logs { format: None, filter: None, directory: Some("/dev/null/logs".into()), files_kept: 14 };
        let error = open(&settings, None).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("LOG_DIRECTORY: failed to write a log file in /dev/null/logs"));
    }
}
