//! The command line of `cargo dev`.
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use dev::{
    alert_inbox, doctor, environment, example,
    faults::Fault,
    prepare, secret,
    signals::Interrupts,
    traffic,
    update::{self, Merge},
};
use indicatif::{ProgressBar, ProgressStyle};
use url::Url;

/// Runs the service on this machine with a database, simulators of called services, and traffic.
#[derive(Debug, Parser)]
#[command(name = "cargo dev", bin_name = "cargo dev", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    environment: Environment,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Example(example::Command),
    /// Send traffic to a running service
    Traffic(Traffic),
    /// Show received alerts of Alertmanager and the service, with their runbooks
    Alerts(Alerts),
    /// Create users and example data in a migrated database. `DATABASE_URL` has the URL of the service's role, and
    /// `DATABASE_MIGRATION_URL` the URL of the owner
    Seed(Seed),
    /// List the programs that this machine lacks, with the commands that install them
    Doctor,
    /// Regenerate `.sqlx`, the query descriptions for compiling without a database
    Prepare(Prepare),
    /// Merge a newer revision of the template into this generated project, on a new branch
    Update(Update),
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Environment {
    /// Delete the data of earlier runs first
    #[arg(long)]
    fresh: bool,
    /// Give the database a synchronous standby, with buttons on the console's page Faults: fail over, and restore to 30
    /// seconds ago. The data is deleted at the end of the run
    #[arg(long, conflicts_with = "fresh")]
    standby: bool,
    /// Send no traffic
    #[arg(long)]
    no_traffic: bool,
    /// Requests per second of the traffic
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    rate: f64,
    /// Seed of the traffic's random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Show the service's log on the terminal
    #[arg(long)]
    logs: bool,
    /// Switch a fault on and off repeatedly
    #[arg(long, value_name = "NAME", value_enum)]
    scenario: Option<Fault>,
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    api_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = 9000)]
    ops_port: u16,
    #[command(flatten)]
    example: example::Flags,
    /// Port of the console, which also receives the service's spans
    #[arg(long, value_name = "PORT", default_value_t = 3001)]
    console_port: u16,
    /// Data directory, for a second environment of this checkout
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// A setting of the service, such as `--set RUST_LOG=app=trace`; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct Traffic {
    /// URL of the service's API
    #[arg(long, value_name = "URL")]
    api: Url,
    /// Requests per second
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    rate: f64,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Number of customers
    #[arg(long, value_name = "N", default_value_t = 8)]
    customers: usize,
}

#[derive(Debug, Args)]
struct Alerts {
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8025")]
    address: SocketAddr,
    /// Directory of the runbooks
    #[arg(long, value_name = "DIRECTORY", default_value = "docs/runbooks")]
    runbooks: PathBuf,
}

#[derive(Debug, Args)]
struct Seed {
    /// The service's executable, which creates the users
    #[arg(long, value_name = "FILE")]
    executable: PathBuf,
}

#[derive(Debug, Args)]
struct Prepare {
    /// Change nothing, and fail if `.sqlx` is out of date
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
struct Update {
    /// Repository of the template
    #[arg(long, value_name = "URL|PATH")]
    from: String,
    /// Revision of the template to merge
    #[arg(long, value_name = "REVISION", default_value = "HEAD")]
    to: String,
    /// Revision of the template that the project has; needed only if the command cannot find this revision
    #[arg(long, value_name = "REVISION")]
    since: Option<String>,
}

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        None => environment(arguments.environment).await,
        Some(Command::Example(command)) => command.run(&print).await,
        Some(Command::Traffic(arguments)) => traffic(arguments).await,
        Some(Command::Alerts(arguments)) => alerts(arguments).await,
        Some(Command::Seed(arguments)) => seed(&arguments).await,
        Some(Command::Doctor) => {
            Ok(if doctor::run(&print).await { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::Prepare(arguments)) => prepare(&arguments).await,
        Some(Command::Update(arguments)) => update(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        print(&format!("error: {error}"));
        ExitCode::FAILURE
    })
}

/// Prints one line to standard error in a single write. A write error is ignored, because a closed standard error must
/// not stop the work.
fn print(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn setting(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

async fn environment(arguments: Environment) -> Outcome {
    let settings = environment::Settings {
        fresh: arguments.fresh,
        standby: arguments.standby,
        logs: arguments.logs,
        data: arguments.data,
        rate: (!arguments.no_traffic).then_some(arguments.rate),
        seed: arguments.seed,
        scenario: arguments.scenario,
        api_port: arguments.api_port,
        ops_port: arguments.ops_port,
        example: arguments.example,
        console_port: arguments.console_port,
        extra: arguments.set,
    };
    // The bar shows the status line. The bar is invisible with `--logs`, or if standard error is not a terminal.
    let bar = if settings.logs { ProgressBar::hidden() } else { ProgressBar::no_length() };
    bar.set_style(ProgressStyle::with_template("{wide_msg}")?);
    let print = |line: &str| bar.suspend(|| print(line));
    let status = |line: &str| bar.set_message(line.to_owned());
    let ended = environment::run(settings, &print, &status).await;
    bar.finish_and_clear();
    ended?;
    Ok(ExitCode::SUCCESS)
}

async fn traffic(arguments: Traffic) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let traffic = traffic::Traffic::start(traffic::Settings {
        api: arguments.api,
        rate_per_second: arguments.rate,
        seed: arguments.seed,
        customers: arguments.customers,
    })?;
    print(&format!("{} requests per second, until Ctrl-C", arguments.rate));
    interrupts.next().await;
    print(&traffic.stop().await.to_string());
    Ok(ExitCode::SUCCESS)
}

async fn alerts(arguments: Alerts) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let settings = alert_inbox::Settings { address: arguments.address, runbooks: Some(arguments.runbooks) };
    let inbox = alert_inbox::Inbox::start(settings).await?;
    print(&format!("the alert inbox is listening on http://{}", inbox.address()));
    interrupts.next().await;
    inbox.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn seed(arguments: &Seed) -> Outcome {
    let url = Url::parse(&secret::read("DATABASE_URL")?)?;
    let owner_url = Url::parse(&secret::read("DATABASE_MIGRATION_URL")?)?;
    environment::seed(&arguments.executable, &url, &owner_url, &print).await?;
    Ok(ExitCode::SUCCESS)
}

async fn prepare(arguments: &Prepare) -> Outcome {
    let difference = prepare::run(arguments.check, &print).await?;
    if difference.is_empty() {
        print(".sqlx is up to date");
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.check {
        print(&format!(".sqlx is out of date; run `cargo dev prepare`:\n{difference}"));
        return Ok(ExitCode::FAILURE);
    }
    print(&format!("updated .sqlx:\n{difference}"));
    Ok(ExitCode::SUCCESS)
}

fn update(arguments: &Update) -> Outcome {
    match update::run(&arguments.from, &arguments.to, arguments.since.as_deref(), &print)? {
        Merge::UpToDate => print("the project already has this revision of the template"),
        Merge::Clean { branch } => {
            print(&format!("merged without a conflict on the branch {branch}"));
            print("next: cargo dev prepare, cargo test, and merge the branch");
        }
        Merge::Conflicts { branch, conflicts } => {
            for conflict in &conflicts {
                print(conflict);
            }
            print(&format!("{} conflicts on the branch {branch}", conflicts.len()));
            print(
                "next: resolve the conflicts, git add, git cherry-pick --continue; or git cherry-pick --abort, git switch -",
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
