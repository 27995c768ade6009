//! A PostgreSQL server, found or started, and its databases.
//!
//! The search order: a configured server (`DEV_DATABASE_URL` or `DATABASE_URL`), the programs of this machine, a
//! download. Each step reports its result, so that the user can see why a server was selected.
//!
//! On a server that this process has not started, only databases and roles with this project's [`Ownership`] comment
//! are altered or dropped. A database or role that has a required name but not this comment is an error.
mod base_backup;
mod binaries;
mod cluster;
mod download;
mod ownership;
mod replication;
mod search;
mod server;
mod sql;
mod unix_user;

pub use cluster::delete_data;
pub use ownership::Ownership;
pub use replication::{Failover, ReplicatedServer, ReplicationMode};
pub use server::{Presence, Rights, Server};

use std::{io, path::PathBuf, time::Duration};

use tokio::sync::OnceCell;

use crate::process::WaitError;

/// The oldest major version that the migrations support.
const MIN_MAJOR_VERSION: u32 = 15;

/// The purpose of the server, which determines the location and the durability of its data.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// The data is kept in this directory between runs, and is durable across a crash of the machine. The caller
    /// ensures that only one process starts a server in the directory.
    Development { directory: PathBuf },
    /// Temporary and fast: the data is deleted at the end of the process, so it is not flushed to disk.
    Tests,
    /// Temporary, always started by this process, and as durable as in production, because tests and failovers kill
    /// this server.
    Durable,
}

impl Purpose {
    /// Returns whether the data is deleted at the end of the process.
    fn is_temporary(&self) -> bool {
        matches!(self, Self::Tests | Self::Durable)
    }

    /// Returns whether durability is traded for speed.
    fn is_fast(&self) -> bool {
        matches!(self, Self::Tests)
    }

    /// Returns whether the server of `DEV_DATABASE_URL` or `DATABASE_URL` can be used.
    fn allows_configured_server(&self) -> bool {
        !matches!(self, Self::Durable)
    }
}

/// The reason why no server was found, or why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{setting} is set but unusable: {reason}")]
    Setting { setting: &'static str, reason: String },
    #[error(
        "no PostgreSQL {MIN_MAJOR_VERSION} or newer was found, and the download from repo1.maven.org failed ({download}). \
         Install PostgreSQL with `{install}`, or set DEV_DATABASE_URL to a server with a role that has the rights to create databases and roles"
    )]
    NotFound { download: String, install: &'static str },
    #[error(
        "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor a user `nobody` to run it as"
    )]
    NoUnixUser,
    #[error(
        "the data in {} was created by PostgreSQL {created_by}, which is not installed (found: {found}). \
         Install that version, or delete the data with --fresh", .directory.display()
    )]
    OtherMajor { directory: PathBuf, created_by: u32, found: String },
    #[error("{program} failed:\n{output}")]
    Program { program: String, output: String },
    #[error("PostgreSQL did not start: {reason}. Its log ends with:\n{log}")]
    Start { reason: &'static str, log: String },
    #[error(
        "the {kind} `{name}` exists on this server but was not created by this checkout ({comment}), so it stays unchanged"
    )]
    NotOurs { kind: &'static str, name: String, comment: String },
    #[error("the server was started by another program, so this process cannot stop, restart or copy it")]
    NotStartedHere,
    #[error("there is no standby to promote")]
    NoStandby,
    #[error("there is no base backup to restore")]
    NoBackup,
    #[error("timed out after {} s waiting for a point-in-time recovery", .0.as_secs())]
    NotRecovered(Duration),
    #[error("timed out after {} s waiting for the standby to follow the primary", .0.as_secs())]
    StandbyBehind(Duration),
    #[error("failed to {doing}: {source}")]
    Io { doing: String, source: io::Error },
    #[error(transparent)]
    Process(#[from] WaitError),
    #[error("PostgreSQL error: {0}")]
    Sql(#[from] sqlx::Error),
}

impl Error {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Returns a description of the PostgreSQL installation from which a server would be started.
pub async fn installation() -> String {
    let Ok(unix_user) = unix_user::UnixUser::choose() else { return Error::NoUnixUser.to_string() };
    let installed = binaries::installed(&unix_user, &|_| ()).await;
    installed.first().map_or_else(
        || format!("is downloaded at the first start (or: {})", download::install_command()),
        ToString::to_string,
    )
}

/// Returns the server that all tests of this process share. The first call finds or starts the server. After the end of
/// the process, the watchdog stops a server that the process has started.
pub async fn for_tests() -> Result<&'static Server, Error> {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let start = || Server::find_or_start(Purpose::Tests, &|line| eprintln!("{line}"));
    SERVER.get_or_try_init(start).await
}
