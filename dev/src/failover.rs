//! The replicated database of `cargo dev --standby`: its state, and the changes of the primary that the console
//! requests.
//!
//! [`Replication`] is the console's interface: the console requests changes and reads the state. [`Operator`] owns the
//! servers, and carries out one request at a time. [`AfterRestore`] runs the service's command after a restore.
use std::{
    collections::VecDeque,
    convert::Infallible,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use url::Url;

use crate::{
    faults::{Fault, Period},
    postgres::{self, Failover, ReplicatedServer},
    process::{Launch, WaitError},
};

/// Age of the restored state: [`Change::Restore`] restores the database to its state this long before the restore. If
/// every base backup is younger than this, the database is restored to the end of the oldest base backup.
const RESTORE_SPAN: Duration = Duration::from_secs(30);

/// Interval of base backups. A restore replays the WAL since a base backup, so the primary must keep all WAL since its
/// oldest stored backup. To limit the amount of WAL, at most two backups are stored, and each further backup replaces
/// the older one.
const BACKUP_INTERVAL: Duration = Duration::from_mins(10);

/// Deadline of the service's command `after-restore`, including the comparison with the records of the external
/// services.
const AFTER_RESTORE_DEADLINE: Duration = Duration::from_mins(1);

/// Deadline of reading a node's state.
const STATE_DEADLINE: Duration = Duration::from_secs(1);

/// Maximum number of remembered changes.
const MAX_REPORTS: usize = 20;

/// A change of the primary, identified by its name in URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The primary is killed, and the standby is promoted. The old primary's node gets a new standby.
    Failover,
    /// The database is restored to its state [`RESTORE_SPAN`] ago, and `after-restore` runs.
    Restore,
}

/// A change, in progress or ended.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeReport {
    pub change: Change,
    pub began: DateTime<Utc>,
    /// `None` while the change is in progress.
    pub ended: Option<DateTime<Utc>>,
    pub failed: bool,
    /// The current step, or the result.
    pub text: String,
}

/// A node of the replicated database.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    pub address: String,
    /// `primary`, `standby` or `unreachable`.
    pub role: &'static str,
    /// The state of the standby that follows this node: replication, synchronization and lag. `None` if no standby
    /// follows the node, or if the node is unreachable.
    pub standby: Option<Value>,
}

/// The reason why a change was rejected or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a change of the primary is in progress")]
    InProgress,
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error("the database is restored, but `after-restore` failed: {0}")]
    AfterRestore(String),
}

/// The console's interface to a replicated database. Clones share the state.
#[derive(Clone, Debug)]
pub struct Replication {
    /// Connection URL of each node, with the administrator's PostgreSQL role.
    nodes: Arc<[Url]>,
    /// The remembered changes, oldest first. Only the last change can be in progress.
    reports: watch::Sender<VecDeque<ChangeReport>>,
}

impl Replication {
    /// Requests a change. Fails while another change is in progress.
    pub fn request(&self, change: Change) -> Result<(), Error> {
        let accepted = self.reports.send_if_modified(|reports| {
            if reports.back().is_some_and(|report| report.ended.is_none()) {
                return false;
            }
            let text = "waiting for the operator".to_owned();
            reports.push_back(ChangeReport { change, began: Utc::now(), ended: None, failed: false, text });
            while reports.len() > MAX_REPORTS {
                reports.pop_front();
            }
            true
        });
        if accepted { Ok(()) } else { Err(Error::InProgress) }
    }

    /// Returns the remembered changes, oldest first.
    pub fn reports(&self) -> VecDeque<ChangeReport> {
        self.reports.borrow().clone()
    }

    /// Returns the remembered changes as periods of faults, oldest first.
    pub fn periods(&self) -> Vec<Period> {
        let period = |report: &ChangeReport| Period {
            fault: match report.change {
                Change::Failover => Fault::FAILOVER,
                Change::Restore => Fault::RESTORE,
            },
            began: report.began,
            ended: report.ended,
        };
        self.reports.borrow().iter().map(period).collect()
    }

