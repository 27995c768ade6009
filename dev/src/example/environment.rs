//! The payment gateway that `cargo dev` starts with the service, and the commands that the terminal shows for orders
//! and payments. The gateway's ledger persists between runs, except in a run with a standby, whose database is also
//! temporary.
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rand::distr::{Alphanumeric, SampleString as _};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};
use url::Url;
use uuid::Uuid;

use super::{
    command::Flags,
    external_services::Addresses,
    gateway::{self, Simulator},
    invariants, seed_products,
};
use crate::environment::{
    ports,
    screen::{AUTHORIZED, JSON, NEW_KEY},
};

/// Maximum time that a stopping environment waits until every payment and refund has an outcome. The time is longer
/// than the default lease of a payment, because the recovery worker can claim the payment only after the lease has
/// expired.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The description of the trace that `/traces/first` shows.
pub(crate) const FIRST_TRACE: &str = "the first paid order";

/// Flags that select any free port for the gateway.
pub const ANY_PORTS: &[&str] = &["--gateway-port", "0"];

/// Text that the tests expect in the output of the last command that the terminal shows.
pub const LAST_RESPONSE: &str = "\"status\":\"succeeded\"";

/// Text that the tests expect in the last line that a stopped environment prints.
pub const LAST_LINE: &str = "all invariants hold";

/// The reason why the external services did not start or settle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Gateway(#[from] gateway::Error),
    #[error(transparent)]
    Invariants(#[from] invariants::Error),
    #[error("PostgreSQL error: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("an address is not a valid URL: {0}")]
    Url(#[from] url::ParseError),
}

/// Address for the gateway, found before any service is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    gateway: SocketAddr,
}

/// Waits until the gateway's port in the flags is free, and returns the port's address. Returns an error if the port
/// stays in use.
pub(crate) async fn find_ports(flags: &Flags, progress: &dyn Fn(&str)) -> Result<Ports, ports::Error> {
    let gateway = ports::free("the payment gateway", "--gateway-port", flags.gateway_port, progress).await?;
    Ok(Ports { gateway })
}

/// Deletes the ledgers of earlier runs.
pub(crate) fn delete_data(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("gateway-") {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The external services of an environment: the payment gateway.
pub(crate) struct ExternalServices {
    gateway: Simulator,
    settings: gateway::Settings,
    owner_url: Url,
    /// The product that the shown commands order.
    product: Uuid,
}

impl ExternalServices {
    /// Starts the gateway and creates the products. The gateway's ledger is a file in `directory`.
    pub(crate) async fn start(
        ports: Ports,
        directory: &Path,
        owner_url: &Url,
        api: &Url,
        progress: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let product = seed_products::seed(owner_url, progress).await?;
        let settings = gateway::Settings {
            address: ports.gateway,
            api_key: random(32),
            webhook_secret: format!("whsec_{}", BASE64_STANDARD.encode(random(32))),
            webhook_url: Some(api.join("v1/gateway/events")?),
            ledger_file: Some(ledger_of(owner_url, directory).await?),
        };
        let gateway = Simulator::start(settings.clone()).await?;
        Ok(Self { gateway, settings, owner_url: owner_url.clone(), product })
    }

    /// Returns the service's settings for the external services: addresses and secrets.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("GATEWAY_URL", self.gateway.url().to_string()),
            ("GATEWAY_API_KEY", self.settings.api_key.clone()),
            ("GATEWAY_WEBHOOK_SECRET", self.settings.webhook_secret.clone()),
        ]
    }

    pub(crate) fn addresses(&self) -> Addresses {
        Addresses { gateway: self.gateway.url() }
    }

    /// Returns the lines that the terminal shows for the external services, each with a name and URLs.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let gateway = self.gateway.url();
        vec![("gateway", format!("{gateway}ledger, {gateway}faults"))]
    }

    /// Returns a heading, and the commands that the terminal shows after the login command. The commands run in any
    /// POSIX shell.
    pub(crate) fn commands(&self, api: &Url) -> (&'static str, Vec<String>) {
        let product = self.product;
        let place = format!(
            "ORDER=$(curl -s {api}v1/orders {JSON} {AUTHORIZED} {NEW_KEY} \
             -d '{{\"items\":[{{\"product_id\":\"{product}\",\"quantity\":2}}]}}' \
             | sed -n 's/^{{\"id\":\"\\([^\"]*\\)\".*/\\1/p') && echo \"$ORDER\"",
        );
        let pay = format!(
            "curl -s {api}v1/orders/$ORDER/payments {JSON} {AUTHORIZED} {NEW_KEY} \
             -d '{{\"payment_method\":\"pm_card_ok\"}}'; echo",
        );
        ("Log in, place an order, pay it:", vec![place, pay])
    }

    /// Ends every fault of the gateway. Waits until each payment and refund has an outcome, at most [`SETTLE_TIMEOUT`].
    pub(crate) async fn settle(&self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        self.gateway.faults().clear();
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut is_reported = false;
        while Instant::now() < deadline {
            if invariants::in_flight(self.owner_url.as_str()).await? == 0 {
                break;
            }
            if !is_reported {
                progress("waiting for payments and refunds in flight to settle");
                is_reported = true;
            }
            sleep(Duration::from_millis(250)).await;
        }
        Ok(())
    }

    pub(crate) async fn stop(self) {
        self.gateway.stop().await;
    }
}

/// Returns the ledger file of this database. Each database has its own ledger, because a database and its ledger must
/// match.
async fn ledger_of(owner_url: &Url, directory: &Path) -> Result<PathBuf, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let identity: String = sqlx::query_scalar(
        "select (select system_identifier from pg_control_system()) || '-' || oid
         from pg_database
         where datname = current_database()",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(directory.join(format!("gateway-{identity}.jsonl")))
}

fn random(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length)
}
