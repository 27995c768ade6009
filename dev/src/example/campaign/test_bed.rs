//! The database, the gateway, the replicas and the proxies of a campaign, and the execution of faults.
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use url::Url;

use super::{
    Error, POLL_INTERVAL, SETTLE_TIMEOUT, Settings,
    faults::{Component, Fault, ScheduledFault, Secret},
    fleet::Fleet,
    hostile_clients,
    locks::{Exporter, Exports},
    odd_events,
    orphans::{OrphanReport, Orphans},
    passwords,
};
use crate::{
    environment,
    example::{
        gateway::{self, Ledger, Simulator},
        invariants::{self, CheckReport, Loss},
        seed_products,
    },
    failover::{self, AfterRestore},
    postgres::{Failover, Purpose, ReplicatedServer, Server},
    process::{Launch, Signal},
    tcp_proxy::TcpProxy,
};

const GATEWAY_API_KEY: &str = "sk_for_campaigns";
const GATEWAY_WEBHOOK_SECRET: &str = "whsec_Zm9yIGNhbXBhaWducyBvbmx5LCBuZXZlciBlbHNld2hlcmU=";

/// Rotated secrets of a replica, which differ from the gateway's secrets.
const OTHER_API_KEY: &str = "sk_not_accepted_yet";
const OTHER_WEBHOOK_SECRET: &str = "whsec_YW5vdGhlciBzZWNyZXQgdGhhdCBub2JvZHkgc2lnbnMgd2l0aA==";

/// Deadline of a fault that runs concurrently with others. A timeout is not a violation, because another fault may have
/// stopped a component that this fault needs.
const FAULT_DEADLINE: Duration = Duration::from_mins(1);

/// Deadline of a verification of the audit log. A verification after a one-hour campaign takes far less time.
const VERIFICATION_DEADLINE: Duration = Duration::from_mins(2);

/// A database, a gateway and several replicas, with TCP proxies between them.
pub(super) struct TestBed {
    executable: PathBuf,
    server: ReplicatedServer,
    owner_url: Url,
    /// The database URL with the service's role. The URL does not lead through a proxy with faults.
    database_url: Url,
    gateway: Arc<Simulator>,
    fleet: Fleet,
    /// Proxy and load balancer between clients and replicas, also for webhooks.
    api_proxy: TcpProxy,
    /// Proxy between replicas and gateway.
    gateway_proxy: TcpProxy,
    exports: Arc<Exports>,
    /// Faults that run concurrently with the others, and return the violations that they have found.
    concurrent_faults: JoinSet<Vec<String>>,
    /// True once a failover may have lost confirmed commits.
    commits_may_be_lost: bool,
    /// True while the steps of `docs/runbooks/DatabaseRestored.md` are outstanding, because a failover may have lost
    /// commits.
    needs_restore_steps: bool,
    orphans: Orphans,
}

