//! `POST /v1/orders` with growing numbers of clients and of connections in the service's pool.
use super::{Run, Size, failures, figures, next_run};
use crate::{
    interleave::{Rounds, over_http},
    load::Shape,
    report::Section,
    requests::place_orders,
    service::{Server, Telemetry},
};

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let (clients, pools): (&[usize], &[u32]) = match run.size {
        Size::Smoke => (&[100], &[4]),
        Size::Short => (&[8, 64, 1_000], &[4, 64]),
        Size::Long => (&[8, 64, 256, 1_000], &[4, 8, 16, 32, 64]),
    };
    let database = run.test_bed.database("bench_concurrency").await?;
    let steps = clients.iter().map(|clients| (*clients, 16)).chain(pools.iter().map(|pool| (64, *pool)));
    let mut table = Vec::new();
    for (clients, pool) in steps {
        let name = format!("{clients} clients, pool of {pool}");
        (run.progress)(&format!("concurrency: {name}"));
        run.test_bed.checkpoint().await?;
        let settings = [
            ("DATABASE_MAX_CONNECTIONS", pool.to_string()),
            ("DATABASE_ACQUIRE_TIMEOUT_MS", "10000".to_owned()),
            ("MAX_REQUESTS_IN_FLIGHT", "2000".to_owned()),
        ];
        let telemetry = Telemetry::Everything { sampled: 0.1 };
        let server = Server::start(run.test_bed, &database, telemetry, None, &settings).await?;
        let (shape, window) = (Shape::Closed { clients }, run.size.window());
        let requests = place_orders(next_run());
        let sample = over_http(run.test_bed, &server, None, shape, window, requests).await?;
        server.stop().await?;
        table.push((name, Rounds(vec![sample])));
    }
    run.test_bed.drop(&database).await?;
    let rows: Vec<_> = table.iter().map(|(name, rounds)| (name.clone(), rounds)).collect();
    Ok(Section {
        title: "Clients and connections".to_owned(),
        about: format!(
            "`POST /v1/orders` in a closed loop, with `MAX_REQUESTS_IN_FLIGHT` above the number of clients. One round.{}",
            failures(&rows)
        ),
        tables: vec![figures(&rows)],
        goals: Vec::new(),
    })
}
