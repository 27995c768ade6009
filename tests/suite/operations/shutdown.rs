//! Shutdown: work in flight is finished before the deadline, and the log reports work that is cancelled. A signal also
//! ends the waits during the start, and a second signal ends the process immediately.
use std::{path::Path, time::Instant};

use dev::{
    harness::{Database, REQUIRED, Service, Signal, TABLE, WAIT_TIMEOUT, eventually},
    process::Launch,
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{EXECUTABLE, builder, service};

#[tokio::test]
async fn a_signal_stops_the_service_with_exit_code_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let service = service().await;
        service.signal(signal);
        assert_eq!(service.wait_for_exit().await.code(), Some(0));
        let last = last_line(&service);
        assert_eq!(last["message"], "the service stopped");
    }
}

/// Returns the newest log line by its timestamp. The audit log's lines have a queue of their own, so the last received
/// line may be older.
fn last_line(service: &Service) -> Value {
    service.logs().into_iter().max_by_key(|line| line["timestamp"].to_string()).unwrap()
}

#[tokio::test]
async fn a_request_in_flight_is_finished_before_the_service_ends() {
    let service = service().await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let attempt = customer.creates().in_background();
    service.database().wait_for_blocked_statements(1).await;
    service.signal(Signal::SIGTERM);
    service
        .wait_for_log("the shutdown has begun", |line| line["message"] == "the service is shutting down")
        .await;
    held.release().await;

    let _created = attempt.response().await.assert_status(201);
    assert_eq!(service.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn readiness_fails_before_the_listeners_close() {
    let service = builder().setting("SHUTDOWN_GRACE_SECONDS", "2").start().await;
    service.signal(Signal::SIGTERM);
    let body = eventually("the service is not ready", async || {
        let (status, body) = service.ops("/readyz").await;
        (status == 503).then(|| serde_json::from_str::<Value>(&body).unwrap())
    })
    .await;
    assert_eq!((&body["status"], &body["checks"]["draining"]), (&json!("not_ready"), &json!("unhealthy")));
    let _still_served = service.anonymous().get("/problems").await.assert_status(200);
    assert_eq!(service.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn work_past_the_deadline_is_cancelled_and_logged() {
    let service = builder()
        .setting("SHUTDOWN_DEADLINE_SECONDS", "3")
        .setting("DATABASE_STATEMENT_TIMEOUT_MS", "9000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let attempt = customer.creates().in_background();
    service.database().wait_for_blocked_statements(1).await;
    assert_eq!(service.terminate().await.code(), Some(1));
    assert!(service.logs().iter().any(|line| line.to_string().contains("shutdown deadline exceeded")));
    let _cut = attempt.give_up().await;
    held.release().await;
}

/// Starts the service, waits until `until_waiting` is complete, and asserts that SIGTERM then ends the process with
/// exit code 0 within ten seconds.
async fn assert_signal_ends_wait(
    settings: &[(&str, String)],
    until_waiting: impl AsyncFn(&dev::process::Child),
) {
    let mut launch = Launch::new(EXECUTABLE).args(["serve"]).directory(Path::new("/")).env("APP_ENV", "test");
    for (name, value) in REQUIRED {
        launch = launch.env(name, value);
    }
    for (name, value) in settings {
        launch = launch.env(name, value);
    }
    let started = launch.start().unwrap();
    until_waiting(&started).await;
    started.signal(Signal::SIGTERM).unwrap();
    let signalled = Instant::now();
    assert_eq!(started.wait(WAIT_TIMEOUT).await.unwrap().code(), Some(0));
    assert!(signalled.elapsed().as_secs() < 10, "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_the_database() {
    let settings = [
        ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nowhere".to_owned()),
        ("DATABASE_STARTUP_WAIT_SECONDS", "60".to_owned()),
    ];
    assert_signal_ends_wait(&settings, async |started| {
        let waiting =
            started.follow().find(WAIT_TIMEOUT, |line| line.contains("waiting for the database")).await;
        assert!(waiting.is_some());
    })
    .await;
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_another_migration() {
    let database = Database::create_empty().await;
    let _held = database.hold("select pg_advisory_xact_lock(hashtext('migrate'))").await;
    let mut settings = database.settings().to_vec();
    settings.push(("MIGRATE_ON_START", "true".to_owned()));
    assert_signal_ends_wait(&settings, async |_| database.wait_for_blocked_statements(1).await).await;
}

#[tokio::test]
async fn a_second_signal_ends_the_service_at_once() {
    let service = builder().setting("SHUTDOWN_GRACE_SECONDS", "20").start().await;
    service.signal(Signal::SIGTERM);
    service
        .wait_for_log("the shutdown has begun", |line| line["message"] == "the service is shutting down")
        .await;
    service.signal(Signal::SIGTERM);
    let started = Instant::now();
    assert_eq!(service.wait_for_exit().await.code(), Some(1));
    assert!(started.elapsed().as_secs() < 15);
}

async fn connection(service: &Service, text: &str) -> TcpStream {
    let address = service.api_url().socket_addrs(|| None).unwrap()[0];
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn idle_clients_do_not_delay_the_shutdown() {
    let service = builder().setting("HEADER_TIMEOUT_MS", "2000").start().await;
    let _silent = connection(&service, "").await;
    let _half_a_request = connection(&service, "GET /problems HTTP/1.1\r\nhost").await;
    let responded = connection(&service, "GET /problems HTTP/1.1\r\nhost: shop\r\n\r\n").await;
    responded.readable().await.unwrap();
    let started = Instant::now();
    assert_eq!(service.terminate().await.code(), Some(0));
    assert!(started.elapsed().as_secs() < 15, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_hanging_client_is_disconnected_at_the_deadline() {
    let service = builder()
        .setting("SHUTDOWN_DEADLINE_SECONDS", "10")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .setting("BODY_TIMEOUT_MS", "60000")
        .start()
        .await;
    let hanging = "POST /v1/users HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n";
    let _hanging = connection(&service, &format!("{hanging}content-length: 100\r\n\r\n{{")).await;
    eventually("the request is in flight", async || {
        (service.metric("http_requests_in_flight").await == 1).then_some(())
    })
    .await;
    assert_eq!(service.terminate().await.code(), Some(1));
    let last = last_line(&service);
    let error = last["error"].as_str().unwrap();
    assert!(
        error.ends_with("cancelled: 1 connections of the API"),
        "everything else must have ended: {error}"
    );
}

#[tokio::test]
async fn a_hanging_database_does_not_delay_the_shutdown() {
    let service = builder().setting("SHUTDOWN_DEADLINE_SECONDS", "5").with_database_proxy().start().await;
    service.database_proxy().freeze();
    let started = Instant::now();
    service.terminate().await;
    assert!(started.elapsed().as_secs() < 15, "{:?}", started.elapsed());
}
