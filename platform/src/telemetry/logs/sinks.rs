//! Where lines go, and what becomes of those that cannot go there.
use std::{
    error::Error,
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
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

use super::{Format, is_audit};
use crate::{
    build_info::BuildInfo,
    telemetry::settings::{LogFormat, Logs},
};

/// Why the logs cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The directory is not there and cannot be made, or does not let us write.
    #[error("LOG_DIRECTORY: no log file can be written in {directory}")]
    Directory {
        /// The directory that was set.
        directory: PathBuf,
        /// What the system said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A mistake in the code.
    #[error("log_lines_dropped_total cannot be declared")]
    Metric(#[from] prometheus::Error),
}

/// Lines that wait for one sink at most: a few megabytes, and about a second of a busy service. A reader
/// that has stopped costs that and no more.
const LONGEST_QUEUE: usize = 8_192;

/// Lines of the audit trail that wait for one sink at most: far longer, about half a minute of a busy service. They
/// have a queue to themselves, so that no flood of other lines, nor a reader that is merely late, costs one of them.
/// A reader that has stopped for good must not stop the service: what does not fit then is counted, the event is
/// in the database, and the head of its seals is logged again at each interval.
const LONGEST_AUDIT_QUEUE: usize = 16_384;

/// A queue, and at its other end a thread that writes.
pub(in crate::telemetry) struct Sink {
    pub(super) format: Format,
    wanted: Wanted,
    queue: NonBlocking,
}

/// Which lines a sink takes. The audit trail is kept apart everywhere: its lines must not be lost for others, and
/// its files are read by others, and kept longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Audit,
    EverythingElse,
}

impl Wanted {
    fn longest_queue(self) -> usize {
        match self {
            Self::Audit => LONGEST_AUDIT_QUEUE,
            Self::EverythingElse => LONGEST_QUEUE,
        }
    }
}

/// Keeps the writing threads alive.
pub(in crate::telemetry) struct Guards(Vec<WorkerGuard>);

impl Guards {
    /// Lets every thread write what it has, until `deadline` at most.
    ///
    /// Each is ended from a thread of its own. Where nobody reads the output any more, the guard wants to say so,
    /// and says it there: it waits for ever, and must keep neither the other sinks nor the process waiting.
    pub(in crate::telemetry) fn finish(self, deadline: Duration) {
        let (finished, all) = mpsc::channel::<()>();
        for guard in self.0 {
            let finished = finished.clone();
            thread::spawn(move || {
                drop(guard);
                drop(finished);
            });
        }
        drop(finished);
        // It ends when every thread has dropped its end of the channel.
        let _all_or_too_late = all.recv_timeout(deadline);
    }
}

/// Opens every sink that the settings ask for. Files are JSON always: they are for machines.
pub(in crate::telemetry) fn open(settings: &Logs) -> Result<(Vec<Sink>, Guards), LogsError> {
    let mut opened = Opened::default();
    // Two threads, one output: each writes whole lines under the lock that standard output has.
    let format = stdout_format(settings.format);
    opened.add("log-stdout", format, Wanted::EverythingElse, io::stdout());
    opened.add("log-stdout-audit", format, Wanted::Audit, io::stdout());
    if let Some(directory) = &settings.directory {
        let files = [
            ("log-file", BuildInfo::current().name, Wanted::EverythingElse),
            // Pruning goes by the beginning of a name, so neither may be the beginning of the other.
            ("log-audit", "audit", Wanted::Audit),
        ];
        for (thread, name, wanted) in files {
            let appender = daily_files(directory, name, settings.files_kept)
                .map_err(|source| LogsError::Directory { directory: directory.clone(), source })?;
            opened.add(thread, Format::Json, wanted, appender);
        }
    }
    prometheus::register(Box::new(opened.losses.collector()?))?;
    Ok((opened.sinks, Guards(opened.guards)))
}

/// A new file every day (UTC). The one that is being written is always kept.
fn daily_files(
    directory: &Path,
    name: &str,
    kept: usize,
) -> Result<RollingFileAppender, Box<dyn Error + Send + Sync>> {
    // The appender would make it too, but first it complains on standard error that it is not there.
    fs::create_dir_all(directory)?;
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(name)
        .filename_suffix("log")
        .max_log_files(kept.max(1))
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
struct Opened {
    sinks: Vec<Sink>,
    guards: Vec<WorkerGuard>,
    losses: Losses,
}

impl Opened {
    fn add(&mut self, thread: &str, format: Format, wanted: Wanted, writer: impl Write + Send + 'static) {
        let failed = Arc::clone(&self.losses.failed);
        let writer = Batch { inner: writer, lines: Vec::new(), count: 0, failed };
        let (queue, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(wanted.longest_queue())
            .thread_name(thread)
            .finish(writer);
        self.losses.overflowed.push(queue.error_counter());
        self.sinks.push(Sink { format, wanted, queue });
        self.guards.push(guard);
    }
}

impl Sink {
    /// Whether lines of this target go there.
    pub(super) fn takes(&self, target: &str) -> bool {
        match self.wanted {
            Wanted::Audit => is_audit(target),
            Wanted::EverythingElse => !is_audit(target),
        }
    }

    /// Puts a line into the queue, or counts it as lost.
    pub(super) fn write(&self, line: &[u8]) {
        let _never_fails = self.queue.clone().write(line);
    }
}

/// How long a thread rests after it has written, while lines gather that it then writes together. Woken for each line,
/// it would cost a request a wake-up, a write and a change of threads.
const GATHERING: Duration = Duration::from_millis(2);

/// So much is written at once, whatever more there is.
const LARGEST_BATCH_BYTES: usize = 64 * 1024;

/// Writes the lines together that come together, and counts those whose writing fails: the writing thread passes over
/// them in silence. It flushes as soon as its queue is empty.
struct Batch<W> {
    inner: W,
    lines: Vec<u8>,
    count: usize,
    failed: Arc<AtomicUsize>,
}

impl<W: Write> Batch<W> {
    /// Where only a part can be written, all of it counts as lost.
    fn write_out(&mut self) -> io::Result<()> {
        let written = self.inner.write_all(&self.lines).and_then(|()| self.inner.flush());
        if written.is_err() {
            self.failed.fetch_add(self.count, Ordering::Relaxed);
        }
        self.lines.clear();
        self.count = 0;
        written
    }
}

impl<W: Write> Write for Batch<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.extend_from_slice(line);
        self.count += 1;
        if self.lines.len() >= LARGEST_BATCH_BYTES {
            self.write_out()?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.count > 0 {
            self.write_out()?;
            // The next lines gather in the queue meanwhile, and nobody has to be woken for them.
            thread::sleep(GATHERING);
        }
        Ok(())
    }
}

/// The lines that were lost, counted by others: by each queue, and by [`Batch`].
#[derive(Default)]
struct Losses {
    overflowed: Vec<ErrorCounter>,
    failed: Arc<AtomicUsize>,
}

impl Losses {
    fn total(&self) -> u64 {
        let overflowed: usize = self.overflowed.iter().map(ErrorCounter::dropped_lines).sum();
        overflowed.saturating_add(self.failed.load(Ordering::Relaxed)).try_into().unwrap_or(u64::MAX)
    }

    fn collector(self) -> prometheus::Result<LossesCollector> {
        let help = "Log lines that were lost: the queue was full, or they could not be written.";
        let options = Opts::new("log_lines_dropped_total", help);
        Ok(LossesCollector { description: options.describe()?, options, losses: self })
    }
}

/// `log_lines_dropped_total`, read at each scrape.
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
        // The options were good enough for the description.
        let Ok(counter) = IntCounter::with_opts(self.options.clone()) else { return Vec::new() };
        counter.inc_by(self.losses.total());
        counter.collect()
    }
}

