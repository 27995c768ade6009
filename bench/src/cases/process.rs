//! The process itself: start-up time, memory, duration and number of series of a scrape, size of the executable, and
//! build times.
use std::{fs, time::Instant};

use dev::{cargo, project};
use tokio::time::{Duration, sleep};

use super::{Run, Size, next_run};
use crate::{
    cpu,
    interleave::{count, over_http},
    load::Shape,
    report::{Section, Table, cell, single},
    requests::place_orders,
    service::{Server, Telemetry},
    statistics::spread,
};

pub(super) async fn run(run: &Run<'_>) -> anyhow::Result<Section> {
    let database = run.test_bed.database("bench_process").await?;
    let telemetry = Telemetry::Everything { sampled: 0.1 };
    let (mut until_ready, mut idle, mut loaded, mut scrape) = (vec![], vec![], vec![], vec![]);
    let (mut series_idle, mut series_loaded) = (vec![], vec![]);
    for round in 1..=run.size.rounds() {
        (run.progress)(&format!("process, round {round}"));
        let server = Server::start(run.test_bed, &database, telemetry, None, &[]).await?;
        until_ready.push(server.until_ready.as_secs_f64() * 1e3);
        // Within this second, the workers complete their first run.
        sleep(Duration::from_secs(1)).await;
        idle.extend(cpu::resident_mib(server.pid()));
        series_idle.push(series(&server.metrics().await?));
        let (shape, window) = (Shape::Closed { clients: 64 }, run.size.window());
        let requests = place_orders(next_run());
        let sample = over_http(run.test_bed, &server, None, shape, window, requests).await?;
        loaded.extend(sample.resident);
        let began = Instant::now();
        let metrics = server.metrics().await?;
        scrape.push(began.elapsed().as_secs_f64() * 1e3);
        series_loaded.push(series(&metrics));
        server.stop().await?;
    }
    run.test_bed.drop(&database).await?;
    let mut table = Table::new(&["the process", ""]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("start until ready, ms", cell(spread(until_ready)));
    row("resident memory when idle, MiB", cell(spread(idle)));
    row("resident memory with 64 clients, MiB", cell(spread(loaded)));
    row("a scrape of the metrics, ms", cell(spread(scrape)));
    row("series before the first request", cell(spread(series_idle)));
    row("series after the orders of 64 clients", cell(spread(series_loaded)));
    #[expect(clippy::cast_precision_loss, reason = "a size below 2^52")]
    let size = fs::metadata(&run.test_bed.executable)?.len() as f64 / 1024.0 / 1024.0;
    row("the executable, MiB", single(Some(size)));
    if run.size == Size::Long {
        let (clean, incremental) = builds(run).await?;
        row("`cargo build --release`, clean, s", single(Some(clean)));
        row("`cargo build`, after a change in one file of the service, s", single(Some(incremental)));
    }
    Ok(Section {
        title: "The process".to_owned(),
        about: "Start-up includes connecting to the database, checking its schema and privileges, and opening both listeners.".to_owned(),
        tables: vec![table],
        goals: Vec::new(),
    })
}

/// Returns the number of series in a scrape.
fn series(scrape: &str) -> f64 {
    count(scrape.lines().filter(|line| !line.starts_with('#')).map(|_series| 1).sum())
}

/// Returns the duration in seconds of a clean release build in a separate directory, and of an incremental debug build
/// after a change in one file.
async fn builds(run: &Run<'_>) -> anyhow::Result<(f64, f64)> {
    let target = run.test_bed.directory.join("target");
    let directory = target.display().to_string();
    let name = project::name();
    let timed = async |arguments: &[&str]| {
        let began = Instant::now();
        cargo::run(arguments, &[]).await?;
        anyhow::Ok(began.elapsed().as_secs_f64())
    };
    (run.progress)("process: a clean build");
    let clean = timed(&["build", "--release", "--bin", name, "--target-dir", &directory]).await?;
    (run.progress)("process: an incremental build");
    timed(&["build", "--bin", name, "--target-dir", &directory]).await?;
    // Cargo compares the modification times of files, so touching a file counts as a change.
    let source = project::root().join("src/slices/orders/store.rs");
    fs::File::options().append(true).open(&source)?.set_modified(std::time::SystemTime::now())?;
    let incremental = timed(&["build", "--bin", name, "--target-dir", &directory]).await?;
    fs::remove_dir_all(&target)?;
    Ok((clean, incremental))
}
