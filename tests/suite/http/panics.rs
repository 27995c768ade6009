//! Panics: each is logged in one line and counted once, and the interrupted work is repeated.
use dev::harness::{Service, eventually};
use serde_json::Value;

use crate::{
    audit::seals::{verify, wait_until_everything_is_sealed},
    builder,
};

/// Starts a service that panics once, at the named crash point: a place in the code where a test can inject a panic
/// (`platform::resilience::crash`).
pub async fn panics_at(point: &str) -> Service {
    builder().setting("PANIC_AT", point).setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await
}

/// Checks that the service has panicked once, and has logged the panic in one line. Returns the line.
pub async fn the_only_panic(service: &Service, point: &str) -> Value {
    let line = service.wait_for_log("the panic", |line| line["target"] == "panic").await;
    assert_eq!(line["level"], "ERROR", "{line:#}");
    assert_eq!(line["message"], format!("panicked: a test injects a panic at {point}"), "{line:#}");
    assert!(line["location"].as_str().is_some_and(|location| location.contains("crash.rs")), "{line:#}");
    assert!(line["backtrace"].as_str().is_some_and(|trace| trace.contains("crash::point")), "{line:#}");
    assert!(line["correlation_id"].is_string(), "{line:#}");
    assert_eq!(service.logs().iter().filter(|line| line["target"] == "panic").count(), 1);
    assert_eq!(service.metric("panics_total").await, 1);
    assert_eq!(service.stderr(), [""; 0]);
    line
}

#[tokio::test]
async fn a_worker_that_panics_is_started_again_and_its_work_is_done() {
    let service = panics_at("seal.inserted").await;
    service.customer().await;
    let panic = the_only_panic(&service, "seal.inserted").await;
    let ended = service
        .wait_for_log("the end of the run", |line| {
            line["message"] == "a worker's unit of work panicked or was cancelled"
        })
        .await;
    assert_eq!((&ended["worker"], &ended["panicked"]), (&"audit_sealing".into(), &true.into()), "{ended:#}");
    assert_eq!(ended["correlation_id"], panic["correlation_id"], "both lines must belong to the same run");
    wait_until_everything_is_sealed(&service).await;
    verify(&service, &[]).await.succeeded();
    eventually("the worker succeeds again", async || {
        let (_, health) = service.ops("/health").await;
        let health: Value = serde_json::from_str(&health).unwrap();
        let workers = health["workers"].as_array().unwrap();
        let sealing = workers.iter().find(|worker| worker["name"] == "audit_sealing").unwrap();
        (sealing["consecutive_failures"] == 0).then_some(())
    })
    .await;
}
