//! A PostgreSQL server that this process creates, runs as a child process, and stops.
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
    base_backup::{self, BackupSession},
    binaries::{Binaries, run},
    unix_user::UnixUser,
};
use crate::{
    ports,
    process::{Child, Launch, Signal, StopMethod, Watchdog},
    project,
};

/// The superuser of every server that this process creates.
const SUPERUSER: &str = "postgres";

/// Deadline of a start. A start after a crash of the machine takes longer than usual, because PostgreSQL replays the
/// WAL.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// Deadline of a stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Part of the server's log message if its port is in use.
const PORT_IN_USE: &str = "could not bind";

/// Interval of checks whether a server accepts connections or has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Maximum number of attempts at a start that fails for a temporary reason.
const MAX_START_ATTEMPTS: usize = 5;

/// Settings of test servers. All tests of a binary use one server concurrently, so the server allows many connections.
/// The data is deleted at the end, so writes are not flushed to the disk.
const TEST_SETTINGS: [&str; 5] = [
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
    unix_user: UnixUser,
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
    unix_user: UnixUser,
    files: Files,
    purpose: Purpose,
    session: BackupSession,
}

impl BaseBackup {
    /// Returns the earliest moment to which the backup can be recovered.
    pub(super) fn ended(&self) -> DateTime<Utc> {
        self.session.ended
    }

    /// Configures the backup to recover to a moment, with the WAL of another server.
    pub(super) fn recover_to(&self, moment: DateTime<Utc>, source: &Cluster) -> Result<(), Error> {
        base_backup::recover_to(
            moment,
            &self.files.data(),
            &source.files.data().join("pg_wal"),
            &self.unix_user,
        )
    }

    /// Deletes the backup.
    pub(super) fn discard(self) -> Result<(), Error> {
        std::fs::remove_dir_all(&self.files.directory).map_err(Error::io("remove a base backup"))
    }

    pub(super) async fn start(self, progress: &dyn Fn(&str)) -> Result<Cluster, Error> {
        let Self { binaries, unix_user, files, purpose, session: _keeps_wal } = self;
        let (child, admin_url) =
            Cluster::start_with_retries(&binaries, &unix_user, &files, &purpose, progress).await?;
        Ok(Cluster { child, binaries, unix_user, files, purpose, admin_url })
    }
}

impl Cluster {
    /// Starts a server with the first of the `installed` installations that can serve the data.
    pub(super) async fn start(
        installed: &[Binaries],
        unix_user: &UnixUser,
        purpose: &Purpose,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let directory = match purpose {
            Purpose::Development { directory } => directory.join("postgres"),
            Purpose::Tests | Purpose::Durable => unique_directory(unix_user),
        };
        std::fs::create_dir_all(&directory).map_err(Error::io(format!("make {}", directory.display())))?;
        if purpose.is_temporary() {
            Watchdog::global()
                .and_then(|watchdog| watchdog.remove(&directory))
                .map_err(Error::io("start the watchdog"))?;
        }
        unix_user.set_owner(&directory, 0o700)?;
        let files = Files { directory };
        let binaries = installation_for(installed, &files.data())?;
        progress(&format!("starting {binaries} as {unix_user}, data in {}", files.directory.display()));

        if !files.data().join("PG_VERSION").exists() {
            initialise(binaries, unix_user, &files, purpose).await?;
        }
        stop_orphan(&files.data(), progress).await?;

        let (child, admin_url) =
            Self::start_with_retries(binaries, unix_user, &files, purpose, progress).await?;
        let (binaries, unix_user, purpose) = (binaries.clone(), unix_user.clone(), purpose.clone());
        Ok(Self { child, binaries, unix_user, files, purpose, admin_url })
    }

