//! A PostgreSQL server of our own: created, run as a child process, and stopped.
use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use nix::{sys::signal::kill, unistd::Pid};
use rand::distr::{Alphanumeric, SampleString as _};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    Error, Purpose,
    base_backup::{self, Taken},
    binaries::{Binaries, run},
    unix_user::UnixUser,
};
use crate::{
    ports,
    process::{Child, Ending, Launch, Signal, Watchdog},
    project,
};

/// The superuser of our clusters.
const SUPERUSER: &str = "postgres";

/// Deadline of a start. After a crash of the machine, recovery reads the whole log.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// Deadline of a stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Message in the log of a server whose port is in use.
const PORT_TAKEN: &str = "could not bind";

/// Interval of checks for another process's progress.
const POLL: Duration = Duration::from_millis(20);

/// Maximum number of attempts at a start that fails for a temporary reason.
const ATTEMPTS: usize = 5;

/// Settings of test servers. A test server serves all tests of a binary concurrently, each with its own services and
/// pools. Its data is deleted at the end, so no write needs to reach a disk.
const FOR_TESTS: [&str; 5] = [
    "max_connections=400",
    "max_prepared_transactions=4",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
];

/// A running server that this process started.
#[derive(Debug)]
pub(super) struct Cluster {
    child: Child,
    binaries: Binaries,
    account: UnixUser,
    files: Files,
    purpose: Purpose,
    pub(super) admin_url: Url,
}

/// The files of one cluster, in a directory that only the server's user can access.
#[derive(Debug)]
struct Files {
    directory: PathBuf,
}

impl Files {
    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn password(&self) -> PathBuf {
        self.directory.join("password")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("postgres.log")
    }

    fn port(&self) -> PathBuf {
        self.directory.join("port")
    }
}

/// A base backup, which becomes the data of a server.
#[derive(Debug)]
pub(super) struct BaseBackup {
    binaries: Binaries,
    account: UnixUser,
    files: Files,
    purpose: Purpose,
    taken: Taken,
}

impl BaseBackup {
    /// Returns the earliest moment to which the backup can be recovered.
    pub(super) fn ended(&self) -> DateTime<Utc> {
        self.taken.ended
    }

    /// Lets the server of this backup recover to a moment, with the WAL of another server.
    pub(super) fn recover_to(&self, moment: DateTime<Utc>, source: &Cluster) -> Result<(), Error> {
        base_backup::recover_to(
            moment,
            &self.files.data(),
            &source.files.data().join("pg_wal"),
            &self.account,
        )
    }

    /// Deletes the backup.
    pub(super) fn discard(self) -> Result<(), Error> {
        std::fs::remove_dir_all(&self.files.directory).map_err(Error::io("remove a base backup"))
    }

    pub(super) async fn start(self, progress: &dyn Fn(&str)) -> Result<Cluster, Error> {
        let Self { binaries, account, files, purpose, taken: _keeps_wal } = self;
        let (child, admin_url) =
            Cluster::start_patiently(&binaries, &account, &files, &purpose, progress).await?;
        Ok(Cluster { child, binaries, account, files, purpose, admin_url })
    }
}

impl Cluster {
    /// Starts a server from the first of `installed` that can serve the data.
    pub(super) async fn start(
        installed: &[Binaries],
        account: &UnixUser,
        purpose: &Purpose,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let directory = match purpose {
            Purpose::Development { directory } => directory.join("postgres"),
            Purpose::Tests | Purpose::Durable => unique_directory(account),
        };
        std::fs::create_dir_all(&directory).map_err(Error::io(format!("make {}", directory.display())))?;
        if purpose.is_temporary() {
            Watchdog::global()
                .and_then(|watchdog| watchdog.remove(&directory))
                .map_err(Error::io("start the watchdog"))?;
        }
        account.own(&directory, 0o700)?;
        let files = Files { directory };
        let binaries = fitting(installed, &files.data())?;
        progress(&format!("starting {binaries} as {account}, data in {}", files.directory.display()));

        if !files.data().join("PG_VERSION").exists() {
            initialise(binaries, account, &files, purpose).await?;
        }
        stop_orphan(&files.data(), progress).await?;

        let (child, admin_url) = Self::start_patiently(binaries, account, &files, purpose, progress).await?;
        let (binaries, account, purpose) = (binaries.clone(), account.clone(), purpose.clone());
        Ok(Self { child, binaries, account, files, purpose, admin_url })
    }

