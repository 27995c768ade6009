//! Outages of collectors, log readers and log files: no request fails or takes longer than [`MAX_REQUEST_TIME`], losses
//! are counted, and memory is bounded. Also scrapes under load, and the last exports before the exit.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use dev::harness::{Collector, CollectorBehavior, PATH, REQUIRED, Service, TABLE, eventually, run, within};
use tokio::net::TcpListener;

use crate::{EXECUTABLE, audit::seals::wait_until_everything_is_sealed, builder};

/// Maximum duration of a request: below the default export timeout (three seconds), so a request that waits for an
/// export fails the test. The usual duration is far below this maximum, even on a busy machine.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(2);

/// Maximum time until a queue of log lines is full on a busy machine.
const WAIT_TIMEOUT: Duration = Duration::from_mins(2);

/// Maximum growth of the service's memory, in bytes. The queues are bounded, so they cannot hold more.
const MAX_GROWTH_BYTES: u64 = 64 * 1024 * 1024;

/// Sends requests one after the other. Panics if a request fails, or takes longer than [`MAX_REQUEST_TIME`].
async fn assert_serves(service: &Service, requests: usize) {
    let customer = service.customer().await;
    for _ in 0..requests {
        let started = Instant::now();
        let _listed = customer.lists().await.assert_status(200);
        assert!(started.elapsed() < MAX_REQUEST_TIME, "a request took {:?}", started.elapsed());
    }
}

async fn wait_for_losses(service: &Service, metric: &str) {
    eventually(&format!("{metric} is positive"), async || (service.metric(metric).await > 0).then_some(()))
        .await;
}

/// Checks that requests and the shutdown still work, that the memory grows by less than [`MAX_GROWTH_BYTES`], and that
/// no task has panicked.
async fn assert_works_and_stops(service: &Service) {
    let _created = service.customer().await.creates().await.assert_status(201);
    let before = service.memory();
    assert_serves(service, 300).await;
    let grown = service.memory().saturating_sub(before);
    assert!(grown < MAX_GROWTH_BYTES, "the memory has grown by {grown} bytes");
    assert_eq!(service.metric("panics_total").await, 0);
    assert!(service.terminate().await.success(), "the service must stop without an error");
}

#[tokio::test]
async fn an_unreachable_collector_delays_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for protocol in ["grpc", "http/protobuf"] {
        let service = builder()
            .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}"))
            .setting("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .setting("OTEL_BSP_SCHEDULE_DELAY", "50")
            .setting("OTEL_LOGS_EXPORTER", "otlp")
            .setting("OTEL_BLRP_SCHEDULE_DELAY", "50")
            .start()
            .await;
        assert_serves(&service, 50).await;
        wait_for_losses(&service, "trace_spans_dropped_total").await;
        wait_for_losses(&service, "log_lines_dropped_total").await;
        assert_works_and_stops(&service).await;
    }
}

#[tokio::test]
async fn a_slow_collector_delays_no_request() {
    let collector = Collector::start().await;
    collector.set_behavior(CollectorBehavior::Slow(Duration::from_secs(10)));
    // The queues are short, so that they overflow soon.
    let service = builder()
        .with_logs_to(&collector)
        .setting("OTEL_BSP_MAX_QUEUE_SIZE", "32")
        .setting("OTEL_BLRP_MAX_QUEUE_SIZE", "32")
        .start()
        .await;
    assert_serves(&service, 100).await;
    wait_for_losses(&service, "trace_spans_dropped_total").await;
    wait_for_losses(&service, "log_lines_dropped_total").await;
    assert!(collector.requests() > 0, "no export was attempted");
    assert_works_and_stops(&service).await;
}

/// Starts a service that exports only when it stops, and sends five requests to it. The collector responds after the
/// time `takes`.
async fn service_that_exports_at_stop(
    collector: &Collector,
    takes: Duration,
    settings: &[(&str, &str)],
) -> Service {
    collector.set_behavior(CollectorBehavior::Slow(takes));
    let builder = builder()
        .with_logs_to(collector)
        .setting("OTEL_BSP_SCHEDULE_DELAY", "600000")
        .setting("OTEL_BLRP_SCHEDULE_DELAY", "600000");
    let builder = settings.iter().fold(builder, |builder, (name, value)| builder.setting(name, value));
    let service = builder.start().await;
    assert_serves(&service, 5).await;
    assert_eq!(collector.requests(), 0);
    service
}

