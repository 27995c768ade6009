//! The database server of the environment: a single server with persistent data, or a temporary primary with a standby.
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
};

use super::{
    Error,
    database::{self, Database},
};
use crate::{
    failover::{AfterRestore, Operator, Replication},
    postgres::{Purpose, ReplicatedServer, ReplicationMode, Server},
};

/// The running server or servers.
#[derive(Debug)]
pub(super) enum DatabaseServer {
    Single(Box<Server>),
    Replicated(Box<Operator>),
}

impl DatabaseServer {
    /// Uses the server that `DEV_DATABASE_URL` or `DATABASE_URL` names, or starts a server with persistent data in this
    /// directory. Prepares the database.
    pub(super) async fn start_single(
        directory: PathBuf,
        executable: &Path,
        fresh: bool,
        progress: &dyn Fn(&str),
    ) -> Result<(Self, Database), Error> {
        let server = Server::find_or_start(Purpose::Development { directory }, progress).await?;
        let database = database::prepare(&server, executable, fresh, progress).await?;
        Ok((Self::Single(Box::new(server)), database))
    }

    /// Starts a temporary primary with a synchronous standby, and prepares its database. `log` is the file with the
    /// service's log lines, which `after-restore` reads.
    pub(super) async fn start_replicated(
        executable: &Path,
        log: PathBuf,
        progress: &dyn Fn(&str),
    ) -> Result<(Self, Database), Error> {
        let server = Server::find_or_start(Purpose::Durable, progress).await?;
        let prepared = database::prepare(&server, executable, false, progress).await?;
        progress("starting a synchronous standby");
        let server = ReplicatedServer::start(server, Some(ReplicationMode::Synchronous), progress).await?;
        let database = Database {
            service_url: server.url_of_nodes(&prepared.url),
            url: server.url_of_primary(&prepared.url),
            owner_url: server.url_of_primary(&prepared.owner_url),
        };
        let after_restore = AfterRestore {
            executable: executable.to_owned(),
            url: database.url.clone(),
            owner_url: database.owner_url.clone(),
            logs: vec![log],
        };
        Ok((Self::Replicated(Box::new(Operator::new(server, after_restore))), database))
    }

    /// Returns the interface through which the console observes and changes a replicated database. Returns `None` for a
    /// single server.
    pub(super) fn replication(&self) -> Option<Replication> {
        match self {
            Self::Single(_) => None,
            Self::Replicated(operator) => Some(operator.replication()),
        }
    }

    /// Makes base backups of a replicated database, and carries out the console's requests for a failover or a restore,
    /// until the future is dropped. With a single server, only waits. `settings` are the service's settings.
    pub(super) async fn run(&mut self, settings: &[(String, String)], progress: &dyn Fn(&str)) -> Infallible {
        match self {
            Self::Single(_) => std::future::pending().await,
            Self::Replicated(operator) => operator.run(settings, progress).await,
        }
    }

    pub(super) async fn stop(self) -> Result<(), Error> {
        match self {
            Self::Single(server) => Ok(server.stop().await?),
            Self::Replicated(operator) => Ok(operator.stop().await?),
        }
    }
}