    /// Makes a base backup of this server. With `primary`, it becomes a standby of the server at this URL. Otherwise it
    /// starts as a primary.
    pub(super) async fn back_up(&self, primary: Option<&Url>) -> Result<BaseBackup, Error> {
        let directory = unique_directory(&self.account);
        std::fs::create_dir_all(&directory).map_err(Error::io(format!("make {}", directory.display())))?;
        Watchdog::global()
            .and_then(|watchdog| watchdog.remove(&directory))
            .map_err(Error::io("start the watchdog"))?;
        self.account.own(&directory, 0o700)?;
        let files = Files { directory };
        std::fs::copy(self.files.password(), files.password()).map_err(Error::io("copy the password"))?;
        self.account.own(&files.password(), 0o600)?;
        let taken = base_backup::make(
            &self.admin_url,
            self.files.data(),
            files.data(),
            self.account.clone(),
            primary,
        )
        .await?;
        let (binaries, account, purpose) =
            (self.binaries.clone(), self.account.clone(), self.purpose.clone());
        Ok(BaseBackup { binaries, account, files, purpose, taken })
    }

    async fn start_patiently(
        binaries: &Binaries,
        account: &UnixUser,
        files: &Files,
        purpose: &Purpose,
        progress: &dyn Fn(&str),
    ) -> Result<(Child, Url), Error> {
        let mut attempt = 1;
        loop {
            let started = Self::start_once(binaries, account, files, purpose).await;
            let Err(Error::Start { .. }) = &started else { return started };
            // The whole log is read: processes of a killed server end only now, and write to the log after the reason.
            let log = text_of(&files.log());
            if attempt == ATTEMPTS || !passes(&log) {
                return started;
            }
            progress("starting PostgreSQL again: its port or its memory was still in use");
            if log.contains(PORT_TAKEN) {
                // Otherwise the next attempt would use the remembered port again.
                std::fs::remove_file(files.port()).ok();
            }
            sleep(Duration::from_millis(200)).await;
            attempt += 1;
        }
    }

    /// Stops the server with a signal and restarts it on the same data. The port is the same if it is still free.
    pub(super) async fn restart(&mut self, signal: Signal, progress: &dyn Fn(&str)) -> Result<(), Error> {
        self.halt(signal).await?;
        (self.child, self.admin_url) =
            Self::start_patiently(&self.binaries, &self.account, &self.files, &self.purpose, progress)
                .await?;
        Ok(())
    }

    async fn start_once(
        binaries: &Binaries,
        account: &UnixUser,
        files: &Files,
        purpose: &Purpose,
    ) -> Result<(Child, Url), Error> {
        let password = std::fs::read_to_string(files.password()).map_err(Error::io("read the password"))?;
        let port = free_port(&files.port()).map_err(Error::io("find a free port"))?;
        // The log of an earlier start must not be mistaken for the reason of this failure.
        std::fs::write(files.log(), "").map_err(Error::io("write the log of PostgreSQL"))?;

        let port_setting = format!("port={port}");
        let mut settings =
            vec!["listen_addresses=127.0.0.1", "unix_socket_directories=", "timezone=UTC", &port_setting];
        if purpose.is_fast() {
            settings.extend(FOR_TESTS);
        }
        let child = account
            .launch(&binaries.program("postgres"))
            .args(["-D".as_ref(), files.data().as_os_str()])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .log_to(&files.log())
            .uncaptured()
            .ending(Ending::Server)
            .start()
            .map_err(Error::io("start PostgreSQL"))?;

        let url = format!("postgres://{SUPERUSER}:{}@127.0.0.1:{port}/postgres", password.trim());
        let admin_url = Url::parse(&url)
            .map_err(|error| Error::io("address PostgreSQL")(std::io::Error::other(error)))?;
        accepts_connections(&child, &admin_url, &files.log()).await?;
        std::fs::write(files.port(), port.to_string()).map_err(Error::io("store the port"))?;
        Ok((child, admin_url))
    }

    /// Stops the server with a fast shutdown: open transactions are rolled back, and the data is consistent. A
    /// temporary server is killed at once, because its data is not needed.
    pub(super) async fn stop(self) -> Result<(), Error> {
        let signal = if self.purpose.is_temporary() { Signal::SIGQUIT } else { Signal::SIGINT };
        self.stop_by(signal).await
    }

    /// Stops the server with a signal. Its data stays.
    pub(super) async fn halt(&self, signal: Signal) -> Result<(), Error> {
        self.child.stop_by(signal, STOP_DEADLINE).await?;
        Ok(())
    }

    /// Stops the server with a signal. The data of a temporary server is deleted.
    pub(super) async fn stop_by(self, signal: Signal) -> Result<(), Error> {
        self.halt(signal).await?;
        if self.purpose.is_temporary() {
            std::fs::remove_dir_all(&self.files.directory).map_err(Error::io("remove the temporary data"))?;
        }
        Ok(())
    }

    pub(super) fn log(&self) -> PathBuf {
        self.files.log()
    }
}

/// Deletes the server that [`Purpose::Development`] keeps in this directory, with all its databases.
pub async fn erase(directory: &Path, progress: &dyn Fn(&str)) -> Result<(), Error> {
    let files = Files { directory: directory.join("postgres") };
    if !files.directory.exists() {
        return Ok(());
    }
    stop_orphan(&files.data(), progress).await?;
    std::fs::remove_dir_all(files.directory).map_err(Error::io("delete the database server's data"))
}

