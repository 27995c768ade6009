//! All components of a campaign, and the execution of faults.
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{task::JoinSet, time::timeout};
use url::Url;

use super::{
    Error, Settings,
    faults::{Fault, Part, ScheduledFault, Secret},
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
        invariants::{self, Loss, Verdict},
        seed_products,
    },
    failover::{self, AfterRestore},
    postgres::{Failover, Purpose, ReplicatedServer, Server},
    process::{Launch, Signal},
    tcp_proxy::TcpProxy,
};

const GATEWAY_API_KEY: &str = "sk_for_campaigns";
const GATEWAY_WEBHOOK_SECRET: &str = "whsec_Zm9yIGNhbXBhaWducyBvbmx5LCBuZXZlciBlbHNld2hlcmU=";

/// Secrets that the gateway does not accept.
const OTHER_API_KEY: &str = "sk_not_accepted_yet";
const OTHER_WEBHOOK_SECRET: &str = "whsec_YW5vdGhlciBzZWNyZXQgdGhhdCBub2JvZHkgc2lnbnMgd2l0aA==";

/// Deadline of a fault that runs beside the others. Components that another fault has stopped can delay it.
const FAULT_DEADLINE: Duration = Duration::from_mins(1);

/// Deadline of a verification. The audit log of an hour is verified in far less.
const VERIFICATION: Duration = Duration::from_mins(2);

/// A database, a gateway and several replicas, with TCP proxies between them.
pub(super) struct TestBed {
    executable: PathBuf,
    server: ReplicatedServer,
    owner_url: Url,
    /// Connects as the service's role, bypassing the proxy with faults.
    database_url: Url,
    gateway: Arc<Simulator>,
    fleet: Fleet,
    /// Proxy and load balancer between callers and replicas, also for webhooks.
    api: TcpProxy,
    /// Proxy between replicas and gateway.
    charges: TcpProxy,
    exports: Arc<Exports>,
    /// Faults that run beside the others, and return the violations that they have found.
    running: JoinSet<Vec<String>>,
    /// True once a failover may have lost confirmed commits.
    may_have_lost: bool,
    /// True while the runbook of a restore must be followed.
    is_restored: bool,
    orphans: Orphans,
}

