//! The replicas and their supervisor, which restarts dead replicas.
use std::{
    ffi::OsStr,
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use uuid::Uuid;

use crate::{
    http, ports,
    process::{Child, Launch, Signal},
};

use super::full_disk::FullDisk;

/// Deadline of a stop, longer than the service's own shutdown deadline.
const STOP_DEADLINE: Duration = Duration::from_secs(40);

/// Number of log lines shown for a replica that does not become ready.
const LAST_LOG_LINES: usize = 12;

/// Several processes of one executable, with separate ports. All have the same settings, except a replica with a crash
/// point, a full disk or a rotated secret.
pub(super) struct Fleet {
    executable: PathBuf,
    settings: Vec<(&'static str, String)>,
    replicas: Vec<Replica>,
    /// Directory of the replicas' logs, deleted with the fleet.
    logs: PathBuf,
    client: reqwest::Client,
    full_disk: FullDisk,
    /// Number of processes that were killed, crashed or exited, and were then replaced.
    pub(super) replica_exits: u32,
}

struct Replica {
    api: SocketAddr,
    ops: SocketAddr,
    child: Child,
    /// True while the replica has a secret that differs from the gateway's secret.
    is_rotated: bool,
}

impl Fleet {
    /// Starts one replica for each pair of addresses: an API address, and an address for health and metrics.
    pub(super) fn start(
        executable: PathBuf,
        settings: Vec<(&'static str, String)>,
        addresses: &[(SocketAddr, SocketAddr)],
    ) -> Result<Self, super::Error> {
        let client = http::client(Duration::from_secs(2))?;
        let logs = std::env::temp_dir().join(format!("campaign-{}", Uuid::now_v7().simple()));
        fs::create_dir_all(&logs)?;
        let mut fleet = Self {
            executable,
            settings,
            replicas: Vec::new(),
            logs,
            client,
            full_disk: FullDisk::new(),
            replica_exits: 0,
        };
        for (api, ops) in addresses {
            let child = fleet.launch(*api, *ops, None)?;
            fleet.replicas.push(Replica { api: *api, ops: *ops, child, is_rotated: false });
        }
        Ok(fleet)
    }

    /// Returns `count` pairs of currently free addresses: an API address, and an address for health and metrics.
    pub(super) fn addresses(count: usize) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
        let listeners: Vec<_> = (0..count * 2).map(|_| ports::listen()).collect::<io::Result<_>>()?;
        let addresses: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        let (api, ops) = addresses.split_at(count);
        Ok(api.iter().copied().zip(ops.iter().copied()).collect())
    }

    fn launch(
        &self,
        api: SocketAddr,
        ops: SocketAddr,
        extra_setting: Option<(&str, &OsStr)>,
    ) -> io::Result<Child> {
        let mut launch = Launch::new(&self.executable)
            .args(["serve"])
            .directory("/".as_ref())
            .log_to(&self.log(api))
            .env("API_ADDRESS", api.to_string())
            .env("OPS_ADDRESS", ops.to_string());
        for (name, value) in &self.settings {
            launch = launch.env(name, value);
        }
        if let Some((name, value)) = extra_setting {
            launch = launch.env(name, value);
        }
        launch.start()
    }

    fn log(&self, api: SocketAddr) -> PathBuf {
        self.logs.join(format!("{}.log", api.port()))
    }

    /// Returns the path of each replica's log, which also contains the lines of the replica's earlier processes.
    pub(super) fn logs(&self) -> Vec<PathBuf> {
        self.replicas.iter().map(|replica| self.log(replica.api)).collect()
    }

    /// Returns the replicas' settings.
    pub(super) fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// Returns the API's address and the process id of each replica.
    pub(super) fn processes(&self) -> Vec<(SocketAddr, u32)> {
        self.replicas.iter().map(|replica| (replica.api, replica.child.pid())).collect()
    }

    /// Sends SIGKILL to a replica (`kill -9`).
    pub(super) fn kill(&self, replica: usize) {
        if let Some(replica) = self.replicas.get(replica) {
            // The replica may already be dead.
            let _ = replica.child.signal(Signal::SIGKILL);
        }
    }

    /// Replaces a replica with one that crashes at the given point.
    pub(super) async fn crash(&mut self, replica: usize, point: &str) -> Result<(), super::Error> {
        self.replace(replica, "CRASH_AT", point.as_ref()).await
    }

    /// Replaces a replica with one whose log is on a full disk. This replica runs until another fault ends it. Has no
    /// effect on a system without `/dev/full`.
    pub(super) async fn fill_disk(&mut self, replica: usize) -> Result<(), super::Error> {
        match self.full_disk.path()?.map(Path::to_owned) {
            Some(directory) => self.replace(replica, "LOG_DIRECTORY", directory.as_os_str()).await,
            None => Ok(()),
        }
    }

    /// Replaces a replica with one that has another value of this secret.
    pub(super) async fn rotate(
        &mut self,
        replica: usize,
        name: &str,
        value: &str,
    ) -> Result<(), super::Error> {
        self.replace(replica, name, value.as_ref()).await?;
        if let Some(replica) = self.replicas.get_mut(replica) {
            replica.is_rotated = true;
        }
        Ok(())
    }

    /// Kills the replicas with a rotated secret. [`Self::restart_dead_replicas`] restarts them with the common
    /// settings.
    pub(super) fn end_rotations(&mut self) {
        for replica in self.replicas.iter_mut().filter(|replica| replica.is_rotated) {
            // The replica may already be dead.
            let _ = replica.child.signal(Signal::SIGKILL);
        }
    }

    /// Kills every replica, and waits for their exits.
    pub(super) async fn kill_all(&self) -> Result<(), super::Error> {
        for (number, replica) in self.replicas.iter().enumerate() {
            self.kill(number);
            replica.child.wait(STOP_DEADLINE).await?;
        }
        Ok(())
    }

    async fn replace(&mut self, replica: usize, name: &str, value: &OsStr) -> Result<(), super::Error> {
        self.kill(replica);
        let Some((api, ops)) = self.replicas.get(replica).map(|replica| (replica.api, replica.ops)) else {
            return Ok(());
        };
        if let Some(killed) = self.replicas.get(replica) {
            killed.child.wait(STOP_DEADLINE).await?;
        }
        let child = self.launch(api, ops, Some((name, value)))?;
        if let Some(replica) = self.replicas.get_mut(replica) {
            replica.child = child;
            replica.is_rotated = false;
            self.replica_exits += 1;
        }
        Ok(())
    }

    /// Restarts dead replicas. Reports the last output line of each replica that was not killed by a signal.
    pub(super) fn restart_dead_replicas(&mut self, progress: &dyn Fn(&str)) -> io::Result<()> {
        for number in 0..self.replicas.len() {
            let dead = self.replicas.get(number).filter(|replica| replica.child.exited().is_some());
            let Some(dead) = dead else { continue };
            if let Some(code) = dead.child.exited().and_then(|status| status.code()) {
                let last: Vec<_> = dead.child.tail(1).into_iter().map(|line| line.text).collect();
                progress(&format!("  replica {number} ended with exit code {code}: {}", last.concat()));
            }
            let (api, ops) = (dead.api, dead.ops);
            let child = self.launch(api, ops, None)?;
            if let Some(replica) = self.replicas.get_mut(number) {
                replica.child = child;
                replica.is_rotated = false;
                self.replica_exits += 1;
            }
        }
        Ok(())
    }

    /// Returns whether every replica is ready.
    pub(super) async fn are_ready(&self) -> bool {
        for replica in &self.replicas {
            if self.readiness(replica).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Returns the response of `/readyz` as an error if the replica is not ready.
    async fn readiness(&self, replica: &Replica) -> Result<(), String> {
        let response = self.client.get(format!("http://{}/readyz", replica.ops)).send().await;
        let response = response.map_err(|error| format!("no response: {error}"))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        Err(format!("{status} {}", response.text().await.unwrap_or_default()))
    }

    /// Returns the state of each replica, with the last log lines of each replica that is not ready.
    pub(super) async fn describe_replicas(&self) -> Vec<String> {
        let mut description = Vec::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            match self.readiness(replica).await {
                Ok(()) => description.push(format!("replica {number} is ready")),
                Err(why) => {
                    let last = replica.child.tail(LAST_LOG_LINES);
                    description.push(format!("replica {number} is not ready: {why}"));
                    description.extend(
                        last.into_iter().map(|line| format!("replica {number} logged: {}", line.text)),
                    );
                }
            }
        }
        description
    }

    /// Stops every replica gracefully, and waits for each exit.
    pub(super) async fn stop(self) -> Result<(), super::Error> {
        for replica in &self.replicas {
            replica.child.stop(STOP_DEADLINE).await?;
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.logs).ok();
    }
}