    /// Returns a receiver that is notified when a change is requested, begins a step, or ends.
    pub fn changes(&self) -> watch::Receiver<VecDeque<ChangeReport>> {
        self.reports.subscribe()
    }

    /// Reads the state of every node.
    pub async fn nodes(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for url in self.nodes.iter() {
            let address =
                format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or_default());
            let (role, standby) = match timeout(STATE_DEADLINE, read_node(url)).await {
                Ok(Ok((true, _))) => ("standby", None),
                Ok(Ok((false, standby))) => ("primary", standby),
                Ok(Err(_)) | Err(_) => ("unreachable", None),
            };
            nodes.push(Node { address, role, standby });
        }
        nodes
    }

    /// Waits until a change is requested, and returns the change.
    async fn requested(&self) -> Change {
        let mut reports = self.reports.subscribe();
        loop {
            if let Some(report) = reports.borrow_and_update().back()
                && report.ended.is_none()
            {
                return report.change;
            }
            // The wait cannot fail, because `self` owns a sender.
            let _ = reports.changed().await;
        }
    }

    fn update(&self, update: impl FnOnce(&mut ChangeReport)) {
        self.reports.send_modify(|reports| {
            if let Some(report) = reports.back_mut() {
                update(report);
            }
        });
    }
}

/// Returns whether the node is a standby, and the state of the standby that follows the node.
async fn read_node(url: &Url) -> Result<(bool, Option<Value>), sqlx::Error> {
    let mut connection = PgConnection::connect(url.as_str()).await?;
    let state = sqlx::query_as(
        "select pg_is_in_recovery(), (
           select json_build_object(
             'state', state,
             'sync_state', sync_state,
             'lag_bytes', pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint,
             'lag_seconds', extract(epoch from replay_lag)::float8
           )
           from pg_stat_replication
           limit 1
         )",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(state)
}

/// The service's command `after-restore`, which runs before clients reach a restored database. If the command fails,
/// clients are admitted nevertheless, so that the alert `DatabaseRestored` can be observed.
#[derive(Clone, Debug)]
pub struct AfterRestore {
    pub executable: PathBuf,
    /// Connection URL with the service's PostgreSQL role.
    pub url: Url,
    /// Connection URL with the PostgreSQL role that owns the schema.
    pub owner_url: Url,
    /// The files with the service's log lines. They contain the heads of the audit log (`docs/audit.md`).
    pub logs: Vec<PathBuf>,
}

impl AfterRestore {
    /// Runs the command with these settings. Returns the command's output. The caller can repeat a failed command.
    pub async fn run(
        &self,
        server: &ReplicatedServer,
        settings: &[(impl AsRef<OsStr>, String)],
    ) -> Result<String, Error> {
        let mut launch = Launch::new(&self.executable)
            .args(["after-restore", "--reason", "restored on purpose", "--yes", "--log"])
            .args(&self.logs)
            .directory(Path::new("/"))
            .env("APP_ENV", "development");
        for (name, value) in settings {
            launch = launch.env(name, value);
        }
        let launch = launch
            .env("RUST_LOG", "warn")
            .env("DATABASE_URL", server.direct_url(&self.url).as_str())
            .env("DATABASE_MIGRATION_URL", server.direct_url(&self.owner_url).as_str());
        let failed = |error: WaitError| Error::AfterRestore(error.to_string());
        let process = launch.start().map_err(|error| failed(error.into()))?;
        let status = process.wait(AFTER_RESTORE_DEADLINE).await.map_err(failed)?;
        let lines: Vec<String> = process.lines().into_iter().map(|line| line.text).collect();
        let output = lines.join("\n");
        if status.success() { Ok(output) } else { Err(Error::AfterRestore(output)) }
    }
}

