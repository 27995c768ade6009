//! The same requests against growing tables.
use super::{Run, Size, figures, next_run};
use crate::{
    interleave::{Rounds, over_http},
    load::Shape,
    report::Section,
    requests::{list_orders, place_orders, read_orders},
    service::{Server, Telemetry},
};

const CLIENTS: usize = 16;

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let sizes: &[u64] = match run.size {
        Size::Smoke => &[1_000, 2_000],
        Size::Short => &[10_000, 200_000],
        Size::Long => &[10_000, 1_000_000, 10_000_000],
    };
    let database = run.test_bed.database("bench_table_size").await?;
    let (mut existing, mut table) = (0, Vec::new());
    for orders in sizes.iter().copied() {
        (run.progress)(&format!("table-size: inserting {orders} orders and audit events"));
        database.add_orders(existing, orders).await?;
        database.add_audit_events(existing, orders).await?;
        existing = orders;
        let telemetry = Telemetry::Everything { sampled: 0.1 };
        let server = Server::start(run.test_bed, &database, telemetry, None, &[]).await?;
        (run.progress)("table-size: waiting until the service has sealed these events");
        database.wait_until_sealed().await?;
        run.test_bed.checkpoint().await?;
        let requests = [
            ("one order", read_orders(orders)),
            ("list", list_orders()),
            ("place", place_orders(next_run())),
        ];
        for (what, requests) in requests {
            (run.progress)(&format!("table-size: {what}, {orders} orders"));
            let (shape, window) = (Shape::Closed { clients: CLIENTS }, run.size.window());
            let sample = over_http(run.test_bed, &server, None, shape, window, requests).await?;
            table.push((format!("{what}, {orders} orders"), Rounds(vec![sample])));
        }
        server.stop().await?;
    }
    run.test_bed.drop(&database).await?;
    table.sort_by_key(|(name, _)| name.split(',').next().map(str::to_owned));
    let rows: Vec<_> = table.iter().map(|(name, rounds)| (name.clone(), rounds)).collect();
    Ok(Section {
        title: "Table size".to_owned(),
        about: format!(
            "{CLIENTS} clients in a closed loop, with the given number of orders (of two lines each) and of sealed audit events. One round."
        ),
        tables: vec![figures(&rows)],
        goals: Vec::new(),
    })
}
