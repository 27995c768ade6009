//! The benchmark cases. Each case describes its comparison, runs the comparison, and states its goals, if it has any.
mod concurrency;
mod latency;
mod payments;
mod process;
mod read;
mod table_size;
mod telemetry_overhead;
mod write;

use std::{fmt::Write as _, time::Duration};

use crate::{
    interleave::{MeasuredProcess, Rounds, Sample},
    load::Window,
    peers::Peer,
    report::{Section, Table, cell},
    test_bed::TestBed,
};

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A few seconds, to check that the benchmark works. The figures are meaningless.
    Smoke,
    /// Five minutes.
    Short,
    /// 45 minutes, with tables of ten million rows and builds from scratch.
    Long,
}

impl Size {
    pub fn rounds(self) -> u64 {
        match self {
            Self::Smoke => 1,
            Self::Short => 3,
            Self::Long => 7,
        }
    }

    pub fn window(self) -> Window {
        let (warm_up, length) = match self {
            Self::Smoke => (200, 300),
            Self::Short => (500, 1_500),
            Self::Long => (1_000, 5_000),
        };
        Window { warm_up: Duration::from_millis(warm_up), length: Duration::from_millis(length) }
    }
}

/// Input of a case.
pub struct Run<'a> {
    pub test_bed: &'a TestBed,
    pub size: Size,
    pub peers: &'a [Peer],
    pub progress: &'a dyn Fn(&str),
}

/// The cases by name, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// `POST /v1/orders` in comparison with pgbench and other services
    Write,
    /// `GET /v1/orders/{id}` in comparison with pgbench and other services, and the list of orders with pgbench
    Read,
    /// Cost of logs, metrics and traces
    Telemetry,
    /// Latency at fixed rates, in an open loop
    Latency,
    /// Growing numbers of orders and audit events
    TableSize,
    /// Growing numbers of clients and connections
    Concurrency,
    /// Payments with a slow gateway
    Payments,
    /// Start-up time, memory, and size of the executable; with `--long` also build times
    Process,
}

impl Case {
    pub async fn run(self, run: &Run<'_>) -> anyhow::Result<Section> {
        match self {
            Self::Write => write::run(run).await,
            Self::Read => read::run(run).await,
            Self::Telemetry => telemetry_overhead::run(run).await,
            Self::Latency => latency::run(run).await,
            Self::TableSize => table_size::run(run).await,
            Self::Concurrency => concurrency::run(run).await,
            Self::Payments => payments::run(run).await,
            Self::Process => process::run(run).await,
        }
    }
}

/// Returns a number for the next measurement, so that no two measurements share idempotency keys or ids.
fn next_run() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Builds a table with the figures that most cases report, one row for each contender.
fn figures(contenders: &[(String, &Rounds)]) -> Table {
    let mut table = Table::new(&[
        "contender",
        "per second",
        "p50 ms",
        "p99 ms",
        "CPU service µs",
        "CPU database µs",
        "CPU load µs",
        "RSS MiB",
    ]);
    for (name, rounds) in contenders {
        table.row([
            name.clone(),
            cell(rounds.spread(|sample| sample.rate)),
            cell(rounds.spread(|sample| sample.p50_ms)),
            cell(rounds.spread(|sample| sample.p99_ms)),
            cell(rounds.spread(|sample| cpu_of(sample, MeasuredProcess::Service))),
            cell(rounds.spread(|sample| cpu_of(sample, MeasuredProcess::Database))),
            cell(rounds.spread(|sample| cpu_of(sample, MeasuredProcess::Load))),
            cell(rounds.spread(|sample| sample.resident.unwrap_or(f64::NAN))),
        ]);
    }
    table
}

/// Returns the CPU time of a process per response, in microseconds. Returns NaN if the measurement has no such process,
/// or on a system that does not report CPU times.
fn cpu_of(sample: &Sample, process: MeasuredProcess) -> f64 {
    sample.cpu.get(&process).copied().unwrap_or(f64::NAN)
}

/// Returns the sum of the CPU times of the service and the database per response, in microseconds. The receiver of
/// traces is a separate process, and is reported separately.
fn cpu_of_request(sample: &Sample) -> f64 {
    sample.cpu_of(&[MeasuredProcess::Service, MeasuredProcess::Database])
}

/// Returns a sentence for each contender with failed requests. A valid run has no failed requests.
fn failures(contenders: &[(String, &Rounds)]) -> String {
    let mut text = String::new();
    for (name, rounds) in contenders.iter().filter(|(_, rounds)| rounds.failures() > 0) {
        // Writing to a string cannot fail.
        let _cannot_fail = write!(text, " **{}: {} requests failed.**", name, rounds.failures());
    }
    text
}
