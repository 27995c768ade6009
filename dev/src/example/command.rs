//! The domain's commands and flags of `cargo dev`.
use std::{error::Error, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use url::Url;

use super::{campaign, gateway};
use crate::{cargo, postgres::ReplicationMode, secret, signals::Interrupts};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the payment-gateway simulator alone, with `GATEWAY_API_KEY` and `GATEWAY_WEBHOOK_SECRET` from the
    /// environment
    Gateway(Gateway),
    /// Inject faults into a service of several replicas, and check that no payment is lost or charged twice
    Campaign(Campaign),
}

/// Further flags of the environment, for the external services.
#[derive(Clone, Debug, Args)]
pub struct Flags {
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    pub(super) gateway_port: u16,
}

#[derive(Debug, Args)]
pub struct Gateway {
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    address: SocketAddr,
    /// URL that receives the events; no events are sent if unset
    #[arg(long, value_name = "URL", env = "GATEWAY_WEBHOOK_URL")]
    webhook_url: Option<Url>,
    /// File of the ledger, which survives a restart
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Campaign {
    /// Seed of the faults and of the traffic
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Duration in minutes
    #[arg(long, value_name = "N", default_value_t = 5)]
    minutes: u64,
    #[arg(long, value_name = "N", default_value_t = 3)]
    replicas: usize,
    /// Requests per second of the customers
    #[arg(long, value_name = "N", default_value_t = 25.0)]
    rate: f64,
    /// Give the database a standby, and replace the primary in every round
    #[arg(long, value_name = "MODE", value_enum)]
    failover: Option<ReplicationMode>,
    /// Number of rounds, in place of the minutes
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
}

impl Command {
    /// Runs the command. `print` prints a line for the user.
    pub async fn run(self, print: &dyn Fn(&str)) -> Result<ExitCode, Box<dyn Error>> {
        match self {
            Self::Gateway(arguments) => arguments.run(print).await,
            Self::Campaign(arguments) => arguments.run(print).await,
        }
    }
}

impl Gateway {
    async fn run(self, print: &dyn Fn(&str)) -> Result<ExitCode, Box<dyn Error>> {
        let mut interrupts = Interrupts::listen()?;
        let simulator = gateway::Simulator::start(gateway::Settings {
            address: self.address,
            api_key: secret::read("GATEWAY_API_KEY")?,
            webhook_secret: secret::read("GATEWAY_WEBHOOK_SECRET")?,
            webhook_url: self.webhook_url,
            ledger_file: self.ledger,
        })
        .await?;
        print(&format!("the payment gateway is listening on {}", simulator.url()));
        interrupts.next().await;
        simulator.stop().await;
        Ok(ExitCode::SUCCESS)
    }
}

impl Campaign {
    async fn run(self, print: &dyn Fn(&str)) -> Result<ExitCode, Box<dyn Error>> {
        print("building the service");
        let settings = campaign::Settings {
            executable: cargo::build_service().await?,
            seed: self.seed,
            length: self.rounds.map_or_else(
                || campaign::Length::Time(Duration::from_mins(self.minutes)),
                campaign::Length::Rounds,
            ),
            replicas: self.replicas.max(1),
            rate_per_second: self.rate,
            failover: self.failover,
        };
        let mut interrupts = Interrupts::listen()?;
        let report = tokio::select! {
            report = campaign::run(settings, print) => report?,
            () = interrupts.next() => return Err("interrupted; the results of the completed rounds are above".into()),
        };
        print(&report.to_string());
        Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