    /// Makes a base backup of this server. With `primary`, the backup becomes a standby of the server at this URL.
    /// Otherwise the backup starts as a primary.
    pub(super) async fn back_up(&self, primary: Option<&Url>) -> Result<BaseBackup, Error> {
        let directory = unique_directory(&self.unix_user);
        std::fs::create_dir_all(&directory).map_err(Error::io(format!("make {}", directory.display())))?;
        Watchdog::global()
            .and_then(|watchdog| watchdog.remove(&directory))
            .map_err(Error::io("start the watchdog"))?;
        self.unix_user.set_owner(&directory, 0o700)?;
        let files = Files { directory };
        std::fs::copy(self.files.password(), files.password()).map_err(Error::io("copy the password"))?;
        self.unix_user.set_owner(&files.password(), 0o600)?;
        let session = base_backup::make(
            &self.admin_url,
            self.files.data(),
            files.data(),
            self.unix_user.clone(),
            primary,
        )
        .await?;
        let (binaries, unix_user, purpose) =
            (self.binaries.clone(), self.unix_user.clone(), self.purpose.clone());
        Ok(BaseBackup { binaries, unix_user, files, purpose, session })
    }

    async fn start_with_retries(
        binaries: &Binaries,
        unix_user: &UnixUser,
        files: &Files,
        purpose: &Purpose,
        progress: &dyn Fn(&str),
    ) -> Result<(Child, Url), Error> {
        let mut attempt = 1;
        loop {
            let result = Self::start_once(binaries, unix_user, files, purpose).await;
            let Err(Error::Start { .. }) = &result else { return result };
            // The whole log is searched, because remaining processes of a killed server may log lines after the reason.
            let log = read_log(&files.log());
            if attempt == MAX_START_ATTEMPTS || !is_temporary_failure(&log) {
                return result;
            }
            progress("starting PostgreSQL again: its port or its shared memory was still in use");
            if log.contains(PORT_IN_USE) {
                // Otherwise the next attempt would try the same port first.
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
            Self::start_with_retries(&self.binaries, &self.unix_user, &self.files, &self.purpose, progress)
                .await?;
        Ok(())
    }

    async fn start_once(
        binaries: &Binaries,
        unix_user: &UnixUser,
        files: &Files,
        purpose: &Purpose,
    ) -> Result<(Child, Url), Error> {
        let password = std::fs::read_to_string(files.password()).map_err(Error::io("read the password"))?;
        let port = free_port(&files.port()).map_err(Error::io("find a free port"))?;
        // The log is emptied, so that it contains only the messages of this start.
        std::fs::write(files.log(), "").map_err(Error::io("write the log of PostgreSQL"))?;

        let port_setting = format!("port={port}");
        let mut settings =
            vec!["listen_addresses=127.0.0.1", "unix_socket_directories=", "timezone=UTC", &port_setting];
        if purpose.is_fast() {
            settings.extend(TEST_SETTINGS);
        }
        let child = unix_user
            .launch(&binaries.program("postgres"))
            .args(["-D".as_ref(), files.data().as_os_str()])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .log_to(&files.log())
            .uncaptured()
            .stop_method(StopMethod::Server)
            .start()
            .map_err(Error::io("start PostgreSQL"))?;

        let url = format!("postgres://{SUPERUSER}:{}@127.0.0.1:{port}/postgres", password.trim());
        let admin_url = Url::parse(&url)
            .map_err(|error| Error::io("address PostgreSQL")(std::io::Error::other(error)))?;
        wait_until_connectable(&child, &admin_url, &files.log()).await?;
        std::fs::write(files.port(), port.to_string()).map_err(Error::io("store the port"))?;
        Ok((child, admin_url))
    }

    /// Stops the server with a fast shutdown: open transactions are rolled back, and the data is consistent. A
    /// temporary server gets an immediate shutdown, because its data is not needed.
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
pub async fn delete_data(directory: &Path, progress: &dyn Fn(&str)) -> Result<(), Error> {
    let files = Files { directory: directory.join("postgres") };
    if !files.directory.exists() {
        return Ok(());
    }
    stop_orphan(&files.data(), progress).await?;
    std::fs::remove_dir_all(files.directory).map_err(Error::io("delete the database server's data"))
}

/// Returns a path in a shared directory. The name is unpredictable, so that no other user can create the directory
/// first.
fn unique_directory(unix_user: &UnixUser) -> PathBuf {
    let unique = Alphanumeric.sample_string(&mut rand::rng(), 10);
    unix_user.temporary_directory().join(format!("{}-test-{unique}", project::name()))
}

/// Returns the installation whose major version created the data, or the first installation if there is no data yet.
fn installation_for<'a>(installed: &'a [Binaries], data: &Path) -> Result<&'a Binaries, Error> {
    let version = std::fs::read_to_string(data.join("PG_VERSION")).ok();
    let created_by: Option<u32> = version.and_then(|version| version.trim().parse().ok());
    let matches = |binaries: &&Binaries| created_by.is_none_or(|major| binaries.major == major);
    installed.iter().find(matches).ok_or_else(|| Error::OtherMajor {
        directory: data.to_owned(),
        created_by: created_by.unwrap_or_default(),
        found: installed.iter().map(|binaries| binaries.major.to_string()).collect::<Vec<_>>().join(", "),
    })
}

async fn initialise(
    binaries: &Binaries,
    unix_user: &UnixUser,
    files: &Files,
    purpose: &Purpose,
) -> Result<(), Error> {
    let password = Alphanumeric.sample_string(&mut rand::rng(), 32);
    std::fs::write(files.password(), password).map_err(Error::io("write the password"))?;
    unix_user.set_owner(&files.password(), 0o600)?;

    // The directory has another name until `initdb` completes, so that an interrupted `initdb` leaves no directory
    // `data`.
    let incomplete = files.directory.join("unfinished");
    if incomplete.exists() {
        std::fs::remove_dir_all(&incomplete).map_err(Error::io("remove an unfinished data directory"))?;
    }
    // With both locales, texts have the same sort order on every machine. `C.UTF-8` also classifies letters beyond
    // ASCII, but only Linux certainly has this locale.
    let locale = if cfg!(target_os = "linux") { "--locale=C.UTF-8" } else { "--locale=C" };
    let mut initdb = unix_user
        .launch(&binaries.program("initdb"))
        .args(["-D".as_ref(), incomplete.as_os_str()])
        .args(["--pwfile".as_ref(), files.password().as_os_str()])
        .args(["-U", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8", "--lc-messages=C", locale]);
    if purpose.is_fast() {
        initdb = initdb.args(["--no-sync"]);
    }
    run(initdb).await?;
    std::fs::rename(incomplete, files.data()).map_err(Error::io("rename the data directory"))
}

/// Stops a server of an earlier run that still uses the data. A server keeps running if its parent and the watchdog
/// were both killed. Does not delete the lock file of an ended server, because PostgreSQL does so at the next start.
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
            sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}

/// Returns the port of the last run, so that saved connections of database tools stay valid. Returns another port if
/// that port is in use, or at the first run. If another process takes the port before the server listens, the start is
/// repeated.
fn free_port(port_file: &Path) -> std::io::Result<u16> {
    let last = std::fs::read_to_string(port_file).ok().and_then(|port| port.trim().parse().ok());
    let listen = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = match last.map(listen) {
        Some(Ok(listener)) => listener,
        Some(Err(_)) | None => ports::listen()?,
    };
    Ok(listener.local_addr()?.port())
}

async fn wait_until_connectable(child: &Child, url: &Url, log: &Path) -> Result<(), Error> {
    let failed = |reason| Error::Start { reason, log: last_lines(log) };
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        // The exit is checked first, because another server may accept the connection on this port.
        if child.exited().is_some() {
            return Err(failed("its process exited"));
        }
        if let Ok(connection) = PgConnection::connect(url.as_str()).await {
            connection.close().await?;
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
    Err(failed("it accepted no connection in time"))
}

/// Returns whether the failure in the log is temporary.
fn is_temporary_failure(log: &str) -> bool {
    [PORT_IN_USE, "pre-existing shared memory block"].iter().any(|reason| log.contains(reason))
}

fn read_log(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

fn last_lines(log: &Path) -> String {
    let text = read_log(log);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}
