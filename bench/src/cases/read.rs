//! `GET /v1/orders/{id}` and `GET /v1/orders`, compared with pgbench, which runs the service's statements. The read of
//! one order is also compared with a server that only runs these statements ([`floor`]) and with other services
//! ([`crate::peers`]).
use std::collections::BTreeMap;

use super::{Run, cpu_of_request, failures, figures, next_run};
use crate::{
    floor,
    interleave::{Rounds, over_http, with_pgbench},
    load::{Requests, Shape},
    peers::{POOL_SIZE, Peer},
    pgbench::{self, Scripts},
    report::{Bound, Goal, Section},
    requests::{list_orders, read_orders},
    service::{Server, Telemetry},
};

const CLIENTS: usize = 16;
const ORDERS: u64 = 20_000;

enum Kind<'a> {
    Pgbench(Scripts),
    Service(Requests),
    Floor,
    Peer(&'a Peer),
}

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let database = run.test_bed.database("bench_read").await?;
    database.add_orders(0, ORDERS).await?;
    let receiver = crate::receiver::start().await?;
    let mut contenders = vec![
        (
            "pgbench, the service's statements, one order".to_owned(),
            Kind::Pgbench(pgbench::own_read(ORDERS)?),
        ),
        ("the service, one order".to_owned(), Kind::Service(read_orders(ORDERS))),
        ("the floor, one order".to_owned(), Kind::Floor),
        ("pgbench, the service's statements, list".to_owned(), Kind::Pgbench(pgbench::own_list()?)),
        ("the service, list".to_owned(), Kind::Service(list_orders())),
    ];
    contenders.extend(run.peers.iter().map(|peer| (format!("{}, one order", peer.name), Kind::Peer(peer))));
    let mut rounds: BTreeMap<&str, Rounds> = BTreeMap::new();
    for round in 1..=run.size.rounds() {
        for (name, kind) in &contenders {
            (run.progress)(&format!("read, round {round}: {name}"));
            let (window, shape) = (run.size.window(), Shape::Closed { clients: CLIENTS });
            let (server, requests) = match kind {
                Kind::Pgbench(scripts) => {
                    let sample =
                        with_pgbench(run.test_bed, &database, scripts, CLIENTS, window, next_run()).await?;
                    rounds.entry(name).or_default().0.push(sample);
                    continue;
                }
                Kind::Service(requests) => {
                    let telemetry = Telemetry::Everything { sampled: 0.1 };
                    let pool = [("DATABASE_MAX_CONNECTIONS", POOL_SIZE.to_string())];
                    let receiver = Some(receiver.address);
                    (
                        Server::start(run.test_bed, &database, telemetry, receiver, &pool).await?,
                        requests.clone(),
                    )
                }
                Kind::Floor => (floor::start(&database).await?, read_orders(ORDERS)),
                Kind::Peer(peer) => {
                    (peer.start(run.test_bed, &database, Some(receiver.address)).await?, read_orders(ORDERS))
                }
            };
            let sample = over_http(run.test_bed, &server, Some(&receiver), shape, window, requests).await?;
            server.stop().await?;
            rounds.entry(name).or_default().0.push(sample);
        }
    }
    receiver.stop().await?;
    run.test_bed.drop(&database).await?;

    let none = Rounds::default();
    let rounds_of = |name: &str| rounds.get(name).unwrap_or(&none);
    let all: Vec<_> = contenders.iter().map(|(name, _)| (name.clone(), rounds_of(name))).collect();
    let goal = |what: &str| Goal {
        what: format!("{what} per second, relative to pgbench"),
        bound: Bound::AtLeast(0.6),
        measured: rounds_of(&format!("the service, {what}"))
            .ratio(rounds_of(&format!("pgbench, the service's statements, {what}")), |sample| sample.rate),
    };
    let to_floor = Goal {
        what: "CPU of reading one order, service and database, relative to the floor".to_owned(),
        bound: Bound::AtMost(1.35),
        measured: rounds_of("the service, one order")
            .ratio(rounds_of("the floor, one order"), cpu_of_request),
    };
    Ok(Section {
        title: "The read path".to_owned(),
        about: format!(
            "{CLIENTS} clients in a closed loop call `GET /v1/orders/{{id}}` or `GET /v1/orders` (the newest twenty). There \
             are {CUSTOMERS} customers, with {ORDERS} orders in total. pgbench runs the service's statements: the lookup \
             of the session, and the read of the order or of the list. The floor is an HTTP server with the same route, statements and pool as the service, but without layers, telemetry and audit.{}",
            failures(&all),
            CUSTOMERS = crate::test_bed::CUSTOMERS,
        ),
        tables: vec![figures(&all)],
        goals: vec![goal("one order"), goal("list"), to_floor],
    })
}