/// Returns the logged numbers of spans and log records that were lost when the service stopped.
fn lost_at_stop(service: &Service) -> [Option<u64>; 2] {
    ["spans", "records"].map(|what| {
        let mut lines = service.logs().into_iter();
        let loss = lines.find(|line| {
            let message = line["message"].as_str().unwrap();
            message.contains("were lost at the end") && line[what].is_number()
        });
        loss.map(|line| line[what].as_u64().unwrap())
    })
}

#[tokio::test]
async fn the_last_exports_may_take_until_the_deadline() {
    let collector = Collector::start().await;
    let service = service_that_exports_at_stop(&collector, Duration::from_millis(1_500), &[]).await;
    assert!(service.terminate().await.success());
    assert_eq!(lost_at_stop(&service), [None, None]);
    assert!(collector.spans().iter().any(|span| span.name.ends_with(PATH)));
    assert!(collector.records().iter().any(|record| record.body == "the service stopped"));
}

#[tokio::test]
async fn exports_that_are_lost_at_the_end_are_counted_in_the_log() {
    for settings in [
        // The export times out before the deadline.
        [("OTEL_EXPORTER_OTLP_TIMEOUT", "500"), ("SHUTDOWN_DEADLINE_SECONDS", "25")],
        // The export has not finished at the deadline.
        [("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"), ("SHUTDOWN_DEADLINE_SECONDS", "6")],
    ] {
        let collector = Collector::start().await;
        let service = service_that_exports_at_stop(&collector, Duration::from_mins(1), &settings).await;
        let started = Instant::now();
        assert!(service.terminate().await.success());
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        let lost = lost_at_stop(&service);
        assert!(lost.iter().all(|lost| lost.is_some_and(|count| count >= 5)), "{lost:?}");
    }
}

#[tokio::test]
async fn span_export_continues_after_a_collector_outage() {
    let collector = Collector::start().await;
    collector.set_behavior(CollectorBehavior::Rejecting);
    let service = builder().with_traces_to(&collector).start().await;
    assert_serves(&service, 20).await;
    wait_for_losses(&service, "trace_spans_dropped_total").await;
    collector.set_behavior(CollectorBehavior::Accepting);
    let _served =
        service.customer().await.lists().header("x-correlation-id", "well-again").await.assert_status(200);
    let _exported = collector.wait_for_request(PATH, "well-again").await;
    assert_works_and_stops(&service).await;
}

#[tokio::test]
async fn a_stopped_log_reader_delays_no_request() {
    // With the filter `trace`, the service also writes the debug lines of libraries, so the pipe and the queue fill
    // soon.
    let service = builder().setting("RUST_LOG", "trace").start().await;
    service.stall_output();
    let before = service.memory();
    within(WAIT_TIMEOUT, "lines are lost", async || {
        assert_serves(&service, 80).await;
        (service.metric("log_lines_dropped_total").await > 0).then_some(())
    })
    .await;
    let grown = service.memory().saturating_sub(before);
    assert!(grown < MAX_GROWTH_BYTES, "the memory has grown by {grown} bytes");
    assert_works_and_stops(&service).await;
}

#[tokio::test]
async fn a_late_log_reader_misses_no_audit_line() {
    let service =
        builder().setting("RUST_LOG", "trace").setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    let customer = service.customer().await;
    service.stall_output();
    within(WAIT_TIMEOUT, "lines are lost", async || {
        assert_serves(&service, 80).await;
        (service.metric("log_lines_dropped_total").await > 0).then_some(())
    })
    .await;
    let lost = service.metric("log_lines_dropped_total").await;
    let _created = customer.creates().header("x-correlation-id", "meanwhile").await.assert_status(201);
    wait_until_everything_is_sealed(&service).await;
    let head = service.database().number("select number from audit_seal_head").await;
    assert!(
        service.metric("log_lines_dropped_total").await > lost,
        "other lines must be lost at the same time"
    );

    service.resume_output();
    let sealed = |line: &serde_json::Value| line["target"] == "audit" && line["seal_number"] == head;
    service.wait_for_log("the last seal of the audit log is logged", sealed).await;
    let lines = service.logs();
    let has_line_of = |target: &str| {
        lines.iter().any(|line| line["correlation_id"] == "meanwhile" && line["target"] == target)
    };
    assert!(has_line_of("audit"), "the audit line must be logged while other lines are dropped");
    assert!(!has_line_of("access"), "the access line must be dropped");
}

