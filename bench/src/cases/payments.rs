//! Payments against a slow gateway. Requests that wait for the gateway must hold no database connection.
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dev::example::gateway::Faults;
use sqlx::{Connection as _, PgConnection};
use tokio::time::sleep;

use super::{Run, Size};
use crate::{
    load::send_concurrently,
    report::{Section, Table, single},
    requests::pay,
    service::{Server, Telemetry},
    statistics::spread,
    test_bed::{CUSTOMERS, Database, order},
};

const GATEWAY_LATENCY: Duration = Duration::from_millis(200);
const POOL_SIZE: u32 = 16;

/// Time within which all payments must have reached the gateway.
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let payments: u64 = if run.size == Size::Smoke { 50 } else { 500 };
    let database = run.test_bed.database("bench_payments").await?;
    database.add_orders(0, 2 * payments).await?;
    let settings = [
        ("DATABASE_MAX_CONNECTIONS", POOL_SIZE.to_string()),
        // At most half of `MAX_REQUESTS_IN_FLIGHT` requests may wait for the gateway. Half of this value is the number
        // of all payments of this case, so the service rejects none of them.
        ("MAX_REQUESTS_IN_FLIGHT", (4 * payments).to_string()),
        ("GATEWAY_TIMEOUT_MS", "8000".to_owned()),
    ];
    let telemetry = Telemetry::Everything { sampled: 0.1 };
    let server = Server::start(run.test_bed, &database, telemetry, None, &settings).await?;

    (run.progress)(&format!("payments: {payments} at once, with a gateway of {GATEWAY_LATENCY:?}"));
    let latency_ms = u64::try_from(GATEWAY_LATENCY.as_millis())?;
    run.test_bed.gateway.faults().set(Faults { latency_ms, ..Faults::default() });
    let began = Instant::now();
    let responses = send_concurrently(server.address, requests(0..payments)).await?;
    let total_time = began.elapsed();
    if let Some((status, _)) = responses.iter().find(|(status, _)| !status.is_success()) {
        bail!("a payment had the status {status}");
    }
    let latencies_ms = spread(responses.iter().map(|(_, latency)| latency.as_secs_f64() * 1e3));

    (run.progress)(&format!("payments: {payments} waiting for the gateway"));
    run.test_bed.gateway.faults().clear();
    run.test_bed.gateway.hold_responses();
    let waiting = tokio::spawn(send_concurrently(server.address, requests(payments..2 * payments)));
    let (connections, transactions) = measure_while_all_wait(run, &server, &database, payments).await?;
    run.test_bed.gateway.release();
    for (status, _) in waiting.await?? {
        if !status.is_success() {
            bail!("a waiting payment had the status {status}");
        }
    }
    server.stop().await?;
    run.test_bed.drop(&database).await?;

    let mut table = Table::new(&["payments", ""]);
    let mut row = |what: String, value: String| table.row([what, value]);
    row(
        format!("{payments} sent at once: time until the last response, s"),
        single(Some(total_time.as_secs_f64())),
    );
    row("median response time, ms".to_owned(), single(latencies_ms.map(|spread| spread.median)));
    row("maximum response time, ms".to_owned(), single(latencies_ms.map(|spread| spread.maximum)));
    row(
        "payments per second".to_owned(),
        single(Some(crate::interleave::count(payments) / total_time.as_secs_f64())),
    );
    row(
        format!("{payments} waiting for the gateway: pool connections in use"),
        format!("{connections:.0} of {POOL_SIZE}"),
    );
    row("sessions of the service in a transaction meanwhile".to_owned(), transactions.to_string());
    Ok(Section {
        title: "Payments with a slow gateway".to_owned(),
        about: format!(
            "The pool has {POOL_SIZE} connections. First, {payments} payments are sent at once to a gateway that responds after {} ms. Then, {payments} other payments wait at the same time for a gateway that holds its responses, and the pool connections in use are counted.",
            GATEWAY_LATENCY.as_millis()
        ),
        tables: vec![table],
        goals: Vec::new(),
    })
}

fn requests(
    orders: std::ops::Range<u64>,
) -> VecDeque<hyper::Request<http_body_util::Full<hyper::body::Bytes>>> {
    orders.map(|number| pay(&order(number), number % CUSTOMERS)).collect()
}

/// Waits until every payment of the second half waits for the gateway. Then reads two numbers ten times: the pool
/// connections in use, and the sessions with an open transaction. Returns the minimum of each number.
async fn measure_while_all_wait(
    run: &Run<'_>,
    server: &Server,
    database: &Database,
    payments: u64,
) -> anyhow::Result<(f64, i64)> {
    let mut connection = PgConnection::connect(database.admin_url.as_str()).await?;
    let expected = usize::try_from(2 * payments)?;
    let all_called =
        run.test_bed.gateway.wait_for(|ledger| ledger.counts().charges_succeeded >= expected, DEADLINE).await;
    all_called.context("not all payments reached the gateway")?;
    // A worker may briefly hold a connection. The minimum shows the connections that payments hold all the time.
    let (mut connections, mut transactions) = (f64::INFINITY, i64::MAX);
    for _ in 0..10 {
        connections = connections.min(server.metric("db_connections_active").await?);
        let count: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null",
        )
        .fetch_one(&mut connection)
        .await?;
        transactions = transactions.min(count);
        sleep(Duration::from_millis(20)).await;
    }
    connection.close().await?;
    Ok((connections, transactions))
}
