//! A database that is away, in each of the ways in which databases are away: the service says so in time, and is
//! itself again when the database is, without anybody's help.
use std::time::{Duration, Instant};

use dev::harness::{Service, TABLE, eventually, within};
use serde_json::Value;

use crate::builder;

async fn ready(service: &Service) -> (u16, Value) {
    let (status, body) = service.ops("/readyz").await;
    (status, serde_json::from_str(&body).unwrap_or_default())
}

async fn is_ready_again(service: &Service) {
    within(Duration::from_mins(1), "it is ready again", async || {
        (ready(service).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn while_the_database_hangs_probes_are_answered_in_time() {
    let service = builder().behind_a_link().start().await;
    service.link().freeze();
    eventually("it is not ready", async || (ready(&service).await.0 == 503).then_some(())).await;
    for _ in 0..5 {
        let asked = Instant::now();
        let (status, body) = ready(&service).await;
        assert_eq!((status, body["checks"]["database"].as_str()), (503, Some("unhealthy")), "{body}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        assert_eq!(service.ops("/healthz").await.0, 200, "it is alive all the same");
    }
    let (_, report) = service.ops("/health").await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["status"], "unhealthy");
    assert_eq!(report["checks"]["database"]["message"], "no answer within the deadline");
    service.link().mend();
    is_ready_again(&service).await;
}

#[tokio::test]
async fn a_database_that_was_away_is_found_again_without_a_restart() {
    let service = builder().behind_a_link().start().await;
    let customer = service.customer().await;
    let request = customer.creates();
    service.link().cut();
    let refused = request.clone().await.is_problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some(), "{refused}");
    eventually("it is not ready", async || (ready(&service).await.0 == 503).then_some(())).await;
    eventually("a worker fails, and says so", async || {
        service.logs().iter().any(|line| line["message"] == "worker failed").then_some(())
    })
    .await;
    service.link().mend();
    is_ready_again(&service).await;
    assert!(!request.insist().await.is(201).is_replayed());
    // After several failures a worker pauses for up to half a minute.
    within(Duration::from_mins(2), "the workers work again", async || {
        let (_, report) = service.ops("/health").await;
        let report: Value = serde_json::from_str(&report).unwrap();
        let workers = report["workers"].as_array().unwrap();
        workers.iter().all(|worker| worker["consecutive_failures"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_that_take_longer_than_a_request_waits_for_them_are_there_for_the_next_one() {
    let service = builder().setting("DATABASE_ACQUIRE_TIMEOUT_MS", "300").behind_a_link().start().await;
    let customer = service.customer().await;
    // A statement is one way there and back, opening a connection is several: as after a restart, when everybody
    // opens all of them at once.
    service.link().interrupt();
    service.link().slow(Duration::from_millis(100));
    let refused = customer.lists().await.is_problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some(), "{refused}");
    eventually("a connection is there", async || (customer.lists().await.status == 200).then_some(())).await;
    is_ready_again(&service).await;
}

#[tokio::test]
async fn connections_to_a_host_that_is_gone_are_given_up() {
    let service = builder()
        .setting("REQUEST_TIMEOUT_MS", "2600")
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .behind_a_link()
        .start()
        .await;
    let customer = service.customer().await;
    let pool = [(); 4];
    // Every connection of the pool is open, and every one of them is asked something when the host vanishes.
    let held = service.database().lock(TABLE).await;
    let asked = pool.map(|()| customer.lists().in_background());
    service.database().has_waiting(4).await;
    service.link().freeze();
    for request in asked {
        let _late = request.answer().await.is_problem(504, "timeout");
    }
    held.release().await;
    service.link().fails_over();

    is_ready_again(&service).await;
    let asked = pool.map(|()| customer.lists().in_background());
    for request in asked {
        let _served = request.answer().await.is(200);
    }
    let recovered =
        async || service.gauge("worker_last_success_timestamp_seconds{worker=\"audit_sealing\"}").await;
    let before = recovered().await;
    within(Duration::from_mins(1), "the workers work again", async || {
        (recovered().await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_statement_has_as_long_as_the_setting_says() {
    let service = builder()
        .setting("DATABASE_STATEMENT_TIMEOUT_MS", "30000")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let asked = customer.lists().in_background();
    // Longer than any other limit that a statement has.
    let waited = format!(
        "select count(*) from pg_locks where relation = '{TABLE}'::regclass and not granted
         and waitstart < now() - interval '16 s'"
    );
    eventually("it has waited for long", async || {
        (service.database().number(&waited).await > 0).then_some(())
    })
    .await;
    held.release().await;
    let _listed = asked.answer().await.is(200);
}
