//! The complete `POST /v1/orders`, compared with pgbench (the database alone), with a server that only runs the
//! service's statements ([`floor`](crate::floor)), and with other services ([`crate::peers`]).
use std::collections::BTreeMap;

use super::{Run, cpu_of_request, failures, figures, next_run};
use crate::{
    floor,
    interleave::{Rounds, over_http, with_pgbench},
    load::Shape,
    peers::{POOL_SIZE, Peer},
    pgbench::{self, Scripts},
    report::{Bound, Goal, Section, Table, cell},
    requests::place_orders,
    service::{Server, Telemetry},
    test_bed::Database,
};

const CLIENTS: [usize; 2] = [8, 32];

const NAIVE: &str = "pgbench, ten round trips (a)";
const OWN: &str = "pgbench, the service's statements (b)";
const SERVICE: &str = "the service";
const FLOOR: &str = "the floor";

enum Kind<'a> {
    Pgbench(Scripts),
    Service,
    Floor,
    Peer(&'a Peer),
}

/// A contender with its own database. In a shared database, the service would also seal the audit events of the other
/// contenders.
struct Contender<'a> {
    name: String,
    kind: Kind<'a>,
    database: Database,
}

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let contenders = contenders(run).await?;
    let receiver = crate::receiver::start().await?;
    let mut rounds: BTreeMap<(usize, &str), Rounds> = BTreeMap::new();
    for round in 1..=run.size.rounds() {
        for clients in CLIENTS {
            for Contender { name, kind, database } in &contenders {
                (run.progress)(&format!("write, round {round}: {clients} clients, {name}"));
                run.test_bed.checkpoint().await?;
                let (window, number) = (run.size.window(), next_run());
                let shape = Shape::Closed { clients };
                let sample = match kind {
                    Kind::Pgbench(scripts) => {
                        with_pgbench(run.test_bed, database, scripts, clients, window, number).await?
                    }
                    Kind::Service => {
                        let telemetry = Telemetry::Everything { sampled: 0.1 };
                        let pool = [("DATABASE_MAX_CONNECTIONS", POOL_SIZE.to_string())];
                        let server =
                            Server::start(run.test_bed, database, telemetry, Some(receiver.address), &pool)
                                .await?;
                        let requests = place_orders(number);
                        let sample =
                            over_http(run.test_bed, &server, Some(&receiver), shape, window, requests)
                                .await?;
                        server.stop().await?;
                        sample
                    }
                    Kind::Floor => {
                        let server = floor::start(database).await?;
                        let requests = place_orders(number);
                        let sample = over_http(run.test_bed, &server, None, shape, window, requests).await?;
                        server.stop().await?;
                        sample
                    }
                    Kind::Peer(peer) => {
                        let server = peer.start(run.test_bed, database, Some(receiver.address)).await?;
                        let requests = place_orders(number);
                        let sample =
                            over_http(run.test_bed, &server, Some(&receiver), shape, window, requests)
                                .await?;
                        server.stop().await?;
                        sample
                    }
                };
                rounds.entry((clients, name)).or_default().0.push(sample);
            }
        }
    }
    receiver.stop().await?;
    for contender in &contenders {
        run.test_bed.drop(&contender.database).await?;
    }
    Ok(section(&contenders, &rounds))
}

async fn contenders<'a>(run: &Run<'a>) -> anyhow::Result<Vec<Contender<'a>>> {
    let pgbench = [(NAIVE, pgbench::naive_order()?), (OWN, pgbench::own_order()?)];
    let kinds = pgbench
        .map(|(name, scripts)| (name.to_owned(), Kind::Pgbench(scripts)))
        .into_iter()
        .chain([(SERVICE.to_owned(), Kind::Service), (FLOOR.to_owned(), Kind::Floor)])
        .chain(run.peers.iter().map(|peer| (peer.name.to_owned(), Kind::Peer(peer))));
    let mut contenders = Vec::new();
    for (number, (name, kind)) in kinds.enumerate() {
        let database = run.test_bed.database(&format!("bench_write_{number}")).await?;
        contenders.push(Contender { name, kind, database });
    }
    Ok(contenders)
}

fn section<'a>(contenders: &'a [Contender<'_>], rounds: &BTreeMap<(usize, &'a str), Rounds>) -> Section {
    let none = Rounds::default();
    let rounds_of = |clients: usize, name: &'a str| rounds.get(&(clients, name)).unwrap_or(&none);
    let mut section = Section {
        title: "The write path".to_owned(),
        about: "The complete `POST /v1/orders` of an order with two lines, in a closed loop: authentication, idempotency, prices, audit and commit, with JSON logs, metrics and traces at 10 %. pgbench uses prepared statements on the same schema and PostgreSQL server: (a) in ten round trips, (b) the service's own two statements with array parameters. The floor has the service's statements and pool, and nothing around them: no layers, validation, telemetry or audit events."
            .to_owned(),
        ..Section::default()
    };
    let mut ratios = Table::new(&["the service's orders per second, relative to", "8 clients", "32 clients"]);
    for Contender { name, .. } in contenders.iter().filter(|contender| contender.name != SERVICE) {
        let ratio =
            |clients| rounds_of(clients, SERVICE).ratio(rounds_of(clients, name), |sample| sample.rate);
        ratios.row([name.clone(), cell(ratio(8)), cell(ratio(32))]);
    }
    section.tables.push(ratios);
    for clients in CLIENTS {
        let all: Vec<(String, &Rounds)> = contenders
            .iter()
            .map(|contender| {
                (format!("{}, {clients} clients", contender.name), rounds_of(clients, &contender.name))
            })
            .collect();
        section.tables.push(figures(&all));
        section.about.push_str(&failures(&all));
    }
    let bounds = [(NAIVE, 8, 1.2), (NAIVE, 32, 1.4), (OWN, 8, 0.6), (OWN, 32, 0.6)];
    for (name, clients, minimum) in bounds {
        section.goals.push(Goal {
            what: format!("orders per second, relative to {name}, {clients} clients"),
            bound: Bound::AtLeast(minimum),
            measured: rounds_of(clients, SERVICE).ratio(rounds_of(clients, name), |sample| sample.rate),
        });
    }
    for clients in CLIENTS {
        section.goals.push(Goal {
            what: format!(
                "CPU of placing an order, service and database, relative to the floor, {clients} clients"
            ),
            bound: Bound::AtMost(1.5),
            measured: rounds_of(clients, SERVICE).ratio(rounds_of(clients, FLOOR), cpu_of_request),
        });
    }
    section
}
