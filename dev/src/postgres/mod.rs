//! A PostgreSQL server to work on, found or started, and databases on it.
//!
//! The order of the search: a server that the user names, the server programs of this machine, a download.
//! Each step says what it found and why it goes on, because "why does it use *that* database" is the first
//! question when something is odd.
//!
//! The rule on a server that is not ours: only what carries our [`Mark`] is changed or dropped. A database
//! of the same name that someone else made is an error, never a target.
mod account;
mod binaries;
mod cluster;
mod download;
mod mark;
mod search;
mod server;
mod sql;

pub use cluster::erase;
pub use mark::Mark;
pub use server::{Presence, Rights, Server};

use std::{io, path::PathBuf};

use tokio::sync::OnceCell;

use crate::process::WaitError;

/// The oldest major version that the migrations run on.
const OLDEST_MAJOR: u32 = 15;

/// What the server is for, which decides where its data lives and how safe it is.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// Kept in this directory from run to run, and safe against a crash of the machine. The caller makes
    /// sure that no one else starts a server there.
    Development { directory: PathBuf },
    /// Temporary and fast: nothing survives the process, so nothing is flushed to disk.
    Tests,
    /// Temporary, always a server of our own, and as safe as one in production: it will be killed.
    Durable,
}

impl Purpose {
    /// Whether the data ends with the process.
    fn is_temporary(&self) -> bool {
        matches!(self, Self::Tests | Self::Durable)
    }

    /// Whether safety is given up for speed.
    fn is_fast(&self) -> bool {
        matches!(self, Self::Tests)
    }

    /// Whether a server that the user names will do.
    fn may_be_named(&self) -> bool {
        !matches!(self, Self::Durable)
    }
}

/// Why there is no server, or why it refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{setting} is set but cannot be used: {reason}")]
    Setting { setting: &'static str, reason: String },
    #[error(
        "no PostgreSQL {OLDEST_MAJOR} or newer was found, and the download from github.com failed ({download}). \
         Install it with `{install}`, or set DEV_DATABASE_URL to a server where this may create databases and roles"
    )]
    NotFound { download: String, install: &'static str },
    #[error(
        "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor a user `nobody` to run it as"
    )]
    NoAccount,
    #[error(
        "the data in {} was made by PostgreSQL {made_by}, which is not on this machine (found: {found}). \
         Install that version, or delete the data with --fresh", .directory.display()
    )]
    OtherMajor { directory: PathBuf, made_by: u32, found: String },
    #[error("{program} failed:\n{output}")]
    Program { program: String, output: String },
    #[error("PostgreSQL did not start: {reason}. Its log ends with:\n{log}")]
    Start { reason: &'static str, log: String },
    #[error(
        "the {kind} `{name}` exists on this server but was made by someone else, or for something else ({made}): it is left alone"
    )]
    NotOurs { kind: &'static str, name: String, made: String },
    #[error("the server was not started here, so it is not restarted here")]
    NotStartedHere,
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: io::Error },
    #[error(transparent)]
    Process(#[from] WaitError),
    #[error("PostgreSQL says: {0}")]
    Sql(#[from] sqlx::Error),
}

impl Error {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// The one server of this test process: started by the first test that asks, ended by the watchdog after
/// the last one.
pub async fn for_tests() -> Result<&'static Server, Error> {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let start = || Server::find_or_start(Purpose::Tests, &|line| eprintln!("{line}"));
    SERVER.get_or_try_init(start).await
}
