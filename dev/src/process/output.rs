//! The output of a child. The newest lines stay in memory, and each [`Follower`] reads them at its own speed.
//!
//! Bounds: [`MAX_LINES`] lines and [`MAX_BYTES`] of text. The oldest lines are dropped first.
use std::{
    collections::VecDeque,
    fmt,
    io::{self, BufRead, BufReader, Read, Write as _},
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use file_rotate::{ContentLimit, FileRotate, compression::Compression, suffix::AppendCount};
use tokio::{sync::watch, time::timeout};

use super::lock;

/// Maximum number of lines in memory. The number exceeds the output of any test.
const MAX_LINES: usize = 20_000;
/// Maximum size of the lines in memory, in bytes.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Size in bytes at which a log file is full. The previous part of the log is in a second file with the suffix `.1`.
const MAX_LOG_BYTES: usize = 64 * 1024 * 1024;

/// Maximum length of a line in bytes. A longer line is split.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// The source of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line without white space at its end. Invalid UTF-8 is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub stream: Stream,
    pub text: String,
}

/// The state of the reader of standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReaderState {
    Reading,
    /// The reader does not read, so the pipe fills.
    Stalled,
    /// The reader has closed its end of the pipe.
    Closed,
}

/// The copy of the output in a file. A full file gets the suffix `.1`, and replaces the previous file of that name.
struct Log(FileRotate<AppendCount>);

impl Log {
    fn open(path: &Path) -> Self {
        let limit = ContentLimit::BytesSurpassed(MAX_LOG_BYTES);
        Self(FileRotate::new(path, AppendCount::new(1), limit, Compression::None, None))
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Log").finish_non_exhaustive()
    }
}

/// The lines and the state that the reading threads and every [`Follower`] share.
#[derive(Debug)]
pub(super) struct Output {
    state: Mutex<State>,
    changes: watch::Sender<()>,
    resumed: Condvar,
}

#[derive(Debug)]
struct State {
    recent: VecDeque<Line>,
    /// Total size of the texts.
    bytes: usize,
    /// Number of the first line in `recent`, counted from the child's start.
    first: u64,
    streams_open: usize,
    reader: ReaderState,
    log: Option<Log>,
    echo: &'static [Stream],
}

impl State {
    fn store(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.recent.push_back(line);
        while self.recent.len() > MAX_LINES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.bytes -= oldest.text.len();
            self.first += 1;
        }
    }
}

impl Output {
    pub(super) fn new(log: Option<&Path>, echo: &'static [Stream]) -> Arc<Self> {
        let state = State {
            recent: VecDeque::new(),
            bytes: 0,
            first: 0,
            streams_open: 0,
            reader: ReaderState::Reading,
            log: log.map(Log::open),
            echo,
        };
        Arc::new(Self { state: Mutex::new(state), changes: watch::Sender::new(()), resumed: Condvar::new() })
    }

