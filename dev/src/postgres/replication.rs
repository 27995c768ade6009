//! A primary with a standby: streaming replication, failover, switchover and restore.
//!
//! Each of the two nodes has a TCP proxy with a constant address, because every failover replaces a node's server. A
//! node that has lost its server gets a new standby, made from a base backup of the primary.
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use chrono::{DateTime, Utc};
use clap::ValueEnum;
use tokio::time::{Instant, sleep};
use url::Url;

use super::{Error, Server, cluster::BaseBackup};
use crate::{process::Signal, tcp_proxy::TcpProxy};

/// Time between the stop of the replication and the loss of the primary. The standby lacks the commits of this time.
const REPLICATION_LAG: Duration = Duration::from_millis(500);

/// Deadline for a new standby to catch up with the primary.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(30);

/// Interval of checks whether the standby has caught up.
const CATCH_UP_POLL: Duration = Duration::from_millis(20);

/// Maximum number of base backups. The older one is kept for a recovery to a moment before the end of the newer one.
const MAX_BACKUPS: usize = 2;

/// Durability of a confirmed commit in a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReplicationMode {
    /// A commit is confirmed once the standby has the commit on disk. A failover loses no confirmed commit, but a
    /// restore can lose the last confirmed commits.
    Synchronous,
    /// A commit is confirmed before the standby has the commit. A failover can lose the last confirmed commits.
    Asynchronous,
}

/// A change of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failover {
    /// The primary's process is killed, which closes its connections. The standby is promoted.
    ProcessKilled,
    /// The primary's host is lost, and its connections stay open without any response. The standby is promoted.
    HostLost,
    /// The primary shuts down cleanly, which sends all WAL to the standby. The standby is promoted.
    Switchover,
    /// Both servers are lost. The newest base backup of [`ReplicatedServer::back_up`] becomes the primary.
    Restore,
}

/// A primary and its standby, or a primary alone.
#[derive(Debug)]
pub struct ReplicatedServer {
    primary: Server,
    standby: Option<Server>,
    /// `None` for a primary alone.
    mode: Option<ReplicationMode>,
    nodes: Vec<TcpProxy>,
    /// Index of the primary's node.
    active: usize,
    /// Proxy to the current primary, redirected after every change of the primary.
    to_primary: TcpProxy,
    /// Proxy between the primary and the standby.
    replication: TcpProxy,
    /// Backups of the current primary, oldest first.
    backups: Vec<BaseBackup>,
}

impl ReplicatedServer {
    /// Starts a standby of `primary`, which must be a temporary server of this process. Without a mode there is one
    /// node and no standby.
    pub async fn start(
        primary: Server,
        mode: Option<ReplicationMode>,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let open = async || {
            let proxy = TcpProxy::to(primary.admin_url()).await;
            proxy.map_err(Error::io("open a proxy to PostgreSQL"))
        };
        let (to_primary, replication) = (open().await?, open().await?);
        let mut nodes = vec![open().await?];
        if mode.is_some() {
            nodes.push(open().await?);
        }
        let (standby, backups) = (None, Vec::new());
        let mut server = Self { primary, standby, mode, nodes, active: 0, to_primary, replication, backups };
        server.rejoin(progress).await?;
        Ok(server)
    }

    /// Returns the current primary.
    pub fn primary(&self) -> &Server {
        &self.primary
    }

    /// Returns the proxies of the nodes.
    pub fn nodes(&self) -> &[TcpProxy] {
        &self.nodes
    }

    /// Returns `url` with the address of the proxy to the current primary. The address stays the same when the primary
    /// changes.
    pub fn url_of_primary(&self, url: &Url) -> Url {
        self.to_primary.url_through(url)
    }

    /// Returns `url` with the addresses of all nodes, for a client that selects the writable primary itself.
    pub fn url_of_nodes(&self, url: &Url) -> String {
        let mut url = self.to_primary.url_through(url);
        url.set_query(Some("target_session_attrs=read-write"));
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        url.as_str().replacen(&self.to_primary.address().to_string(), &addresses.join(","), 1)
    }

    /// Returns whether this change of the primary may lose confirmed commits.
    pub fn may_lose(&self, failover: Failover) -> bool {
        match failover {
            Failover::Restore => true,
            Failover::Switchover => false,
            Failover::ProcessKilled | Failover::HostLost => self.mode != Some(ReplicationMode::Synchronous),
        }
    }

    /// Makes a base backup for [`Failover::Restore`] and [`Self::recover`].
    pub async fn back_up(&mut self) -> Result<(), Error> {
        self.backups.push(self.primary.back_up().await?);
        while self.backups.len() > MAX_BACKUPS {
            self.backups.remove(0).discard()?;
        }
        Ok(())
    }

    fn discard_backups(&mut self) -> Result<(), Error> {
        self.backups.drain(..).try_for_each(BaseBackup::discard)
    }

    /// Replaces the primary. Returns once the new primary accepts writes. The new primary has no standby until
    /// [`Self::rejoin`]. Clients reach a restored primary only after [`Self::admit`], and any other new primary
    /// immediately.
    pub async fn fail_over(&mut self, failover: Failover, progress: &dyn Fn(&str)) -> Result<(), Error> {
        match failover {
            Failover::Restore => return self.restore(progress).await,
            Failover::Switchover => {}
            Failover::ProcessKilled | Failover::HostLost => {
                self.replication.freeze();
                sleep(REPLICATION_LAG).await;
            }
        }
        if failover == Failover::HostLost
            && let Some(node) = self.nodes.get(self.active)
        {
            node.freeze();
        }
        let standby = self.standby.take().ok_or(Error::NoStandby)?;
        let lost = std::mem::replace(&mut self.primary, standby);
        let clean = failover == Failover::Switchover;
        let signal = if clean { Signal::SIGINT } else { Signal::SIGQUIT };
        lost.halt(signal).await?;
        self.active = 1 - self.active;
        self.primary.promote().await?;
        reconnect(&self.to_primary, &self.primary)?;
        // Deleting the lost server's data takes seconds, so clients are first directed to the new primary.
        lost.stop_by(signal).await?;
        self.discard_backups()
    }