impl TestBed {
    pub(super) async fn start(settings: &Settings, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        let server = Server::find_or_start(Purpose::Durable, progress).await?;
        let prepared = environment::database::prepare(&server, &settings.executable, false, progress).await?;
        seed_products::seed(&prepared.owner_url, progress).await?;
        let addresses = Fleet::addresses(settings.replicas)?;
        let api_proxy = TcpProxy::open(addresses.iter().map(|(api, _)| *api).collect()).await?;
        let gateway = Arc::new(
            Simulator::start(gateway::Settings {
                address: SocketAddr::from(([127, 0, 0, 1], 0)),
                api_key: GATEWAY_API_KEY.to_owned(),
                webhook_secret: GATEWAY_WEBHOOK_SECRET.to_owned(),
                webhook_url: Some(Url::parse(&format!("http://{}/v1/gateway/events", api_proxy.address()))?),
                ledger_file: None,
            })
            .await?,
        );
        let gateway_proxy = TcpProxy::open(vec![gateway.address()]).await?;
        let server = ReplicatedServer::start(server, settings.failover, progress).await?;

        // In a campaign with failovers all buyers use one customer account, so the rate limit per caller is off.
        let caller_limit = if settings.failover.is_some() { "0" } else { "50" };
        let replica_settings = vec![
            ("APP_ENV", "test".to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
            // Every verification of the audit log reads all logs of the campaign. So the logs contain little except
            // the heads of the audit chain, which are the logged numbers and hashes of seals.
            ("RUST_LOG", "warn,audit=info".to_owned()),
            ("DATABASE_URL", server.url_of_nodes(&prepared.url)),
            ("GATEWAY_URL", format!("http://{}", gateway_proxy.address())),
            ("GATEWAY_API_KEY", GATEWAY_API_KEY.to_owned()),
            ("GATEWAY_WEBHOOK_SECRET", GATEWAY_WEBHOOK_SECRET.to_owned()),
            // Short timeouts and intervals, so that outcomes become known soon and a campaign has many rounds per hour.
            ("GATEWAY_TIMEOUT_MS", "1000".to_owned()),
            ("PAYMENT_RECOVERY_INTERVAL_SECONDS", "1".to_owned()),
            ("PAYMENT_RECONCILIATION_INTERVAL_SECONDS", "1".to_owned()),
            ("DATABASE_ACQUIRE_TIMEOUT_MS", "1000".to_owned()),
            ("AUDIT_SEAL_INTERVAL_SECONDS", "1".to_owned()),
            ("WRITE_TIMEOUT_MS", "5000".to_owned()),
            // Longer than a stall of the API proxy, which also holds back bodies, and shorter than the deadline of a
            // request. A request whose body times out gets 400, after which customers do not retry.
            ("BODY_TIMEOUT_MS", "9000".to_owned()),
            // The password changes cause many logins, of which many fail. So the account must not be locked, and the
            // password hashes are cheap.
            ("LOGIN_ATTEMPTS_BEFORE_LOCKOUT", "1000".to_owned()),
            ("ARGON2_MEMORY_KIB", "64".to_owned()),
            ("ARGON2_ITERATIONS", "1".to_owned()),
            // All clients have this machine's address, so the limits per address are off.
            ("LOGIN_RATE_PER_ADDRESS_PER_MINUTE", "0".to_owned()),
            ("RATE_LIMIT_ADDRESS_PER_SECOND", "0".to_owned()),
            ("RATE_LIMIT_CALLER_PER_SECOND", caller_limit.to_owned()),
        ];
        let fleet = Fleet::start(settings.executable.clone(), replica_settings, &addresses)?;
        Ok(Self {
            executable: settings.executable.clone(),
            owner_url: server.url_of_primary(&prepared.owner_url),
            database_url: server.url_of_primary(&prepared.url),
            server,
            gateway,
            fleet,
            api_proxy,
            gateway_proxy,
            exports: Exports::new()?,
            concurrent_faults: JoinSet::new(),
            commits_may_be_lost: false,
            needs_restore_steps: false,
            orphans: Orphans::default(),
        })
    }

    /// Returns the URL of the API for clients, which leads through the proxy to all replicas.
    pub(super) fn api_url(&self) -> Result<Url, url::ParseError> {
        Url::parse(&format!("http://{}/", self.api_proxy.address()))
    }

    /// Returns the database URL with the role of the schema owner. The URL does not lead through a proxy with faults.
    pub(super) fn owner_url(&self) -> &Url {
        &self.owner_url
    }

    fn proxies(&self, component: Component) -> &[TcpProxy] {
        match component {
            Component::Api => slice::from_ref(&self.api_proxy),
            Component::Database => self.server.nodes(),
            Component::Gateway => slice::from_ref(&self.gateway_proxy),
        }
    }

    /// Makes a base backup if one of these faults is a restore. The restore replaces the database with this backup.
    pub(super) async fn prepare(&mut self, scheduled_faults: &[ScheduledFault]) -> Result<(), Error> {
        if scheduled_faults.iter().any(|scheduled| scheduled.fault == Fault::Failover(Failover::Restore)) {
            self.server.back_up().await?;
        }
        Ok(())
    }

    /// Returns whether this failover may lose confirmed commits.
    pub(super) fn may_lose(&self, failover: Failover) -> bool {
        self.server.may_lose(failover)
    }

    /// Returns the gateway's ledger.
    pub(super) fn ledger(&self) -> Ledger {
        self.gateway.ledger()
    }

    /// Returns the API's address and the process id of each replica.
    pub(super) fn replicas(&self) -> Vec<(SocketAddr, u32)> {
        self.fleet.processes()
    }

    /// Injects a fault.
    pub(super) async fn inject(&mut self, fault: &Fault, progress: &dyn Fn(&str)) -> Result<(), Error> {
        match fault {
            Fault::Kill { replica } => self.fleet.kill(*replica),
            Fault::Crash { replica, point } => self.fleet.crash(*replica, point).await?,
            Fault::FullDisk { replica } => self.fleet.fill_disk(*replica).await?,
            Fault::RestartDatabase => self.server.restart(Signal::SIGINT, progress).await?,
            Fault::KillDatabase => self.server.restart(Signal::SIGKILL, progress).await?,
            Fault::Cut(component) => self.proxies(*component).iter().for_each(TcpProxy::interrupt),
            Fault::Slow(component, delay) => {
                self.proxies(*component).iter().for_each(|proxy| proxy.slow(*delay));
            }
            Fault::Stall(component) => self.proxies(*component).iter().for_each(TcpProxy::freeze),
            Fault::Gateway(faults) => self.gateway.faults().set(faults.clone()),
            Fault::Lock(lock, time) => {
                let holding = lock.hold(self.owner_url.clone(), *time);
                self.run_concurrently(async {
                    // An error is not a violation, because the database may be down.
                    let _ = holding.await;
                    Vec::new()
                });
            }
            Fault::ExportDuringRead => {
                let exporter = Exporter {
                    executable: self.executable.clone(),
                    owner_url: self.owner_url.clone(),
                    database_url: self.database_url.clone(),
                    exports: Arc::clone(&self.exports),
                };
                self.run_concurrently(exporter.export_during_read());
            }
            Fault::Rotation { replica, secret } => {
                let (name, value) = match secret {
                    Secret::ApiKey => ("GATEWAY_API_KEY", OTHER_API_KEY),
                    Secret::WebhookSecret => ("GATEWAY_WEBHOOK_SECRET", OTHER_WEBHOOK_SECRET),
                };
                self.fleet.rotate(*replica, name, value).await?;
            }
            Fault::OddEvents => {
                self.run_concurrently(odd_events::deliver(Arc::clone(&self.gateway), self.owner_url.clone()));
            }
            Fault::HostileTexts => {
                self.run_concurrently(hostile_clients::send_hostile_texts(self.api_url()?));
            }
            Fault::PasswordChanges => {
                self.run_concurrently(passwords::change_during_logins(self.addresses()));
            }
            Fault::SlowClients => {
                self.run_concurrently(hostile_clients::run_slow_clients(self.addresses()));
            }
            Fault::Failover(failover) => {
                self.needs_restore_steps = self.server.may_lose(*failover);
                self.commits_may_be_lost |= self.needs_restore_steps;
                self.server.fail_over(*failover, progress).await?;
                if *failover == Failover::Restore {
                    // The gateway's faults can make `after-restore` fail. `end_faults` repeats a failed command when
                    // the faults have ended.
                    self.needs_restore_steps = self.run_after_restore().await.is_err();
                    self.server.admit()?;
                }
            }
        }
        Ok(())
    }

    /// Runs a fault concurrently with others, for at most [`FAULT_DEADLINE`].
    fn run_concurrently(&mut self, fault: impl Future<Output = Vec<String>> + Send + 'static) {
        self.concurrent_faults.spawn(async { timeout(FAULT_DEADLINE, fault).await.unwrap_or_default() });
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.replicas().into_iter().map(|(address, _)| address).collect()
    }

    /// Waits until the concurrent faults have ended. Returns their violations.
    pub(super) async fn finish_concurrent_faults(&mut self) -> Vec<String> {
        let mut violations = Vec::new();
        while let Some(result) = self.concurrent_faults.join_next().await {
            violations.extend(result.unwrap_or_else(|failed| vec![format!("a fault failed: {failed}")]));
        }
        violations
    }

    /// Runs the service's command `after-restore`, and returns its output.
    async fn run_after_restore(&self) -> Result<String, failover::Error> {
        let command = AfterRestore {
            executable: self.executable.clone(),
            url: self.database_url.clone(),
            owner_url: self.owner_url.clone(),
            logs: self.fleet.logs(),
        };
        command.run(&self.server, self.fleet.settings()).await
    }

    /// Ends the delays, stalls, rotated secrets and gateway faults. Starts a new standby after a failover. If steps of
    /// `docs/runbooks/DatabaseRestored.md` are outstanding, executes the steps: all replicas are killed,
    /// `after-restore` runs, and the replicas start again.
    pub(super) async fn end_faults(&mut self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        self.server.rejoin(progress).await?;
        for component in [Component::Api, Component::Database, Component::Gateway] {
            self.proxies(component).iter().for_each(TcpProxy::resume);
        }
        self.gateway.faults().clear();
        self.fleet.end_rotations();
        if self.needs_restore_steps {
            self.fleet.kill_all().await?;
            self.run_after_restore().await?;
            self.needs_restore_steps = false;
            let deadline = Instant::now() + SETTLE_TIMEOUT;
            while !self.are_ready().await && Instant::now() < deadline {
                self.restart_dead_replicas(progress)?;
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    pub(super) fn restart_dead_replicas(&mut self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        Ok(self.fleet.restart_dead_replicas(progress)?)
    }

    pub(super) async fn are_ready(&self) -> bool {
        self.fleet.are_ready().await
    }

    /// Returns the state of each replica, for the report of a violation.
    pub(super) async fn describe_replicas(&self) -> Vec<String> {
        self.fleet.describe_replicas().await
    }

    pub(super) fn replica_exits(&self) -> u32 {
        self.fleet.replica_exits
    }

    /// Counts payments and refunds from before `moment` with an unknown outcome.
    pub(super) async fn count_unknown_from_before(&self, moment: DateTime<Utc>) -> Result<i64, Error> {
        Ok(super::count_unknown_from_before(self.owner_url.as_str(), moment).await?)
    }

    /// Compares the orphans of a reconciliation with the discrepancies that the service has recorded. `faults_ended` is
    /// the end of the faults before the reconciliation. Returns a violation for each orphan that the service has not
    /// recorded in time.
    pub(super) async fn review_orphans(
        &mut self,
        reconciliation: &CheckReport,
        faults_ended: DateTime<Utc>,
    ) -> Result<Vec<String>, Error> {
        Ok(self.orphans.review(&reconciliation.orphans, &self.owner_url, faults_ended).await?)
    }

    /// Waits until the service has recorded every orphan, or has not recorded one in time. Returns a violation for each
    /// orphan that is not recorded in time, and the report of all orphans.
    pub(super) async fn wait_for_orphans(&mut self) -> Result<(Vec<String>, OrphanReport), Error> {
        let violations = self.orphans.wait_until_found(&self.owner_url).await?;
        Ok((violations, self.orphans.report()))
    }

    /// Compares the service's tables with the gateway's ledger.
    pub(super) async fn reconcile(&self) -> Result<CheckReport, Error> {
        let loss = if self.commits_may_be_lost { Loss::Possible } else { Loss::Impossible };
        Ok(invariants::check_with_loss(loss, self.owner_url.as_str(), &self.gateway.url()).await?)
    }

    /// Runs `audit verify` on the audit log, the exported files and the heads in the replicas' logs. Returns the
    /// command's output if the command fails.
    pub(super) async fn verify_audit_log(&self) -> Result<Option<String>, Error> {
        let exported = self.exports.complete_files();
        let logs: Vec<_> = self.fleet.logs().into_iter().filter(|log| has_head(log)).collect();
        let process = Launch::new(&self.executable)
            .args(["audit", "verify"])
            .args(exported.first().map(|_| "--exported"))
            .args(exported)
            .args(logs.first().map(|_| "--log"))
            .args(logs)
            .directory("/".as_ref())
            .env("APP_ENV", "test")
            .env("DATABASE_URL", self.database_url.as_str())
            .start()?;
        let status = process.wait(VERIFICATION_DEADLINE).await?;
        let output: Vec<_> = process.lines().into_iter().map(|line| line.text).collect();
        Ok((!status.success()).then(|| output.join(" ")))
    }

    /// Stops all components: the replicas before their dependencies.
    pub(super) async fn stop(self) -> Result<(), Error> {
        self.fleet.stop().await?;
        self.gateway.stop().await;
        self.server.stop().await?;
        Ok(())
    }
}

/// Returns whether the log contains a head of the audit chain: a line with the number and hash of the newest seal.
fn has_head(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|lines| lines.contains("\"seal_hash\""))
}
