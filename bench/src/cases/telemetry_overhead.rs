//! The cost of telemetry.
use super::{Run, cpu_of, cpu_of_request, next_run};
use crate::{
    interleave::{MeasuredProcess, Rounds, Sample, over_http},
    load::{Requests, Shape},
    receiver,
    report::{Bound, Goal, Section, Table, cell},
    requests::{get, place_orders},
    service::{Server, Telemetry},
    statistics::ratio,
};

/// The trivial route, whose handler does no work: it returns a small JSON document from memory.
const TRIVIAL: &str = "/problems/not-found";

const CLIENTS: usize = 32;

/// The compared amounts of telemetry: name, setting of logs and traces, and exporter of log records.
const LEVELS: [(&str, Telemetry, &str); 4] = [
    ("bare: no telemetry", Telemetry::Nothing, "none"),
    ("everything, traces at 10 %", Telemetry::Everything { sampled: 0.1 }, "none"),
    ("everything, traces at 10 %, log records", Telemetry::Everything { sampled: 0.1 }, "otlp"),
    ("everything, traces at 100 %", Telemetry::Everything { sampled: 1.0 }, "none"),
];

#[derive(Default)]
struct Level {
    trivial: Rounds,
    orders: Rounds,
    spans: u64,
    dropped: f64,
    dropped_lines: f64,
}

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let mut levels: Vec<Level> = LEVELS.iter().map(|_| Level::default()).collect();
    let mut framework = Rounds::default();
    for round in 1..=run.size.rounds() {
        (run.progress)(&format!("telemetry, round {round}: axum alone"));
        framework.0.push(axum_alone(run).await?);
        for (level, (name, telemetry, exporter)) in levels.iter_mut().zip(LEVELS) {
            (run.progress)(&format!("telemetry, round {round}: {name}"));
            let trivial = measure(run, level, telemetry, exporter, get(TRIVIAL)).await?;
            level.trivial.0.push(trivial);
            let orders = measure(run, level, telemetry, exporter, place_orders(next_run())).await?;
            level.orders.0.push(orders);
        }
    }
    Ok(section(&framework, &levels))
}

/// Measures one run in a fresh database, so that the orders of all runs are placed in tables of the same size.
async fn measure(
    run: &Run<'_>,
    level: &mut Level,
    telemetry: Telemetry,
    exporter: &str,
    requests: Requests,
) -> anyhow::Result<Sample> {
    let database = run.test_bed.database("bench_telemetry").await?;
    run.test_bed.checkpoint().await?;
    let receiver = receiver::start().await?;
    let settings = [("OTEL_LOGS_EXPORTER", exporter.to_owned())];
    let server = Server::start(run.test_bed, &database, telemetry, Some(receiver.address), &settings).await?;
    let shape = Shape::Closed { clients: CLIENTS };
    let sample =
        over_http(run.test_bed, &server, Some(&receiver), shape, run.size.window(), requests).await?;
    level.dropped += server.metric("trace_spans_dropped_total").await?;
    level.dropped_lines += server.metric("log_lines_dropped_total").await?;
    // The server flushes its remaining spans when it stops.
    server.stop().await?;
    level.spans += receiver::spans(&receiver).await?;
    receiver.stop().await?;
    run.test_bed.drop(&database).await?;
    Ok(sample)
}

/// Measures axum alone, with a response as long as that of the trivial route.
async fn axum_alone(run: &Run<'_>) -> anyhow::Result<Sample> {
    let server = receiver::start_axum_alone().await?;
    let shape = Shape::Closed { clients: CLIENTS };
    let sample = over_http(run.test_bed, &server, None, shape, run.size.window(), get(TRIVIAL)).await?;
    server.stop().await?;
    Ok(sample)
}

fn cpu_of_service(sample: &Sample) -> f64 {
    cpu_of(sample, MeasuredProcess::Service)
}