    async fn restore(&mut self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        let backup = self.backups.pop().ok_or(Error::NoBackup)?;
        let restored = self.primary.start_on_backup(backup, progress).await?;
        self.replace(restored).await
    }

    /// Restores the database to a moment. If the moment is before every base backup, restores the database to the end
    /// of the oldest backup. Returns the restored moment. Clients reach the restored server after [`Self::admit`].
    pub async fn recover(
        &mut self,
        moment: DateTime<Utc>,
        progress: &dyn Fn(&str),
    ) -> Result<DateTime<Utc>, Error> {
        let newest = self.backups.iter().rposition(|backup| backup.ended() <= moment);
        let chosen = newest.unwrap_or_default();
        if chosen >= self.backups.len() {
            return Err(Error::NoBackup);
        }
        let backup = self.backups.remove(chosen);
        let moment = moment.max(backup.ended());
        let restored = self.primary.start_recovered(backup, moment, progress).await?;
        self.replace(restored).await?;
        Ok(moment)
    }

    /// Replaces both servers with a primary without a standby.
    async fn replace(&mut self, primary: Server) -> Result<(), Error> {
        confirm_by_standby(&primary, false).await?;
        std::mem::replace(&mut self.primary, primary).stop_by(Signal::SIGQUIT).await?;
        if let Some(standby) = self.standby.take() {
            standby.stop_by(Signal::SIGQUIT).await?;
        }
        self.discard_backups()
    }

    /// Lets clients reach the restored server.
    pub fn admit(&self) -> Result<(), Error> {
        let mut proxies = self.nodes.get(self.active).into_iter().chain([&self.to_primary]);
        proxies.try_for_each(|proxy| reconnect(proxy, &self.primary))
    }

    /// Returns `url` with the current primary's own port, which is valid until the next change of the primary.
    pub fn direct_url(&self, url: &Url) -> Url {
        let mut url = url.clone();
        // The call fails only for a URL without a host. Such a server could not have been reached.
        url.set_port(self.primary.admin_url().port()).ok();
        url
    }

    /// Starts a new standby on the node without a server, and waits until the standby follows the primary. Has no
    /// effect if a standby exists, or without a mode.
    pub async fn rejoin(&mut self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        let Some(mode) = self.mode.filter(|_| self.standby.is_none()) else { return Ok(()) };
        reconnect(&self.replication, &self.primary)?;
        let source = self.replication.url_through(self.primary.admin_url());
        let standby = self.primary.standby_with_primary_at(&source, progress).await?;
        // The standby has copied the primary's setting `synchronous_standby_names`. A promoted standby has no standby
        // of its own, so with this setting its commits would wait forever.
        confirm_by_standby(&standby, false).await?;
        if let Some(node) = self.nodes.get(1 - self.active) {
            // The proxy passes only new connections to the standby. Connections to a lost host stay open without a
            // response, as after a real loss.
            node.redirect_to(address_of(&standby)?);
            node.replace_host();
        }
        self.standby = Some(standby);
        let synchronous = mode == ReplicationMode::Synchronous;
        confirm_by_standby(&self.primary, synchronous).await?;
        self.caught_up(if synchronous { "sync" } else { "async" }).await
    }

    /// Waits until the standby streams in this synchronization state.
    async fn caught_up(&self, state: &str) -> Result<(), Error> {
        let mut connection = self.primary.connect().await?;
        let deadline = Instant::now() + CATCH_UP_DEADLINE;
        while Instant::now() < deadline {
            let caught_up = sqlx::query_scalar(
                "select exists (
                   select from pg_stat_replication where state = 'streaming' and sync_state = $1
                 )",
            );
            if caught_up.bind(state).fetch_one(&mut connection).await? {
                return Ok(());
            }
            sleep(CATCH_UP_POLL).await;
        }
        Err(Error::StandbyBehind(CATCH_UP_DEADLINE))
    }

    /// Stops the primary with a signal and restarts it on the same data.
    pub async fn restart(&mut self, signal: Signal, progress: &dyn Fn(&str)) -> Result<(), Error> {
        self.primary.restart(signal, progress).await?;
        for proxy in self.nodes.get(self.active).into_iter().chain([&self.to_primary, &self.replication]) {
            proxy.redirect_to(address_of(&self.primary)?);
        }
        Ok(())
    }

    /// Stops both servers.
    pub async fn stop(self) -> Result<(), Error> {
        if let Some(standby) = self.standby {
            standby.stop().await?;
        }
        self.primary.stop().await
    }
}

/// Directs new connections to this server, and closes open connections.
fn reconnect(proxy: &TcpProxy, server: &Server) -> Result<(), Error> {
    proxy.redirect_to(address_of(server)?);
    proxy.interrupt();
    Ok(())
}

/// Sets whether a commit is confirmed only once a standby has the commit.
async fn confirm_by_standby(server: &Server, confirm: bool) -> Result<(), Error> {
    let names = if confirm { "*" } else { "" };
    let set = format!("alter system set synchronous_standby_names = '{names}'");
    server.execute(&[set, "select pg_reload_conf()".to_owned()]).await
}

fn address_of(server: &Server) -> Result<SocketAddr, Error> {
    let port = server.admin_url().port().ok_or_else(|| io::Error::other("the URL has no port"));
    Ok((Ipv4Addr::LOCALHOST, port.map_err(Error::io("address PostgreSQL"))?).into())
}
