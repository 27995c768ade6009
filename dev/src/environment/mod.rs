//! The service with all its dependencies on one machine, as run by `cargo dev`.
//!
//! [`run`] is the entry point. After a signal it stops the console and the traffic, then the service, and then the
//! service's dependencies. If this process is killed, the [watchdog](crate::process::Watchdog) stops its child
//! processes.
//!
//! - `data_dir`: the data directory of a checkout, and its lock
//! - `ports`: the check for free ports
//! - `database`: the database and its users
//! - `database_server`: a single database server, or a primary with a standby
//! - `service`: the service as a child process
//! - `scenario`: a fault that is switched on and off repeatedly
//! - `screen`: the text that is printed after the start
mod data_dir;
pub(crate) mod database;
mod database_server;
pub(crate) mod ports;
mod scenario;
pub(crate) mod screen;
mod service;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use futures_util::future::OptionFuture;
use tokio::time::{Instant, interval_at};
use url::Url;

use self::{
    data_dir::DataDir,
    database_server::DatabaseServer,
    ports::Ports,
    screen::Screen,
    service::{Service, Start},
};
use crate::{
    cargo,
    console::{self, Comparison, Console, ObservedSystem, ReconciliationResult},
    example::{
        self,
        environment::{self as external, ExternalServices},
    },
    failover,
    faults::{Fault, FaultTargets, Switchboard},
    postgres,
    process::WaitError,
    project,
    signals::Interrupts,
    traffic::{self, Traffic},
};

/// Interval of the reconciliations that are reported on the terminal. The console runs its own reconciliations.
const RECONCILIATION_INTERVAL: Duration = Duration::from_mins(10);

/// Options of `cargo dev`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Deletes the data of earlier runs.
    pub fresh: bool,
    /// Gives the database a synchronous standby. Both servers are temporary.
    pub standby: bool,
    /// Shows the service's log on the terminal.
    pub logs: bool,
    /// Data directory that replaces the default of the checkout.
    pub data: Option<PathBuf>,
    /// Requests per second; `None` for no traffic.
    pub rate: Option<f64>,
    pub seed: u64,
    pub scenario: Option<Fault>,
    pub api_port: u16,
    pub ops_port: u16,
    pub console_port: u16,
    pub example: example::Flags,
    /// Further settings of the service, by name.
    pub extra: Vec<(String, String)>,
}

impl Settings {
    /// Starts the traffic, unless the rate is `None`.
    fn start_traffic(&self, api: &Url) -> Result<Option<Traffic>, reqwest::Error> {
        let settings = |rate_per_second| traffic::Settings {
            rate_per_second,
            seed: self.seed,
            ..traffic::Settings::new(api.clone())
        };
        self.rate.map(|rate_per_second| Traffic::start(settings(rate_per_second))).transpose()
    }

    /// Returns settings of the service: first those for the external services and the console, then the user's own
    /// settings, which take precedence.
    fn service_settings(
        &self,
        console: &Console,
        external_services: &ExternalServices,
    ) -> Vec<(String, String)> {
        let dependencies = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", console.url()),
            // Spans are exported after one second, because the default of five seconds is too long for the console.
            ("OTEL_BSP_SCHEDULE_DELAY", "1000".to_owned()),
            ("ALERT_WEBHOOK_URL", console.alerts_url()),
        ];
        let dependencies = external_services.settings().into_iter().chain(dependencies);
        let dependencies = dependencies.map(|(name, value)| (name.to_owned(), value));
        dependencies.chain(self.extra.iter().cloned()).collect()
    }
}

