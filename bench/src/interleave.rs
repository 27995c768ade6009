//! The measurements of one run of a contender, and the samples of all rounds of a contender. In each round, the cases
//! run the contenders one after the other.
use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::{
    cpu,
    load::{self, LoadResult, Requests, Shape, Window},
    pgbench::{self, Scripts},
    service::Server,
    statistics::{Spread, ratio, spread},
    test_bed::{Database, TestBed},
};

/// A kind of process whose CPU time is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MeasuredProcess {
    Service,
    Database,
    Receiver,
    Load,
}

/// The ids of the measured processes.
#[derive(Clone, Copy, Debug)]
pub struct WatchedProcesses {
    pub postmaster: u32,
    pub service: Option<u32>,
    pub receiver: Option<u32>,
    pub load: u32,
}

type Times = BTreeMap<MeasuredProcess, f64>;

impl WatchedProcesses {
    /// Returns the CPU time of each process so far, in seconds. The result is empty on a system that does not report
    /// CPU times.
    fn times(self) -> Times {
        let time_of = |process, pid: Option<u32>| Some((process, cpu::of_process(pid?)?.as_secs_f64()));
        [
            time_of(MeasuredProcess::Service, self.service),
            cpu::of_server(self.postmaster).map(|time| (MeasuredProcess::Database, time.as_secs_f64())),
            time_of(MeasuredProcess::Receiver, self.receiver),
            time_of(MeasuredProcess::Load, Some(self.load)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The result of one run of one contender.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Responses per second; transactions per second for pgbench.
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// CPU time of each measured process per response, in microseconds; per transaction for pgbench.
    pub cpu: Times,
    pub failures: u64,
    /// Resident memory of the HTTP server after the run, in MiB.
    pub resident: Option<f64>,
}

impl Sample {
    fn new(measured: &LoadResult, [before, after]: [Times; 2], service: Option<u32>) -> Self {
        let responses = count(measured.responses());
        let milliseconds = |quantile| count(at(&measured.latencies, quantile)) / 1e3;
        let used = after.into_iter().filter_map(|(process, after)| {
            let seconds = after - before.get(&process)?;
            Some((process, seconds * 1e6 / responses))
        });
        Self {
            rate: responses / measured.length.as_secs_f64(),
            p50_ms: milliseconds(0.5),
            p99_ms: milliseconds(0.99),
            cpu: used.collect(),
            failures: measured.failures,
            resident: service.and_then(cpu::resident_mib),
        }
    }

    /// Returns the sum of the CPU times of these processes per response, in microseconds. Returns NaN on a system that
    /// does not report CPU times.
    pub fn cpu_of(&self, process: &[MeasuredProcess]) -> f64 {
        let all = process.iter().filter_map(|process| self.cpu.get(process));
        if self.cpu.is_empty() { f64::NAN } else { all.sum() }
    }
}

fn at(latencies: &Histogram<u64>, quantile: f64) -> u64 {
    latencies.value_at_quantile(quantile)
}

/// Converts a count. Counts here are far below 2^52, so the conversion is exact.
#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
pub fn count(number: u64) -> f64 {
    number as f64
}

/// Measures one run against an HTTP server.
pub async fn over_http(
    test_bed: &TestBed,
    server: &Server,
    receiver: Option<&Server>,
    shape: Shape,
    window: Window,
    requests: Requests,
) -> anyhow::Result<Sample> {
    let watched = WatchedProcesses {
        postmaster: test_bed.postmaster,
        service: Some(server.pid()),
        receiver: receiver.map(Server::pid),
        load: std::process::id(),
    };
    let (measured, times) = load::run(server.address, shape, window, requests, || watched.times()).await?;
    Ok(Sample::new(&measured, times, Some(server.pid())))
}

/// Measures one run of pgbench.
pub async fn with_pgbench(
    test_bed: &TestBed,
    database: &Database,
    scripts: &Scripts,
    clients: usize,
    window: Window,
    number: u64,
) -> anyhow::Result<Sample> {
    let read_times = |pid| {
        WatchedProcesses { postmaster: test_bed.postmaster, service: None, receiver: None, load: pid }.times()
    };
    let (measured, times) =
        pgbench::run(test_bed, database, scripts, clients, window, number, read_times).await?;
    Ok(Sample::new(&measured, times, None))
}

/// The rounds of one contender.
#[derive(Clone, Debug, Default)]
pub struct Rounds(pub Vec<Sample>);

impl Rounds {
    pub fn of(&self, figure: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.0.iter().map(figure).collect()
    }

    pub fn spread(&self, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        spread(self.of(figure))
    }

    /// Returns the ratio of this contender's figure to the figure of `other`, round by round.
    pub fn ratio(&self, other: &Self, figure: impl Fn(&Sample) -> f64 + Copy) -> Option<Spread> {
        ratio(&self.of(figure), &other.of(figure))
    }

    pub fn failures(&self) -> u64 {
        self.0.iter().map(|sample| sample.failures).sum()
    }
}
