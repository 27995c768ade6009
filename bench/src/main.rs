//! `cargo bench-all`: compares the service with pgbench, with a server that only runs the service's statements, and
//! with other services. All contenders run on one machine, and the goals are ratios of their figures.
//!
//! Contenders run interleaved, in several short rounds, so that other activity of the machine affects all of them.
//! Absolute figures of a shared machine mean little. Ratios and CPU time per request are meaningful.
//!
//! - [`test_bed`]: the database server with identical databases, the service's executable, and a simulator of the
//!   payment gateway
//! - [`service`], [`floor`], [`peers`], [`pgbench`]: the contenders
//! - [`receiver`]: the receiver of traces, and a server with axum alone
//! - [`load`], [`requests`]: the load
//! - [`interleave`], [`cpu`], [`statistics`]: measurements and their evaluation
//! - [`cases`]: the comparisons
//! - [`report`]: the tables
mod cases;
mod cpu;
mod floor;
mod interleave;
mod load;
mod peers;
mod pgbench;
mod receiver;
mod report;
mod requests;
mod service;
mod statistics;
mod test_bed;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{Parser, Subcommand, ValueEnum as _};

use self::{
    cases::{Case, Run, Size},
    test_bed::TestBed,
};

/// Compares the service with pgbench and with other services
#[derive(Debug, Parser)]
#[command(name = "cargo bench-all", bin_name = "cargo bench-all", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    helper: Option<Helper>,
    /// A run of five minutes (default)
    #[arg(long, conflicts_with_all = ["long", "smoke"])]
    short: bool,
    /// A run of 45 minutes: tables of ten million rows, seven rounds, and the time of builds from scratch
    #[arg(long, conflicts_with = "smoke")]
    long: bool,
    /// A run of seconds that checks the benchmark itself; its figures are meaningless
    #[arg(long)]
    smoke: bool,
    /// Run only this case; repeatable
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Case>,
    /// Measure this executable of the service instead of a new build, for example one built before a change
    #[arg(long, value_name = "FILE")]
    executable: Option<PathBuf>,
    /// Replace the tables in this file
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Subcommands that this program runs in separate processes.
#[derive(Debug, Subcommand)]
enum Helper {
    /// Receive and count traces
    #[command(hide = true)]
    ReceiveTraces { address: SocketAddr },
    /// Respond to `GET` requests with this JSON
    #[command(hide = true)]
    Respond { address: SocketAddr, body: String },
    /// Serve `POST /v1/orders` and `GET /v1/orders/{id}` with the service's statements only
    #[command(hide = true)]
    Floor { address: SocketAddr },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.helper {
        Some(Helper::ReceiveTraces { address }) => receiver::serve(address).await,
        Some(Helper::Respond { address, body }) => receiver::serve_axum_alone(address, body).await,
        Some(Helper::Floor { address }) => floor::serve(address).await,
        None => measure(arguments).await,
    }
}

async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let size = match (arguments.smoke, arguments.long) {
        (true, _) => Size::Smoke,
        (_, true) => Size::Long,
        _ => Size::Short,
    };
    let cases = if arguments.only.is_empty() { Case::value_variants() } else { &arguments.only };
    let progress = |line: &str| eprintln!("{line}");
    let directory = std::env::temp_dir().join(format!("bench-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let measured = measure_in(&directory, size, cases, arguments.executable, &progress).await;
    fs::remove_dir_all(&directory)?;
    let tables = measured?;
    if let Some(file) = arguments.markdown {
        let document = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, report::replace_tables(&document, &tables))?;
        eprintln!("wrote {}", file.display());
    }
    Ok(())
}

async fn measure_in(
    directory: &Path,
    size: Size,
    cases: &[Case],
    executable: Option<PathBuf>,
    progress: &dyn Fn(&str),
) -> anyhow::Result<String> {
    let peers = peers::build(progress).await?;
    let test_bed = TestBed::start(directory.to_owned(), executable, progress).await?;
    let run = Run { test_bed: &test_bed, size, peers: &peers, progress };
    let began = Instant::now();
    let mut tables = header(&test_bed, size);
    println!("{tables}");
    for case in cases {
        let section = case.run(&run).await?;
        println!("{section}");
        writeln!(tables, "{section}")?;
    }
    test_bed.stop().await?;
    eprintln!("measured for {} s", began.elapsed().as_secs());
    Ok(tables)
}

/// Describes the machine and the setup of the measurement.
fn header(test_bed: &TestBed, size: Size) -> String {
    let window = size.window();
    format!(
        "Measured on {machine}, shared by the load, the contender and the database (PostgreSQL {version}, with default settings; `fsync` and `synchronous_commit` on), with `{size}`: rounds of {length} s after {warm_up} s of warm-up. A figure is the median of {rounds} rounds, with the minimum and the maximum. A ratio is computed in each round.\n",
        machine = cpu::machine(),
        version = test_bed.version,
        size = match size {
            Size::Smoke => "--smoke",
            Size::Short => "--short",
            Size::Long => "--long",
        },
        length = window.length.as_secs_f64(),
        warm_up = window.warm_up.as_secs_f64(),
        rounds = size.rounds(),
    )
}
