//! A small process that reads a pipe from this process. When the pipe closes, the watchdog stops the registered
//! processes and removes the registered directories.
//!
//! The watchdog is a shell script, so that every executable with this library can start the watchdog, including each
//! test binary.
use std::{
    fmt::Display,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock},
};

use super::lock;

/// The method by which the watchdog stops a process. The method also determines the signals with which
/// [`Child`](super::Child) kills the process, for example in its destructor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMethod {
    /// Sends SIGTERM to the process group, and SIGKILL after five seconds.
    Process,
    /// Stops a PostgreSQL server by a fast shutdown, by an immediate shutdown after ten seconds, and by SIGKILL after
    /// five more. The server is stopped after all processes of [`StopMethod::Process`].
    Server,
}

/// The writing end of the watchdog's pipe.
#[derive(Debug)]
pub struct Watchdog {
    pipe: Mutex<ChildStdin>,
}

impl Watchdog {
    /// Returns the watchdog of this process, started on first use.
    pub fn global() -> io::Result<&'static Self> {
        static GLOBAL: OnceLock<Watchdog> = OnceLock::new();
        if let Some(watchdog) = GLOBAL.get() {
            return Ok(watchdog);
        }
        // A concurrent call may start a second watchdog. The second watchdog ends without effect, because its pipe is
        // dropped below.
        let started = Self::start()?;
        Ok(GLOBAL.get_or_init(|| started))
    }

    fn start() -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", include_str!("watchdog.sh"), "watchdog"])
            .current_dir("/")
            .stdin(Stdio::piped())
            // A test runner reads a test's output until every process has closed it. The watchdog outlives the test, so
            // the watchdog must not inherit the output.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-\ and Ctrl-Z signal the foreground process group. The script does not ignore these signals, so they
            // would end or suspend the watchdog.
            .process_group(0)
            .spawn()?;
        let pipe = shell.stdin.take().ok_or_else(|| io::Error::other("the watchdog has no input"))?;
        Ok(Self { pipe: Mutex::new(pipe) })
    }

    /// Registers the process `pid`, which the watchdog stops when this process ends.
    pub fn watch(&self, pid: u32, stop_method: StopMethod) -> io::Result<()> {
        match stop_method {
            StopMethod::Process => self.send("process", pid),
            StopMethod::Server => self.send("server", pid),
        }
    }

    /// Unregisters an ended process, whose id may soon belong to another process.
    pub fn forget(&self, pid: u32) -> io::Result<()> {
        self.send("forget", pid)
    }

    /// Registers a directory, which the watchdog deletes after this process and all registered processes have ended.
    pub fn remove(&self, directory: &Path) -> io::Result<()> {
        self.send("remove", directory.display())
    }

    /// Writes a command in a single write. The line is shorter than `PIPE_BUF`, so the write is atomic, and a killed
    /// parent leaves no partial command.
    fn send(&self, command: &str, argument: impl Display) -> io::Result<()> {
        lock(&self.pipe).write_all(format!("{command} {argument}\n").as_bytes())
    }
}
