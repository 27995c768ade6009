//! A small process beside this one that reads a pipe from it, and cleans up when the pipe ends.
//!
//! It is a shell with a script, because it must work from every executable that uses this library (each test
//! binary is one) without one of them having to know how to run itself again.
use std::{
    fmt::Display,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock},
};

use super::lock;

/// How the watchdog ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its process group gets TERM, and KILL after five seconds.
    Process,
    /// A PostgreSQL server: fast shutdown after every [`Ending::Process`] has ended, then harder.
    Server,
}

/// The orders' end of the watchdog's pipe.
#[derive(Debug)]
pub struct Watchdog {
    orders: Mutex<ChildStdin>,
}

impl Watchdog {
    /// The watchdog of this process, started at the first use.
    pub fn global() -> io::Result<&'static Self> {
        static GLOBAL: OnceLock<Watchdog> = OnceLock::new();
        if let Some(watchdog) = GLOBAL.get() {
            return Ok(watchdog);
        }
        // Of two threads that come here at once one starts a watchdog in vain: its pipe closes right away
        // and it ends with nothing to do.
        let started = Self::start()?;
        Ok(GLOBAL.get_or_init(|| started))
    }

    fn start() -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", include_str!("watchdog.sh"), "watchdog"])
            .current_dir("/")
            .stdin(Stdio::piped())
            // A test runner reads until the last holder of its pipe closes it: that must not be us.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C goes to the whole foreground group, and would end the watchdog before its work.
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

    /// The process has ended and its number may soon be someone else's.
    pub fn forget(&self, pid: u32) -> io::Result<()> {
        self.order("forget", pid)
    }

    /// Deletes the directory when this process has ended, and with it everything that is watched.
    pub fn remove(&self, directory: &Path) -> io::Result<()> {
        self.order("remove", directory.display())
    }

    /// One write for the whole line: shorter than a pipe's atomic unit, so that a crash cannot cut it in two.
    fn order(&self, order: &str, subject: impl Display) -> io::Result<()> {
        lock(&self.orders).write_all(format!("{order} {subject}\n").as_bytes())
    }
}