#[cfg(test)]
mod tests {
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
        let mut opened = Opened::default();
        opened.add("log-test", Format::Json, Wanted::EverythingElse, FullDisk);
        for sink in &opened.sinks {
            sink.write(b"{}\n");
            sink.write(b"{}\n");
        }
        drop(opened.guards);
        assert_eq!(opened.losses.total(), 2);
    }

    /// Tells what it is to write, and waits until it may go on.
    struct Slow {
        writes: mpsc::Sender<Vec<u8>>,
        go_on: mpsc::Receiver<()>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes.send(bytes.to_vec()).unwrap();
            self.go_on.recv().unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_come_while_others_are_written_are_written_together() {
        let (writes, written) = mpsc::channel();
        let (let_go_on, go_on) = mpsc::channel();
        let mut opened = Opened::default();
        opened.add("log-test", Format::Json, Wanted::EverythingElse, Slow { writes, go_on });
        let sink = &opened.sinks[0];
        sink.write(b"first\n");
        assert_eq!(written.recv().unwrap(), b"first\n");
        sink.write(b"second\n");
        sink.write(b"third\n");
        let_go_on.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), b"second\nthird\n");
        let_go_on.send(()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_with_its_name() {
        let settings =
            Logs { format: None, filter: None, directory: Some("/dev/null/logs".into()), files_kept: 14 };
        let error = open(&settings).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("LOG_DIRECTORY: no log file can be written in /dev/null/logs"));
    }
}