fn section(framework: &Rounds, levels: &[Level]) -> Section {
    let mut trivial = Table::new(&[
        "the trivial route",
        "CPU service µs",
        "to bare",
        "to axum alone",
        "per second",
        "CPU receiver µs",
    ]);
    let mut orders = Table::new(&[
        "`POST /v1/orders`",
        "CPU service µs",
        "CPU database µs",
        "both, to bare",
        "per second",
        "CPU receiver µs",
    ]);
    let alone = framework.of(cpu_of_service);
    trivial.row([
        "axum alone, the same response".to_owned(),
        cell(framework.spread(cpu_of_service)),
        "–".to_owned(),
        "–".to_owned(),
        cell(framework.spread(|sample| sample.rate)),
        "–".to_owned(),
    ]);
    let empty = Level::default();
    let bare = levels.first().unwrap_or(&empty);
    let (mut spans, mut dropped, mut dropped_lines) = (0, 0.0, 0.0);
    let mut goals = Vec::new();
    let bounds = [(f64::NAN, f64::NAN), (2.2, 1.04), (f64::NAN, f64::NAN), (3.0, 1.07)];
    for ((name, ..), (level, (max_trivial_ratio, max_order_ratio))) in
        LEVELS.iter().zip(levels.iter().zip(bounds))
    {
        let to_bare = level.trivial.ratio(&bare.trivial, cpu_of_service);
        trivial.row([
            (*name).to_owned(),
            cell(level.trivial.spread(cpu_of_service)),
            cell(to_bare),
            cell(ratio(&level.trivial.of(cpu_of_service), &alone)),
            cell(level.trivial.spread(|sample| sample.rate)),
            cell(level.trivial.spread(|sample| cpu_of(sample, MeasuredProcess::Receiver))),
        ]);
        let order_to_bare = level.orders.ratio(&bare.orders, cpu_of_request);
        orders.row([
            (*name).to_owned(),
            cell(level.orders.spread(cpu_of_service)),
            cell(level.orders.spread(|sample| cpu_of(sample, MeasuredProcess::Database))),
            cell(order_to_bare),
            cell(level.orders.spread(|sample| sample.rate)),
            cell(level.orders.spread(|sample| cpu_of(sample, MeasuredProcess::Receiver))),
        ]);
        spans += level.spans;
        dropped += level.dropped;
        dropped_lines += level.dropped_lines;
        if max_trivial_ratio.is_finite() {
            let what = |what| format!("CPU of {what} with {name}, to bare");
            let (bound, measured) = (Bound::AtMost(max_trivial_ratio), to_bare);
            goals.push(Goal { what: what("the trivial route"), bound, measured });
            let (bound, measured) = (Bound::AtMost(max_order_ratio), order_to_bare);
            goals.push(Goal { what: what("an order, service and database"), bound, measured });
        }
    }
    if let [_, without_records, with_records, _] = levels {
        goals.push(Goal {
            what: "CPU of an order, service and database, with log records, to without".to_owned(),
            bound: Bound::AtMost(1.03),
            measured: with_records.orders.ratio(&without_records.orders, cpu_of_request),
        });
    }
    Section {
        title: "Cost of telemetry".to_owned(),
        about: format!(
            "CPU per request, {CLIENTS} clients in a closed loop. *Everything* is the JSON access log into a file, \
             metrics, and traces to a receiver over gRPC. *Log records* are the lines of that log, exported to the same \
             receiver in addition (`OTEL_LOGS_EXPORTER=otlp`). *Bare* is the same executable with `RUST_LOG=off`, \
             `OTEL_SDK_DISABLED=true` and standard output to `/dev/null`; correlation ids and metrics have no switch, \
             and the lines of the audit log cannot be silenced. The trivial route is `GET {TRIVIAL}`. The receiver \
             got {spans} spans, and {dropped:.0} were dropped because of a full queue; {dropped_lines:.0} log lines \
             and log records were dropped."
        ),
        tables: vec![trivial, orders],
        goals,
    }
}