impl TestBed {
    pub(super) async fn set(settings: &Settings, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        let server = Server::find_or_start(Purpose::Durable, progress).await?;
        let prepared = environment::database::prepare(&server, &settings.executable, false, progress).await?;
        seed_products::offer(&prepared.owner_url, progress).await?;
        let addresses = Fleet::addresses(settings.replicas)?;
        let api = TcpProxy::open(addresses.iter().map(|(api, _)| *api).collect()).await?;
        let gateway = Arc::new(
            Simulator::start(gateway::Settings {
                address: SocketAddr::from(([127, 0, 0, 1], 0)),
                api_key: GATEWAY_API_KEY.to_owned(),
                webhook_secret: GATEWAY_WEBHOOK_SECRET.to_owned(),
                webhook_url: Some(Url::parse(&format!("http://{}/v1/gateway/events", api.address()))?),
                ledger_file: None,
            })
            .await?,
        );
        let charges = TcpProxy::open(vec![gateway.address()]).await?;
        let server = ReplicatedServer::start(server, settings.failover, progress).await?;

        // In a campaign of failovers all requests are of one customer.
        let caller_limit = if settings.failover.is_some() { "0" } else { "50" };
        let settings_of_replicas = vec![
            ("APP_ENV", "test".to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
            // Every verification of the audit log reads the heads in the logs of the whole campaign.
            ("RUST_LOG", "warn,audit=info".to_owned()),
            ("DATABASE_URL", server.url_of_nodes(&prepared.url)),
            ("GATEWAY_URL", format!("http://{}", charges.address())),
            ("GATEWAY_API_KEY", GATEWAY_API_KEY.to_owned()),
            ("GATEWAY_WEBHOOK_SECRET", GATEWAY_WEBHOOK_SECRET.to_owned()),
            // The shortest safe timeouts, so that an hour contains many rounds.
            ("GATEWAY_TIMEOUT_MS", "1000".to_owned()),
            ("PAYMENT_RECOVERY_INTERVAL_SECONDS", "1".to_owned()),
            ("PAYMENT_RECONCILIATION_INTERVAL_SECONDS", "1".to_owned()),
            ("DATABASE_ACQUIRE_TIMEOUT_MS", "1000".to_owned()),
            ("AUDIT_SEAL_INTERVAL_SECONDS", "1".to_owned()),
            ("WRITE_TIMEOUT_MS", "5000".to_owned()),
            // Logins with the old password follow each change.
            ("LOGIN_ATTEMPTS_BEFORE_LOCKOUT", "1000".to_owned()),
            ("ARGON2_MEMORY_KIB", "64".to_owned()),
            ("ARGON2_ITERATIONS", "1".to_owned()),
            // All callers share this machine's address.
            ("LOGIN_RATE_PER_ADDRESS_PER_MINUTE", "0".to_owned()),
            ("RATE_LIMIT_ADDRESS_PER_SECOND", "0".to_owned()),
            ("RATE_LIMIT_CALLER_PER_SECOND", caller_limit.to_owned()),
        ];
        let fleet = Fleet::start(settings.executable.clone(), settings_of_replicas, &addresses)?;
        Ok(Self {
            executable: settings.executable.clone(),
            owner_url: server.url_of_primary(&prepared.owner_url),
            database_url: server.url_of_primary(&prepared.url),
            server,
            gateway,
            fleet,
            api,
            charges,
            exports: Exports::new()?,
            running: JoinSet::new(),
            may_have_lost: false,
            is_restored: false,
            orphans: Orphans::default(),
        })
    }

    /// Returns the URL for callers.
    pub(super) fn api_url(&self) -> Result<Url, url::ParseError> {
        Url::parse(&format!("http://{}/", self.api.address()))
    }

    /// Returns the URL of the database, bypassing the proxy with faults.
    pub(super) fn owner_url(&self) -> &Url {
        &self.owner_url
    }

    fn links(&self, part: Part) -> &[TcpProxy] {
        match part {
            Part::Api => slice::from_ref(&self.api),
            Part::Database => self.server.nodes(),
            Part::Gateway => slice::from_ref(&self.charges),
        }
    }

    /// Makes the base backup that a restore among these faults needs.
    pub(super) async fn prepare(&mut self, strikes: &[ScheduledFault]) -> Result<(), Error> {
        if strikes.iter().any(|strike| strike.fault == Fault::Failover(Failover::Restore)) {
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

    /// Executes a fault.
    pub(super) async fn suffer(&mut self, fault: &Fault, progress: &dyn Fn(&str)) -> Result<(), Error> {
        match fault {
            Fault::Kill { replica } => self.fleet.kill(*replica),
            Fault::Crash { replica, point } => self.fleet.crash(*replica, point).await?,
            Fault::FullDisk { replica } => self.fleet.fill_disk(*replica).await?,
            Fault::RestartDatabase => self.server.restart(Signal::SIGINT, progress).await?,
            Fault::KillDatabase => self.server.restart(Signal::SIGKILL, progress).await?,
            Fault::Cut(part) => self.links(*part).iter().for_each(TcpProxy::interrupt),
            Fault::Slow(part, delay) => self.links(*part).iter().for_each(|link| link.slow(*delay)),
            Fault::Stall(part) => self.links(*part).iter().for_each(TcpProxy::freeze),
            Fault::Gateway(faults) => self.gateway.faults().set(faults.clone()),
            Fault::Lock(lock, time) => {
                let holding = lock.hold(self.owner_url.clone(), *time);
                self.run_beside(async {
                    // The database may be down.
                    let _ = holding.await;
                    Vec::new()
                });
            }
            Fault::ExportBesideReader => {
                let exporter = Exporter {
                    executable: self.executable.clone(),
                    owner_url: self.owner_url.clone(),
                    database_url: self.database_url.clone(),
                    exports: Arc::clone(&self.exports),
                };
                self.run_beside(exporter.export_beside_reader());
            }
            Fault::Rotation { replica, secret } => {
                let (name, value) = match secret {
                    Secret::ApiKey => ("GATEWAY_API_KEY", OTHER_API_KEY),
                    Secret::WebhookSecret => ("GATEWAY_WEBHOOK_SECRET", OTHER_WEBHOOK_SECRET),
                };
                self.fleet.rotate(*replica, name, value).await?;
            }
            Fault::OddEvents => {
                self.run_beside(odd_events::deliver(Arc::clone(&self.gateway), self.owner_url.clone()));
            }
            Fault::HostileTexts => {
                self.run_beside(hostile_clients::send_hostile_texts(self.api_url()?));
            }
            Fault::PasswordChanges => {
                self.run_beside(passwords::change_during_logins(self.addresses()));
            }
            Fault::SlowClients => {
                self.run_beside(hostile_clients::be_slow(self.addresses()));
            }
            Fault::Failover(failover) => {
                self.is_restored = self.server.may_lose(*failover);
                self.may_have_lost |= self.is_restored;
                self.server.fail_over(*failover, progress).await?;
                if *failover == Failover::Restore {
                    // The gateway's faults can fail the command. It is repeated at the end of the faults.
                    self.is_restored = self.run_after_restore().await.is_err();
                    self.server.admit()?;
                }
            }
        }
        Ok(())
    }

    /// Runs a fault beside the others.
    fn run_beside(&mut self, fault: impl Future<Output = Vec<String>> + Send + 'static) {
        self.running.spawn(async { timeout(FAULT_DEADLINE, fault).await.unwrap_or_default() });
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.replicas().into_iter().map(|(address, _)| address).collect()
    }

    /// Waits until the faults that run beside the others have ended. Returns the violations that they have found.
    pub(super) async fn findings(&mut self) -> Vec<String> {
        let mut findings = Vec::new();
        while let Some(ended) = self.running.join_next().await {
            findings.extend(ended.unwrap_or_else(|failed| vec![format!("a fault failed: {failed}")]));
        }
        findings
    }

    /// Runs the command that follows a restore.
    async fn run_after_restore(&self) -> Result<String, failover::Error> {
        let command = AfterRestore {
            executable: self.executable.clone(),
            url: self.database_url.clone(),
            owner_url: self.owner_url.clone(),
            logs: self.fleet.logs(),
        };
        command.run(&self.server, self.fleet.settings()).await
    }

    /// Ends all lasting faults. A lost node gets a new standby. If a failover may have lost commits, the runbook of a
    /// restore is followed.
    pub(super) async fn heal(&mut self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        self.server.rejoin(progress).await?;
        for part in [Part::Api, Part::Database, Part::Gateway] {
            self.links(part).iter().for_each(TcpProxy::mend);
        }
        self.gateway.faults().clear();
        self.fleet.end_rotations();
        if self.is_restored {
            self.fleet.kill_all().await?;
            self.run_after_restore().await?;
            self.is_restored = false;
        }
        Ok(())
    }

    pub(super) fn revive(&mut self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        Ok(self.fleet.revive(progress)?)
    }

    pub(super) async fn are_ready(&self) -> bool {
        self.fleet.are_ready().await
    }

    /// Returns the state of each replica, for the search for a cause.
    pub(super) async fn condition(&self) -> Vec<String> {
        self.fleet.condition().await
    }

    pub(super) fn deaths(&self) -> u32 {
        self.fleet.deaths
    }

    /// Counts the outcomes that were unknown at this moment and still are.
    pub(super) async fn unknown_since(&self, moment: DateTime<Utc>) -> Result<i64, Error> {
        Ok(super::unknown_since(self.owner_url.as_str(), moment).await?)
    }

    /// Compares the orphans of a reconciliation with the discrepancies that the service has recorded. `healed` is the
    /// end of the faults before the reconciliation. Returns the violations.
    pub(super) async fn review_orphans(
        &mut self,
        verdict: &Verdict,
        healed: DateTime<Utc>,
    ) -> Result<Vec<String>, Error> {
        Ok(self.orphans.review(&verdict.orphans, &self.owner_url, healed).await?)
    }

    /// Waits until the service has recorded every orphan, or until one is overdue.
    pub(super) async fn wait_for_orphans(&mut self) -> Result<(Vec<String>, OrphanReport), Error> {
        let violations = self.orphans.wait_until_found(&self.owner_url).await?;
        Ok((violations, self.orphans.report()))
    }

    /// Runs the reconciliation.
    pub(super) async fn check(&self) -> Result<Verdict, Error> {
        let loss = if self.may_have_lost { Loss::Possible } else { Loss::Impossible };
        Ok(invariants::check_after(loss, self.owner_url.as_str(), &self.gateway.url()).await?)
    }

    /// Verifies the hash chain of the audit log. Returns the problem, or `None`.
    pub(super) async fn verify_audit_log(&self) -> Result<Option<String>, Error> {
        let exported = self.exports.dropped(&self.owner_url).await?;
        let logs: Vec<_> = self.fleet.logs().into_iter().filter(|log| has_head(log)).collect();
        let verifying = Launch::new(&self.executable)
            .args(["audit", "verify"])
            .args(exported.first().map(|_| "--exported"))
            .args(exported)
            .args(logs.first().map(|_| "--log"))
            .args(logs)
            .directory("/".as_ref())
            .env("APP_ENV", "test")
            .env("DATABASE_URL", self.database_url.as_str())
            .start()?;
        let status = verifying.wait(VERIFICATION).await?;
        let told: Vec<_> = verifying.lines().into_iter().map(|line| line.text).collect();
        Ok((!status.success()).then(|| told.join(" ")))
    }

    /// Stops all components in order.
    pub(super) async fn strike_down(self) -> Result<(), Error> {
        self.fleet.stop().await?;
        self.gateway.stop().await;
        self.server.stop().await?;
        Ok(())
    }
}

/// Returns whether the log contains a head of the audit chain.
fn has_head(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|lines| lines.contains("\"seal_hash\""))
}
