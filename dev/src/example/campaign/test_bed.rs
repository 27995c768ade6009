//! All components of a campaign, and the execution of faults.
use std::{net::SocketAddr, path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use url::Url;

use super::{
    Error, Settings,
    faults::{Fault, Part},
    fleet::Fleet,
};
use crate::{
    environment,
    example::{
        gateway::{self, Simulator},
        invariants::{self, Verdict},
        seed_products,
    },
    postgres::{Purpose, Server},
    process::{Launch, Signal},
    tcp_proxy::TcpProxy,
};

const GATEWAY_API_KEY: &str = "sk_for_campaigns";
const GATEWAY_WEBHOOK_SECRET: &str = "whsec_Zm9yIGNhbXBhaWducyBvbmx5LCBuZXZlciBlbHNld2hlcmU=";

/// Deadline of a verification. The audit log of an hour is verified in far less.
const VERIFICATION: Duration = Duration::from_mins(2);

/// A database, a gateway and several replicas, with TCP proxies between them.
pub(super) struct TestBed {
    executable: PathBuf,
    server: Server,
    owner_url: Url,
    /// Connects as the service's role, bypassing the proxy with faults.
    database_url: Url,
    gateway: Simulator,
    fleet: Fleet,
    /// Proxy and load balancer between callers and replicas, also for webhooks.
    api: TcpProxy,
    /// Proxy between replicas and database.
    database: TcpProxy,
    /// Proxy between replicas and gateway.
    charges: TcpProxy,
}

impl TestBed {
    pub(super) async fn set(settings: &Settings, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        let server = Server::find_or_start(Purpose::Durable, progress).await?;
        let prepared = environment::database::prepare(&server, &settings.executable, false, progress).await?;
        seed_products::offer(&prepared.owner_url, progress).await?;
        let addresses = Fleet::addresses(settings.replicas)?;
        let api = TcpProxy::open(addresses.iter().map(|(api, _)| *api).collect()).await?;
        let gateway = Simulator::start(gateway::Settings {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            api_key: GATEWAY_API_KEY.to_owned(),
            webhook_secret: GATEWAY_WEBHOOK_SECRET.to_owned(),
            webhook_url: Some(Url::parse(&format!("http://{}/v1/gateway/events", api.address()))?),
            ledger_file: None,
        })
        .await?;
        let charges = TcpProxy::open(vec![gateway.address()]).await?;
        let database = TcpProxy::to(&prepared.url).await?;

        let settings_of_replicas = vec![
            ("APP_ENV", "test".to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
            ("DATABASE_URL", database.leads_to(&prepared.url).to_string()),
            ("GATEWAY_URL", format!("http://{}", charges.address())),
            ("GATEWAY_API_KEY", GATEWAY_API_KEY.to_owned()),
            ("GATEWAY_WEBHOOK_SECRET", GATEWAY_WEBHOOK_SECRET.to_owned()),
            // The shortest safe timeouts, so that an hour contains many rounds.
            ("GATEWAY_TIMEOUT_MS", "1000".to_owned()),
            ("PAYMENT_RECOVERY_INTERVAL_SECONDS", "1".to_owned()),
            ("PAYMENT_RECONCILIATION_INTERVAL_SECONDS", "1".to_owned()),
            ("DATABASE_ACQUIRE_TIMEOUT_MS", "1000".to_owned()),
            ("ARGON2_MEMORY_KIB", "64".to_owned()),
            ("ARGON2_ITERATIONS", "1".to_owned()),
            // All callers share this machine's address.
            ("LOGIN_RATE_PER_ADDRESS_PER_MINUTE", "0".to_owned()),
            ("RATE_LIMIT_ADDRESS_PER_SECOND", "0".to_owned()),
        ];
        let fleet = Fleet::start(settings.executable.clone(), settings_of_replicas, &addresses)?;
        Ok(Self {
            executable: settings.executable.clone(),
            server,
            owner_url: prepared.owner_url,
            database_url: prepared.url,
            gateway,
            fleet,
            api,
            database,
            charges,
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

    fn link(&self, part: Part) -> &TcpProxy {
        match part {
            Part::Api => &self.api,
            Part::Database => &self.database,
            Part::Gateway => &self.charges,
        }
    }

    /// Executes a fault.
    pub(super) async fn suffer(&mut self, fault: &Fault, progress: &dyn Fn(&str)) -> Result<(), Error> {
        match fault {
            Fault::Kill { replica } => self.fleet.kill(*replica),
            Fault::Crash { replica, point } => self.fleet.crash(*replica, point).await?,
            Fault::FullDisk { replica } => self.fleet.fill_disk(*replica).await?,
            Fault::RestartDatabase => self.server.restart(Signal::SIGINT, progress).await?,
            Fault::KillDatabase => self.server.restart(Signal::SIGKILL, progress).await?,
            Fault::Cut(part) => self.link(*part).interrupt(),
            Fault::Slow(part, delay) => self.link(*part).slow(*delay),
            Fault::Stall(part) => self.link(*part).freeze(),
            Fault::Gateway(faults) => self.gateway.faults().set(faults.clone()),
        }
        Ok(())
    }

    /// Ends all lasting faults.
    pub(super) fn heal(&self) {
        for part in [Part::Api, Part::Database, Part::Gateway] {
            self.link(part).mend();
        }
        self.gateway.faults().clear();
    }

    pub(super) fn revive(&mut self) -> Result<(), Error> {
        Ok(self.fleet.revive()?)
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

    /// Runs the reconciliation.
    pub(super) async fn check(&self) -> Result<Verdict, Error> {
        Ok(invariants::check(self.owner_url.as_str(), &self.gateway.url()).await?)
    }

    /// Verifies the hash chain of the audit log. Returns the problem, or `None`.
    pub(super) async fn verify_audit_log(&self) -> Result<Option<String>, Error> {
        let verifying = Launch::new(&self.executable)
            .args(["audit", "verify"])
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