/// The reason why the environment did not start or has ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the environment is already running:\n{0}")]
    AlreadyRuns(String),
    #[error("failed to use the data in {}: {source}", .path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Port(#[from] ports::Error),
    #[error(transparent)]
    Cargo(#[from] cargo::Error),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Failover(#[from] failover::Error),
    #[error(
        "the database `{name}` on this server was not created by this checkout ({comment}), so it stays unchanged"
    )]
    ForeignDatabase { name: String, comment: String },
    #[error(
        "the database {name} is from an earlier run, and the migrations failed on it:\n{output}\n\
         --fresh deletes the database and creates a new one"
    )]
    EarlierDatabase { name: String, output: String },
    #[error("PostgreSQL error: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("failed to start the service: {0}")]
    Start(io::Error),
    #[error("the service's command `{command}` failed:\n{output}")]
    Command { command: &'static str, output: String },
    #[error("the service was not ready after {} s; its last log lines:\n{last_lines}", .waited.as_secs())]
    NotReady { waited: Duration, last_lines: String },
    #[error("the service stopped ({status}); its last log lines:\n{last_lines}")]
    ServiceEnded { status: ExitStatus, last_lines: String },
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error(transparent)]
    ExternalServices(#[from] external::Error),
    #[error(transparent)]
    Console(#[from] console::Error),
    #[error("failed to create an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    #[error("an address is not a valid URL: {0}")]
    Url(#[from] url::ParseError),
    #[error("failed to install signal handlers: {0}")]
    Signals(io::Error),
    #[error("{0}")]
    RecordsDiffer(String),
    #[error("stopped immediately, without a reconciliation")]
    Interrupted,
}

/// Starts everything, runs until a signal or the end of the service, and stops everything. `progress` receives a line
/// for each event. `status` receives the current status line, which replaces the previous one.
pub async fn run(settings: Settings, progress: &dyn Fn(&str), status: &dyn Fn(&str)) -> Result<(), Error> {
    let mut data_dir = DataDir::lock(settings.data.as_deref())?;
    let ports = Ports::find(settings.api_port, settings.ops_port, progress).await?;
    let external_ports = external::find_ports(&settings.example, progress).await?;
    let console_address =
        ports::free("the console", "--console-port", settings.console_port, progress).await?;
    progress("building the service");
    let executable = cargo::build_service().await?;
    if settings.fresh {
        delete_previous_data(&data_dir, progress).await?;
    }
    // The records of the external services must match the database, which is temporary in a run with a standby.
    let directory = if settings.standby { data_dir.scratch()? } else { data_dir.directory().to_owned() };
    let service_log = data_dir.service_log();
    let (mut server, database) = if settings.standby {
        DatabaseServer::start_replicated(&executable, service_log.clone(), progress).await?
    } else {
        DatabaseServer::start_single(directory.clone(), &executable, settings.fresh, progress).await?
    };

    let (api, ops) = (url_of(ports.api)?, url_of(ports.ops)?);
    let external_services =
        ExternalServices::start(external_ports, &directory, &database.owner_url, &api, progress).await?;
    let console = Console::start(console_address, &project::root().join("prometheus/rules")).await?;
    progress("starting the service");
    delete_previous_log(&service_log)?;
    let service_settings = settings.service_settings(&console, &external_services);
    let service = Service::start(Start {
        executable: &executable,
        database: &database,
        ports,
        log: &service_log,
        echo: settings.logs,
        settings: &service_settings,
    })
    .await?;
    let traffic = settings.start_traffic(&api)?;

    let addresses = external_services.addresses();
    let compare = example::comparison(&database.owner_url, &addresses);
    let faults = Switchboard::new(FaultTargets {
        external_services: addresses,
        owner_url: database.owner_url.clone(),
        api: api.clone(),
    });
    console.follow(ops.clone(), service.log());
    console.watch(&ObservedSystem {
        executable,
        database_url: database.url.clone(),
        owner_url: database.owner_url.clone(),
        faults: faults.clone(),
        replication: server.replication(),
        reconciliation: compare.clone(),
        traffic: traffic.as_ref().map(Traffic::switch),
        log: Some(service_log.clone()),
        prometheus: Some(data_dir.directory().join("alerting")),
        scrape_interval: console::SCRAPE_INTERVAL,
    });

    let mut interrupts = Interrupts::listen().map_err(Error::Signals)?;
    let console_url = console.url();
    data_dir
        .write_addresses(&format!("console {console_url}\nAPI {api}\noperations {ops}"))
        .map_err(|source| data_dir.error(source))?;
    let screen = Screen {
        console: &console_url,
        api: &api,
        ops: &ops,
        first_trace: external::FIRST_TRACE,
        owner_url: &database.owner_url,
        standby: settings.standby,
        service_log: &service_log,
        traffic: settings.rate,
        external_services: &external_services.lines(),
        commands: &external_services.commands(&api),
    };
    progress(&screen.to_string());

    tokio::select! {
        () = interrupts.next() => {}
        error = service.wait_for_end() => return Err(error),
        never = run_scenario(settings.scenario, &faults, progress) => match never {},
        never = server.run(&service_settings, progress) => match never {},
        never = reconcile_periodically(compare.as_ref(), progress) => match never {},
        never = show_status(&console, status) => match never {},
    }
    status("");

    progress("stopping (press Ctrl-C again to stop immediately)");
    let stop = async {
        drop(faults);
        console.stop().await;
        let report = OptionFuture::from(traffic.map(Traffic::stop)).await;
        external_services.settle(progress).await?;
        let status = service.stop().await?;
        let reconciliation = OptionFuture::from(compare.map(|compare| compare())).await;
        external_services.stop().await;
        server.stop().await?;
        report_end(report, status, reconciliation, &service_log, progress)
    };
    tokio::select! {
        stopped = stop => stopped,
        () = interrupts.next() => Err(Error::Interrupted),
    }
}

/// Creates missing users and example data in a migrated database.
pub async fn seed(
    executable: &Path,
    url: &Url,
    owner_url: &Url,
    progress: &dyn Fn(&str),
) -> Result<(), Error> {
    database::create_users(executable, url, owner_url, progress).await?;
    example::seed_data(owner_url, progress).await?;
    Ok(())
}

/// Reports the results of the run. Returns an error if the reconciliation failed or found a difference.
fn report_end(
    traffic: Option<traffic::Report>,
    service: ExitStatus,
    reconciliation: Option<ReconciliationResult>,
    service_log: &Path,
    progress: &dyn Fn(&str),
) -> Result<(), Error> {
    if let Some(traffic) = traffic {
        progress(&format!("traffic: {traffic}"));
    }
    if !service.success() {
        progress(&format!("the service ended with {service}: see {}", service_log.display()));
    }
    match reconciliation {
        Some(ReconciliationResult { holds: false, summary, .. }) => Err(Error::RecordsDiffer(summary)),
        Some(ReconciliationResult { summary, .. }) => {
            progress(&summary);
            Ok(())
        }
        None => {
            progress("stopped");
            Ok(())
        }
    }
}

/// Deletes the database server's data and the records of the external services that earlier runs have stored in the
/// data directory.
async fn delete_previous_data(data_dir: &DataDir, progress: &dyn Fn(&str)) -> Result<(), Error> {
    progress("deleting the data of earlier runs");
    postgres::delete_data(data_dir.directory(), progress).await?;
    external::delete_data(data_dir.directory()).map_err(|source| data_dir.error(source))
}

/// Deletes the log of the previous run, so that the log covers a single run.
fn delete_previous_log(log: &Path) -> Result<(), Error> {
    match std::fs::remove_file(log) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::DataDir { path: log.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn run_scenario(scenario: Option<Fault>, faults: &Switchboard, progress: &dyn Fn(&str)) -> Infallible {
    match scenario {
        Some(fault) => scenario::run(fault, faults, progress).await,
        None => std::future::pending().await,
    }
}

/// Runs the reconciliation periodically and reports each result.
async fn reconcile_periodically(compare: Option<&Comparison>, progress: &dyn Fn(&str)) -> Infallible {
    let Some(compare) = compare else { return std::future::pending().await };
    let mut clock = interval_at(Instant::now() + RECONCILIATION_INTERVAL, RECONCILIATION_INTERVAL);
    loop {
        clock.tick().await;
        progress(&compare().await.summary);
    }
}

/// Passes each new status line to `status`.
async fn show_status(console: &Console, status: &dyn Fn(&str)) -> Infallible {
    let mut lines = console.status_lines();
    loop {
        status(&lines.next().await);
    }
}

fn url_of(address: SocketAddr) -> Result<Url, url::ParseError> {
    Url::parse(&format!("http://{address}/"))
}
