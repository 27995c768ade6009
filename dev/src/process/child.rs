//! One child process: its environment, output, signals and exit.
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
    watchdog::{StopMethod, Watchdog},
};

/// Environment variables that a child inherits, because programs require them to run, or to report backtraces and test
/// coverage. All other variables, such as a developer's `DATABASE_URL` or `RUST_LOG`, are removed, so that a child
/// behaves identically on every machine.
const INHERITED_VARIABLES: [&str; 12] = [
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

/// Interval of checks for a child's exit. The exit is polled, because a blocking `wait` could reap the child between
/// the check and the signal of [`Child::if_running`]. The signal could then reach another process with the same id.
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Timeout of the clean shutdown of a database server whose [`Child`] is dropped.
const SERVER_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A process before its start.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    stop_method: StopMethod,
    log: Option<PathBuf>,
    capture: bool,
    echo: &'static [Stream],
}

impl Launch {
    /// Creates a launch with a minimal environment, which [`Launch::env`] and [`Launch::envs`] extend.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear();
        for name in INHERITED_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Self { command, stop_method: StopMethod::Process, log: None, capture: true, echo: &[] }
    }

    /// Returns the program's name for messages.
    pub fn program(&self) -> String {
        self.command.get_program().to_string_lossy().into_owned()
    }

    /// Adds variables, for a tool that the user configures through the environment.
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

    /// Runs the process as another user, which only root is allowed to do.
    #[must_use]
    pub fn run_as(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self
    }

    /// Sets the method by which the watchdog and the destructor of [`Child`] stop the process; [`StopMethod::Process`]
    /// by default.
    #[must_use]
    pub fn stop_method(mut self, stop_method: StopMethod) -> Self {
        self.stop_method = stop_method;
        self
    }

    /// Appends every line to this file. If the output is captured, a file that exceeds its maximum size is renamed with
    /// the suffix `.1`.
    #[must_use]
    pub fn log_to(mut self, file: &Path) -> Self {
        self.log = Some(file.to_owned());
        self
    }

    /// Lets the child write to the log file directly. This process then captures no lines. Without a log file, the
    /// output is discarded.
    #[must_use]
    pub fn uncaptured(mut self) -> Self {
        self.capture = false;
        self
    }

    /// Copies the lines of these streams to this process's standard error.
    #[must_use]
    pub fn echo(mut self, streams: &'static [Stream]) -> Self {
        self.echo = streams;
        self
    }

    /// Starts the process in its own process group, watched by the watchdog.
    pub fn start(mut self) -> io::Result<Child> {
        let watchdog = Watchdog::global()?;
        // The file is opened even if the output is captured, because a rotating log does not report a file that cannot
        // be opened.
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
        if let Err(error) = watchdog.watch(pid, self.stop_method) {
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
        let child = Child {
            pid,
            stop_method: self.stop_method,
            process: Arc::clone(&process),
            exit: exit.subscribe(),
            output,
        };
        std::thread::spawn(move || watch_for_exit(pid, &process, &exit, watchdog));
        Ok(child)
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn watch_for_exit(
    pid: u32,
    process: &Mutex<std::process::Child>,
    exit: &watch::Sender<Option<ExitStatus>>,
    watchdog: &Watchdog,
) {
    loop {
        // A separate variable, so that the lock is released before the sleep.
        let result = lock(process).try_wait();
        match result {
            Ok(None) => std::thread::sleep(EXIT_POLL_INTERVAL),
            Ok(Some(status)) => {
                // An error means that the watchdog has ended.
                watchdog.forget(pid).ok();
                exit.send_replace(Some(status));
                return;
            }
            // Other code of this process has reaped the child by `waitpid`.
            Err(_) => return,
        }
    }
}

/// The reason why [`Child::wait`], [`Child::stop`] or [`Child::stop_by`] returned no exit status.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error("process {pid} is still running after {} s", .waited.as_secs_f32())]
    StillRunning { pid: u32, waited: Duration },
    #[error("the exit status of process {pid} was collected by other code")]
    Lost { pid: u32 },
    #[error(transparent)]
    Signal(#[from] io::Error),
}

/// A running process, which is stopped when the value is dropped.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    stop_method: StopMethod,
    process: Arc<Mutex<std::process::Child>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    output: Arc<Output>,
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the exit status, if the process has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal to the process itself. For an ended process the error kind is `NotFound`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.if_running(|pid| kill(pid, signal))
    }

    /// Waits for the exit, at most until the deadline. Then waits until all output has been read, for at most one
    /// second.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus, WaitError> {
        let pid = self.pid;
        let mut exit = self.exit.clone();
        let status = match timeout(deadline, exit.wait_for(Option::is_some)).await {
            Ok(Ok(status)) => status.ok_or(WaitError::Lost { pid })?,
            Ok(Err(_)) => return Err(WaitError::Lost { pid }),
            Err(_) => return Err(WaitError::StillRunning { pid, waited: deadline }),
        };
        self.output.wait_until_drained(Duration::from_secs(1)).await;
        Ok(status)
    }

    /// Sends SIGTERM, and kills the process at the deadline. The exit status shows whether the kill was necessary.
    pub async fn stop(&self, deadline: Duration) -> Result<ExitStatus, WaitError> {
        self.stop_by(Signal::SIGTERM, deadline).await
    }

    /// Stops the process like [`Child::stop`], with `signal` in place of SIGTERM.
    pub async fn stop_by(&self, signal: Signal, deadline: Duration) -> Result<ExitStatus, WaitError> {
        match self.signal(signal) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        match self.wait(deadline).await {
            Err(WaitError::StillRunning { .. }) => {
                self.kill();
                self.wait(Duration::from_secs(5)).await
            }
            result => result,
        }
    }

    /// Returns the lines in memory, oldest first.
    pub fn lines(&self) -> Vec<Line> {
        self.output.lines()
    }

    /// Returns the newest `count` lines, oldest first.
    pub fn tail(&self, count: usize) -> Vec<Line> {
        self.output.tail(count)
    }

    /// Stops reading standard output, as a stalled log shipper does. The pipe stays open and fills.
    pub fn stall_stdout(&self) {
        self.output.stall();
    }

    /// Resumes reading standard output after [`Child::stall_stdout`].
    pub fn resume_stdout(&self) {
        self.output.resume();
    }

    /// Closes standard output, as a crashed log shipper does.
    pub fn close_stdout(&self) {
        self.output.close();
    }

    /// Returns a reader that starts at the oldest line in memory.
    pub fn follow(&self) -> Follower {
        self.output.follow(false)
    }

    /// Returns a reader of further output.
    pub fn follow_from_now(&self) -> Follower {
        self.output.follow(true)
    }

    /// Kills the whole process group, including the child's own children. A database server receives an immediate
    /// shutdown instead, because the server's children have their own process groups and would outlive a killed server.
    fn kill(&self) {
        let action = |pid| match self.stop_method {
            StopMethod::Process => killpg(pid, Signal::SIGKILL),
            StopMethod::Server => kill(pid, Signal::SIGQUIT),
        };
        // An error means that the process has already ended.
        self.if_running(action).ok();
    }

    /// Runs the action unless the process has ended. The held lock prevents reaping, so the process id cannot be reused
    /// during the action.
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
    /// Kills the process, and waits for its exit, so that its ports are free again. A database server is first shut
    /// down cleanly.
    fn drop(&mut self) {
        // A stalled reader would wait forever.
        self.output.close();
        if self.stop_method == StopMethod::Server && self.if_running(|pid| kill(pid, Signal::SIGINT)).is_ok()
        {
            let deadline = Instant::now() + SERVER_STOP_TIMEOUT;
            while Instant::now() < deadline && matches!(lock(&self.process).try_wait(), Ok(None)) {
                std::thread::sleep(EXIT_POLL_INTERVAL);
            }
        }
        self.kill();
        lock(&self.process).wait().ok();
    }
}