/// Returns a short, unpredictable name in a shared directory, so that no other user can have created it before.
fn unique_directory(account: &UnixUser) -> PathBuf {
    let unique = Alphanumeric.sample_string(&mut rand::rng(), 10);
    account.temporary_directory().join(format!("{}-test-{unique}", project::name()))
}

/// Returns the installation whose major version created the data, or the first installation if there is no data yet.
fn fitting<'a>(installed: &'a [Binaries], data: &Path) -> Result<&'a Binaries, Error> {
    let version = std::fs::read_to_string(data.join("PG_VERSION")).ok();
    let made_by: Option<u32> = version.and_then(|version| version.trim().parse().ok());
    let fits = |binaries: &&Binaries| made_by.is_none_or(|major| binaries.major == major);
    installed.iter().find(fits).ok_or_else(|| Error::OtherMajor {
        directory: data.to_owned(),
        made_by: made_by.unwrap_or_default(),
        found: installed.iter().map(|binaries| binaries.major.to_string()).collect::<Vec<_>>().join(", "),
    })
}

async fn initialise(
    binaries: &Binaries,
    account: &UnixUser,
    files: &Files,
    purpose: &Purpose,
) -> Result<(), Error> {
    let password = Alphanumeric.sample_string(&mut rand::rng(), 32);
    std::fs::write(files.password(), password).map_err(Error::io("write the password"))?;
    account.own(&files.password(), 0o600)?;

    // The directory has another name until `initdb` completes, because an interrupted `initdb` would look like a
    // cluster.
    let unfinished = files.directory.join("unfinished");
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).map_err(Error::io("remove an unfinished data directory"))?;
    }
    // The same sort order of texts on every machine. Only Linux certainly has the UTF-8 variant, which also classifies
    // letters beyond ASCII.
    let locale = if cfg!(target_os = "linux") { "--locale=C.UTF-8" } else { "--locale=C" };
    let mut initdb = account
        .launch(&binaries.program("initdb"))
        .args(["-D".as_ref(), unfinished.as_os_str()])
        .args(["--pwfile".as_ref(), files.password().as_os_str()])
        .args(["-U", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8", "--lc-messages=C", locale]);
    if purpose.is_fast() {
        initdb = initdb.args(["--no-sync"]);
    }
    run(initdb).await?;
    std::fs::rename(unfinished, files.data()).map_err(Error::io("name the data directory"))
}

/// Stops a server that still runs on the data after its parent and the watchdog were both killed. PostgreSQL itself
/// cleans up after a dead server.
async fn stop_orphan(data: &Path, progress: &dyn Fn(&str)) -> Result<(), Error> {
    let lock = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let Some(pid) = lock.lines().next().and_then(|line| line.trim().parse().ok()) else { return Ok(()) };
    // Another process may have this id by now.
    let command = run(Launch::new("ps").args(["-o", "command=", "-p", &format!("{pid}")])).await;
    if !command.is_ok_and(|command| command.contains(&data.display().to_string())) {
        return Ok(());
    }
    progress(&format!("stopping the PostgreSQL of an earlier run (pid {pid})"));
    let pid = Pid::from_raw(pid);
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // The process may end between the check and the signal.
        kill(pid, signal).ok();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !data.join("postmaster.pid").exists() || kill(pid, None).is_err() {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

/// Returns the port of the last run, so that bookmarks of database tools stay valid, or another free port. Another
/// process may take the port before PostgreSQL does; in that case the start is repeated.
fn free_port(remembered: &Path) -> std::io::Result<u16> {
    let last = std::fs::read_to_string(remembered).ok().and_then(|port| port.trim().parse().ok());
    let listen = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = match last.map(listen) {
        Some(Ok(listener)) => listener,
        Some(Err(_)) | None => ports::listen()?,
    };
    Ok(listener.local_addr()?.port())
}

async fn accepts_connections(child: &Child, url: &Url, log: &Path) -> Result<(), Error> {
    let failed = |reason| Error::Start { reason, log: end_of(log) };
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        // The exit is checked first, so that another server on the port is not mistaken for ours.
        if child.exited().is_some() {
            return Err(failed("it ended"));
        }
        if let Ok(connection) = PgConnection::connect(url.as_str()).await {
            connection.close().await?;
            return Ok(());
        }
        sleep(POLL).await;
    }
    Err(failed("it does not accept connections"))
}

/// Returns whether the failure in the log is temporary.
fn passes(log: &str) -> bool {
    [PORT_TAKEN, "pre-existing shared memory block"].iter().any(|reason| log.contains(reason))
}

fn text_of(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

fn end_of(log: &Path) -> String {
    let text = text_of(log);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}