/// The owner of a primary and its standby, which carries out the console's requests.
#[derive(Debug)]
pub struct Operator {
    server: ReplicatedServer,
    after_restore: AfterRestore,
    replication: Replication,
}

impl Operator {
    pub fn new(server: ReplicatedServer, after_restore: AfterRestore) -> Self {
        let admin_url = server.primary().admin_url();
        let nodes = server.nodes().iter().map(|node| node.url_through(admin_url)).collect();
        let replication = Replication { nodes, reports: watch::Sender::default() };
        Self { server, after_restore, replication }
    }

    /// Returns the console's interface.
    pub fn replication(&self) -> Replication {
        self.replication.clone()
    }

    /// Carries out requests and makes base backups, until the future is dropped. `settings` are the service's settings.
    /// A base backup is made at the start, every [`BACKUP_INTERVAL`], and after every change that starts a standby. A
    /// change discards the earlier backups, so a restore cannot go back further than the last change.
    pub async fn run(&mut self, settings: &[(String, String)], progress: &dyn Fn(&str)) -> Infallible {
        let mut clock = interval(BACKUP_INTERVAL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let replication = self.replication();
        loop {
            tokio::select! {
                // The clock is polled first, so that a base backup exists before the first restore.
                biased;
                _ = clock.tick() => {
                    if let Err(error) = self.server.back_up().await {
                        progress(&format!("failed to make a base backup: {error}"));
                    }
                }
                change = replication.requested() => self.carry_out(change, settings, progress).await,
            }
        }
    }

    async fn carry_out(&mut self, change: Change, settings: &[(String, String)], progress: &dyn Fn(&str)) {
        let result = match change {
            Change::Failover => self.fail_over(progress).await,
            Change::Restore => self.restore(settings, progress).await,
        };
        let failed = result.is_err();
        let text = result.unwrap_or_else(|error| error.to_string());
        progress(&text);
        self.replication.update(|report| {
            *report = ChangeReport { ended: Some(Utc::now()), failed, text, ..report.clone() };
        });
    }

    async fn fail_over(&mut self, progress: &dyn Fn(&str)) -> Result<String, Error> {
        // An earlier change may have failed before it started a new standby.
        self.server.rejoin(progress).await?;
        let began = Instant::now();
        self.step("killing the primary and promoting the standby");
        self.server.fail_over(Failover::ProcessKilled, progress).await?;
        let promoted = began.elapsed();
        self.start_standby(progress).await?;
        Ok(format!(
            "the standby was promoted after {:.1} s, and a new standby and a base backup were ready after {:.1} s",
            promoted.as_secs_f32(),
            began.elapsed().as_secs_f32(),
        ))
    }

    async fn restore(
        &mut self,
        settings: &[(String, String)],
        progress: &dyn Fn(&str),
    ) -> Result<String, Error> {
        let began = Instant::now();
        self.step("stopping both servers and recovering a base backup");
        let moment = self.server.recover(Utc::now() - RESTORE_SPAN, progress).await?;
        self.step("running after-restore");
        let output = self.after_restore.run(&self.server, settings).await;
        self.server.admit()?;
        let admitted = began.elapsed();
        self.start_standby(progress).await?;
        Ok(format!(
            "the database was restored to {} within {:.1} s\n{}",
            moment.to_rfc3339_opts(SecondsFormat::Millis, true),
            admitted.as_secs_f32(),
            output?,
        ))
    }

    /// Starts a new standby, and makes the first base backup of the new primary.
    async fn start_standby(&mut self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        self.step("starting a standby on the other node");
        self.server.rejoin(progress).await?;
        Ok(self.server.back_up().await?)
    }

    fn step(&self, text: &str) {
        self.replication.update(|report| text.clone_into(&mut report.text));
    }

    /// Stops both servers.
    pub async fn stop(self) -> Result<(), Error> {
        Ok(self.server.stop().await?)
    }
}
