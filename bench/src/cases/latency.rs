//! Latency at fixed request rates, measured from the time at which each request was due.
use std::collections::BTreeMap;

use super::{Run, Size, next_run};
use crate::{
    interleave::{MeasuredProcess, Rounds, over_http},
    load::Shape,
    peers::{POOL_SIZE, Peer},
    report::{Section, Table, cell},
    requests::place_orders,
    service::{Server, Telemetry},
    test_bed::Database,
};

/// Requests per second of a run without `--long`, below the capacity of a machine with two cores that also runs the
/// load and the database.
const RATE: [f64; 1] = [300.0];

/// Requests per second of a run with `--long`, from light load to nearly full load.
const RATES: [f64; 3] = [150.0, 300.0, 600.0];

/// Number of open connections, and so the maximum number of requests in flight. All connections are in use only if the
/// measured service stalls.
const MAX_CONNECTIONS: usize = 64;

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let mut contenders: Vec<(&str, Option<&Peer>, Database)> = Vec::new();
    let all = [("the service", None)].into_iter().chain(run.peers.iter().map(|peer| (peer.name, Some(peer))));
    for (number, (name, peer)) in all.enumerate() {
        let database = run.test_bed.database(&format!("bench_latency_{number}")).await?;
        contenders.push((name, peer, database));
    }
    let rates = if run.size == Size::Long { RATES.as_slice() } else { RATE.as_slice() };
    let receiver = crate::receiver::start().await?;
    let mut rounds: BTreeMap<(u64, usize), Rounds> = BTreeMap::new();
    for round in 1..=run.size.rounds() {
        for (step, per_second) in (0..).zip(rates.iter().copied()) {
            for (number, (name, peer, database)) in contenders.iter().enumerate() {
                (run.progress)(&format!("latency, round {round}: {per_second} per second, {name}"));
                run.test_bed.checkpoint().await?;
                let server = match peer {
                    None => {
                        let telemetry = Telemetry::Everything { sampled: 0.1 };
                        let pool = [("DATABASE_MAX_CONNECTIONS", POOL_SIZE.to_string())];
                        Server::start(run.test_bed, database, telemetry, Some(receiver.address), &pool)
                            .await?
                    }
                    Some(peer) => peer.start(run.test_bed, database, Some(receiver.address)).await?,
                };
                let shape = Shape::Open { per_second, connections: MAX_CONNECTIONS };
                let requests = place_orders(next_run());
                let window = run.size.window();
                let sample =
                    over_http(run.test_bed, &server, Some(&receiver), shape, window, requests).await?;
                server.stop().await?;
                rounds.entry((step, number)).or_default().0.push(sample);
            }
        }
    }
    receiver.stop().await?;
    let mut table = Table::new(&[
        "contender",
        "due per second",
        "responses per second",
        "p50 ms",
        "p99 ms",
        "CPU service µs",
    ]);
    for (step, per_second) in (0..).zip(rates) {
        for (number, (name, ..)) in contenders.iter().enumerate() {
            let Some(rounds) = rounds.get(&(step, number)) else { continue };
            table.row([
                (*name).to_owned(),
                format!("{per_second:.0}"),
                cell(rounds.spread(|sample| sample.rate)),
                cell(rounds.spread(|sample| sample.p50_ms)),
                cell(rounds.spread(|sample| sample.p99_ms)),
                cell(rounds.spread(|sample| sample.cpu_of(&[MeasuredProcess::Service]))),
            ]);
        }
    }
    for (.., database) in &contenders {
        run.test_bed.drop(database).await?;
    }
    Ok(Section {
        title: "Latency at fixed rates".to_owned(),
        about: "`POST /v1/orders` in an open loop: requests are due at fixed times, and each is measured from its due time, so the figure includes all waiting."
            .to_owned(),
        tables: vec![table],
        goals: Vec::new(),
    })
}
