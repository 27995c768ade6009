//! A small process that reads a pipe from this process, and cleans up when the pipe ends.
//!
//! The watchdog is a shell script, because it must work from every executable that uses this library (including each
//! test binary). With a script, no executable needs code to run itself again.
use std::{
    fmt::Display,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock},
};

use super::lock;

/// The method by which the watchdog ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Sends SIGTERM to the process group, and SIGKILL after five seconds.
    Process,
    /// Stops a PostgreSQL server after every [`Ending::Process`] has ended: fast shutdown first, then immediate.
    Server,
}

/// The writing end of the watchdog's pipe.
#[derive(Debug)]
pub struct Watchdog {
    orders: Mutex<ChildStdin>,
}

impl Watchdog {
    /// Returns the watchdog of this process, started on first use.
    pub fn global() -> io::Result<&'static Self> {
        static GLOBAL: OnceLock<Watchdog> = OnceLock::new();
        if let Some(watchdog) = GLOBAL.get() {
            return Ok(watchdog);
        }
        // If two threads call this function at once, one of them starts a second watchdog. Its pipe closes at once, so
        // the second watchdog ends without effect.
        let started = Self::start()?;
        Ok(GLOBAL.get_or_init(|| started))
    }

    fn start() -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", include_str!("watchdog.sh"), "watchdog"])
            .current_dir("/")
            .stdin(Stdio::piped())
            // A test runner reads its pipe until every process has closed it, so the watchdog must not keep the pipe
            // open.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C signals the whole foreground group, and would end the watchdog before its work.
            .process_group(0)
            .spawn()?;
        let orders = shell.stdin.take().ok_or_else(|| io::Error::other("the watchdog has no input"))?;
        Ok(Self { orders: Mutex::new(orders) })
    }

    /// Ends the process `pid` if this process ends before [`Watchdog::forget`] is called.
    pub fn watch(&self, pid: u32, ending: Ending) -> io::Result<()> {
        match ending {
            Ending::Process => self.order("process", pid),
            Ending::Server => self.order("server", pid),
        }
    }

    /// Unregisters an ended process, whose id may soon belong to another process.
    pub fn forget(&self, pid: u32) -> io::Result<()> {
        self.order("forget", pid)
    }

    /// Deletes the directory once this process and everything watched have ended.
    pub fn remove(&self, directory: &Path) -> io::Result<()> {
        self.order("remove", directory.display())
    }

    /// Writes the whole line in a single write. The line is shorter than the atomic size of a pipe, so a crash cannot
    /// cut it.
    fn order(&self, order: &str, subject: impl Display) -> io::Result<()> {
        lock(&self.orders).write_all(format!("{order} {subject}\n").as_bytes())
    }
}