#[tokio::test]
async fn a_closed_log_pipe_delays_no_request() {
    let service = builder().start().await;
    service.close_output();
    assert_serves(&service, 20).await;
    wait_for_losses(&service, "log_lines_dropped_total").await;
    assert_works_and_stops(&service).await;
}

/// Returns an empty directory for this test.
fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _may_be_missing = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Creates symbolic links to a file, with the names of today's and tomorrow's log file. Tomorrow's link is for a test
/// that runs over midnight.
fn link_log_files(target: &Path, directory: &Path) {
    for day in [chrono::Utc::now(), chrono::Utc::now() + chrono::Duration::days(1)] {
        let name = format!("{}.{}.log", env!("CARGO_PKG_NAME"), day.format("%Y-%m-%d"));
        std::os::unix::fs::symlink(target, directory.join(name)).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_under_the_log_delays_no_request() {
    let directory = directory("full-disk");
    link_log_files(Path::new("/dev/full"), &directory);
    let service = builder().setting("LOG_DIRECTORY", directory.to_str().unwrap()).start().await;
    assert_serves(&service, 20).await;
    wait_for_losses(&service, "log_lines_dropped_total").await;
    let is_access_line = |line: &serde_json::Value| line["target"] == "access";
    let _on_stdout = service.wait_for_log("an access line", is_access_line).await;
    assert_works_and_stops(&service).await;
}

#[tokio::test]
async fn an_unwritable_log_file_delays_no_request() {
    let directory = directory("broken-pipe");
    // A pipe becomes unwritable when its reading end is closed, also for root, who could write to any file.
    let pipe = directory.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    link_log_files(&pipe, &directory);
    let reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let service = builder().setting("LOG_DIRECTORY", directory.to_str().unwrap()).start().await;
    assert_serves(&service, 5).await;
    assert_eq!(service.metric("log_lines_dropped_total").await, 0);
    drop(reader);
    assert_serves(&service, 20).await;
    wait_for_losses(&service, "log_lines_dropped_total").await;
    assert_works_and_stops(&service).await;
    let access = service.logs().into_iter().filter(|line| line["target"] == "access").count();
    assert!(access >= 25, "only {access} access lines were written to stdout");
}

#[tokio::test]
async fn a_deleted_log_directory_delays_no_request() {
    let directory = directory("taken-away").join("logs");
    let service = builder().setting("LOG_DIRECTORY", directory.to_str().unwrap()).start().await;
    assert_serves(&service, 5).await;
    fs::remove_dir_all(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    assert_serves(&service, 20).await;
    assert_works_and_stops(&service).await;
}

#[tokio::test]
async fn scrapes_and_requests_do_not_block_each_other() {
    let service = builder().start().await;
    let pool = [(); 4];
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let waiting = pool.map(|()| customer.lists().in_background());
    eventually("every connection is in use", async || {
        (service.metric("db_connections_active").await == 4).then_some(())
    })
    .await;
    for _ in 0..10 {
        let started = Instant::now();
        let _text = service.metrics().await;
        assert!(started.elapsed() < MAX_REQUEST_TIME, "a scrape took {:?}", started.elapsed());
    }
    held.release().await;
    for request in waiting {
        let _listed = request.response().await.assert_status(200);
    }

    let client = dev::http::client(dev::harness::WAIT_TIMEOUT).unwrap();
    let url = service.ops_url().join("/metrics").unwrap();
    let scrapes: Vec<_> = (0..40).map(|_| tokio::spawn(client.get(url.clone()).send())).collect();
    assert_serves(&service, 50).await;
    for scrape in scrapes {
        assert_eq!(scrape.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn an_unwritable_log_directory_fails_the_start() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-directory");
    fs::write(&file, "").unwrap();
    let own = [
        ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing"),
        ("LOG_DIRECTORY", file.to_str().unwrap()),
    ];
    let settings = [&REQUIRED[..], &own].concat();
    let finished = run(Path::new(EXECUTABLE), &["serve"], &settings).await;
    assert_eq!(finished.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("LOG_DIRECTORY: failed to write a log file in"), "{}", finished.stderr);
}
