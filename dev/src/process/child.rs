//! One child process: started with an environment of its own, watched, read, signalled and ended.
use std::{
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{sync::watch, time::timeout};

use super::{
    lock,
    output::{Follower, Line, Output, Stream},
    watchdog::{Ending, Watchdog},
};

/// What a program needs of its surroundings to run at all. Everything else, above all a developer's own
/// `DATABASE_URL` or `RUST_LOG`, stays outside, so that a child behaves alike on every machine.
const KEPT_ENVIRONMENT: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_ALL",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
];

/// How often a child is asked whether it has ended. Blocking in `wait` instead would reap it at a moment
/// of its own, between our look at it and our signal, which could then reach a stranger.
const EXIT_POLL: Duration = Duration::from_millis(10);

/// How long a server that is dropped may take to shut down.
const SERVER_GRACE: Duration = Duration::from_secs(10);

/// A process that is about to be started.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    ending: Ending,
    log: Option<PathBuf>,
    capture: bool,
    echo: &'static [Stream],
}

impl Launch {
    /// Starts with almost nothing of this process's environment; see [`Launch::envs`].
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear();
        for name in KEPT_ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Self { command, ending: Ending::Process, log: None, capture: true, echo: &[] }
    }

    /// The program's name, for messages.
    pub fn program(&self) -> String {
        self.command.get_program().to_string_lossy().into_owned()
    }

    /// Hands down more of this process's environment, for a tool that the user has configured through it.
    #[must_use]
    pub fn envs(mut self, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        self.command.envs(variables);
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs as another user; only root may.
    #[must_use]
    pub fn account(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self
    }

    /// How the watchdog ends it; [`Ending::Process`] unless set.
    #[must_use]
    pub fn ending(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    /// Appends every line to this file too, which makes room when it is full.
    #[must_use]
    pub fn log_to(mut self, file: &Path) -> Self {
        self.log = Some(file.to_owned());
        self
    }

    /// Lets the child write to the log file by itself, past this process, which then sees no lines.
    #[must_use]
    pub fn uncaptured(mut self) -> Self {
        self.capture = false;
        self
    }

    /// Shows the lines of these streams on this process's standard error too.
    #[must_use]
    pub fn echo(mut self, streams: &'static [Stream]) -> Self {
        self.echo = streams;
        self
    }

    /// Starts the process in a group of its own, under the watchdog's eye.
    pub fn start(mut self) -> io::Result<Child> {
        let watchdog = Watchdog::global()?;
        // Also where the output is captured: a log that rotates is silent about a file that cannot be opened.
        let log = self.log.as_deref().map(append).transpose()?;
        self.command.stdin(Stdio::null()).process_group(0);
        let output = if self.capture {
            self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
            Output::new(self.log.as_deref(), self.echo)
        } else {
            let (stdout, stderr) = match log {
                Some(log) => (Stdio::from(log.try_clone()?), Stdio::from(log)),
                None => (Stdio::null(), Stdio::null()),
            };
            self.command.stdout(stdout).stderr(stderr);
            Output::new(None, &[])
        };

        let mut process = self.command.spawn()?;
        let pid = process.id();
        if let Err(error) = watchdog.watch(pid, self.ending) {
            process.kill().ok();
            process.wait().ok();
            return Err(error);
        }
        if let Some(stdout) = process.stdout.take() {
            output.read(Stream::Stdout, stdout);
        }
        if let Some(stderr) = process.stderr.take() {
            output.read(Stream::Stderr, stderr);
        }
        let process = Arc::new(Mutex::new(process));
        let exit = watch::Sender::new(None);
        let child =
            Child { pid, ending: self.ending, process: Arc::clone(&process), exit: exit.subscribe(), output };
        std::thread::spawn(move || notice_exit(pid, &process, &exit, watchdog));
        Ok(child)
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn notice_exit(
    pid: u32,
    process: &Mutex<std::process::Child>,
    exit: &watch::Sender<Option<ExitStatus>>,
    watchdog: &Watchdog,
) {
    loop {
        // Bound first: the lock must not be held while sleeping.
        let ended = lock(process).try_wait();
        match ended {
            Ok(None) => std::thread::sleep(EXIT_POLL),
            Ok(Some(status)) => {
                // A watchdog that is gone has nothing to forget.
                watchdog.forget(pid).ok();
                exit.send_replace(Some(status));
                return;
            }
            // Not ours to wait for any more, which only a foreign `waitpid` can cause.
            Err(_) => return,
        }
    }
}

/// Why [`Child::wait`] has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error("process {pid} still runs after {}s", .waited.as_secs_f32())]
    StillRunning { pid: u32, waited: Duration },
    #[error("the exit status of process {pid} was taken by someone else")]
    Lost { pid: u32 },
    #[error(transparent)]
    Signal(#[from] io::Error),
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    ending: Ending,
    process: Arc<Mutex<std::process::Child>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    output: Arc<Output>,
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its exit status, if it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal to the process itself. One that has ended is an error of kind `NotFound`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.if_running(|pid| kill(pid, signal))
    }

    /// Waits for the end, and until what it printed has been read.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus, WaitError> {
        let pid = self.pid;
        let mut exit = self.exit.clone();
        let status = match timeout(deadline, exit.wait_for(Option::is_some)).await {
            Ok(Ok(status)) => status.ok_or(WaitError::Lost { pid })?,
            Ok(Err(_)) => return Err(WaitError::Lost { pid }),
            Err(_) => return Err(WaitError::StillRunning { pid, waited: deadline }),
        };
        self.output.drained(Duration::from_secs(1)).await;
        Ok(status)
    }

    /// Asks by TERM, waits for `grace`, then kills. The status tells which of the two it took.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus, WaitError> {
        self.stop_by(Signal::SIGTERM, grace).await
    }

    /// As [`Child::stop`], asking by another signal.
    pub async fn stop_by(&self, signal: Signal, grace: Duration) -> Result<ExitStatus, WaitError> {
        match self.signal(signal) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        match self.wait(grace).await {
            Err(WaitError::StillRunning { .. }) => {
                self.kill();
                self.wait(Duration::from_secs(5)).await
            }
            ended => ended,
        }
    }

    /// The lines that are still in memory, oldest first.
    pub fn lines(&self) -> Vec<Line> {
        self.output.lines()
    }

    /// The newest lines, oldest first.
    pub fn tail(&self, count: usize) -> Vec<Line> {
        self.output.tail(count)
    }

    /// Stops reading its standard output, as a log shipper does that hangs: the pipe stays open and fills.
    pub fn stall_stdout(&self) {
        self.output.stall();
    }

    /// Goes on reading its standard output after [`Child::stall_stdout`].
    pub fn read_stdout_again(&self) {
        self.output.read_again();
    }

    /// Closes its standard output, as a log shipper does that has died.
    pub fn close_stdout(&self) {
        self.output.close();
    }

    /// Reads from the oldest line in memory.
    pub fn follow(&self) -> Follower {
        self.output.follow(false)
    }

    /// Reads what is printed from now on.
    pub fn follow_from_now(&self) -> Follower {
        self.output.follow(true)
    }

    /// Kills the whole group, with whatever the process has started in it. A database server is told to drop
    /// everything instead: its own children, each in a group of its own, would outlive a killed parent.
    fn kill(&self) {
        let action = |pid| match self.ending {
            Ending::Process => killpg(pid, Signal::SIGKILL),
            Ending::Server => kill(pid, Signal::SIGQUIT),
        };
        // The one error is that it has ended already, which is what is wanted.
        self.if_running(action).ok();
    }

    /// Holds the lock that reaping takes too, so that the number cannot become another process's meanwhile.
    fn if_running(&self, action: impl FnOnce(Pid) -> nix::Result<()>) -> io::Result<()> {
        let mut process = lock(&self.process);
        if process.try_wait()?.is_some() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("process {} has ended", self.pid)));
        }
        let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
        Ok(action(Pid::from_raw(pid))?)
    }
}

impl Drop for Child {
    /// A process is killed; a database server gets a moment to leave clean data. When this returns, the ports
    /// are free again.
    fn drop(&mut self) {
        // Whoever stalls would wait for ever.
        self.output.close();
        if self.ending == Ending::Server && self.if_running(|pid| kill(pid, Signal::SIGINT)).is_ok() {
            let deadline = Instant::now() + SERVER_GRACE;
            while Instant::now() < deadline && matches!(lock(&self.process).try_wait(), Ok(None)) {
                std::thread::sleep(EXIT_POLL);
            }
        }
        self.kill();
        lock(&self.process).wait().ok();
    }
}