    /// Reads the stream on a separate thread until the stream ends. [`Output::close`] also ends the reading of standard
    /// output.
    pub(super) fn read(self: &Arc<Self>, stream: Stream, source: impl Read + Send + 'static) {
        lock(&self.state).streams_open += 1;
        let output = Arc::clone(self);
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut bytes = Vec::new();
            while let Ok(1..) = source.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes) {
                let text = String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned();
                output.push(Line { stream, text });
                bytes.clear();
                if !output.continues_reading(stream) {
                    break;
                }
            }
            drop(source);
            lock(&output.state).streams_open -= 1;
            output.changes.send_replace(());
        });
    }

    /// Returns whether the thread reads further lines of the stream. For standard output, waits while the reader is
    /// stalled. For standard error, always returns true.
    fn continues_reading(&self, stream: Stream) -> bool {
        let mut state = lock(&self.state);
        while stream == Stream::Stdout && state.reader == ReaderState::Stalled {
            state = self.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        stream != Stream::Stdout || state.reader == ReaderState::Reading
    }

    fn set_reader(&self, reader: ReaderState) {
        lock(&self.state).reader = reader;
        self.resumed.notify_all();
    }

    /// Stops reading standard output after the next line. The pipe stays open.
    pub(super) fn stall(&self) {
        self.set_reader(ReaderState::Stalled);
    }

    /// Resumes reading standard output where reading stopped.
    pub(super) fn resume(&self) {
        self.set_reader(ReaderState::Reading);
    }

    /// Closes the pipe of standard output. A stalled reader closes the pipe immediately, a reading one after the next
    /// line.
    pub(super) fn close(&self) {
        self.set_reader(ReaderState::Closed);
    }

    fn push(&self, line: Line) {
        let mut state = lock(&self.state);
        // Write errors are ignored, because the child would block on its pipe if reading stopped.
        let with_newline = format!("{}\n", line.text);
        if let Some(Log(log)) = &mut state.log {
            log.write_all(with_newline.as_bytes()).ok();
        }
        if state.echo.contains(&line.stream) {
            io::stderr().write_all(with_newline.as_bytes()).ok();
        }
        state.store(line);
        drop(state);
        self.changes.send_replace(());
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        lock(&self.state).recent.iter().cloned().collect()
    }

    pub(super) fn tail(&self, count: usize) -> Vec<Line> {
        let state = lock(&self.state);
        state.recent.iter().skip(state.recent.len().saturating_sub(count)).cloned().collect()
    }

    /// Waits until both streams have ended, at most until the deadline. The deadline is necessary, because a grandchild
    /// may keep a stream open.
    pub(super) async fn wait_until_drained(&self, deadline: Duration) {
        let mut changes = self.changes.subscribe();
        timeout(deadline, changes.wait_for(|()| lock(&self.state).streams_open == 0)).await.ok();
    }

    pub(super) fn follow(self: &Arc<Self>, from_now: bool) -> Follower {
        let state = lock(&self.state);
        let next = if from_now { state.first + state.recent.len() as u64 } else { state.first };
        drop(state);
        Follower { changes: self.changes.subscribe(), output: Arc::clone(self), next }
    }
}

/// A reader of a child's stored lines, in order. A slow follower misses lines that were dropped from memory.
#[derive(Debug)]
pub struct Follower {
    output: Arc<Output>,
    changes: watch::Receiver<()>,
    next: u64,
}

impl Follower {
    /// Returns the next line, or `None` once both streams have ended and no stored line is left.
    pub async fn next(&mut self) -> Option<Line> {
        loop {
            self.changes.borrow_and_update();
            {
                let state = lock(&self.output.state);
                let position = self.next.saturating_sub(state.first);
                let line = usize::try_from(position).ok().and_then(|position| state.recent.get(position));
                if let Some(line) = line {
                    self.next = state.first + position + 1;
                    return Some(line.clone());
                }
                if state.streams_open == 0 {
                    return None;
                }
            }
            self.changes.changed().await.ok()?;
        }
    }

    /// Returns the next matching line, or `None` at the deadline or at the end of the output.
    pub async fn find(&mut self, deadline: Duration, matches: impl Fn(&str) -> bool) -> Option<Line> {
        let search = async {
            loop {
                let line = self.next().await?;
                if matches(&line.text) {
                    return Some(line);
                }
            }
        };
        timeout(deadline, search).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_for_log_lines_is_bounded() {
        let output = Output::new(None, &[]);
        let print = |text: String| output.push(Line { stream: Stream::Stdout, text });
        for number in 0..MAX_LINES + 100 {
            print(number.to_string());
        }
        assert_eq!(output.lines().len(), MAX_LINES);
        let mut reader = output.follow(false);
        assert_eq!(reader.next().await.map(|line| line.text).as_deref(), Some("100"));
        for _ in 0..100 {
            print("x".repeat(1024 * 1024));
        }
        assert_eq!(output.lines().len(), MAX_BYTES / (1024 * 1024));
        print("the newest".to_owned());
        let found = reader.find(Duration::from_secs(10), |line| line == "the newest").await;
        assert!(found.is_some(), "the slow follower missed the newest line");
    }
}
