use std::{
    future::{pending, ready},
    sync::atomic::AtomicUsize,
};

use serde_json::json;
use tokio::time::{advance, sleep};

use super::*;

const BUILD: BuildInfo = BuildInfo { name: "service", version: "1.2.3", commit: "abc", rustc: "1.95" };

const DOWN: CheckError = CheckError("cannot be reached");

#[tokio::test(start_paused = true)]
async fn a_failed_optional_check_leaves_the_process_ready() {
    let health = Health::builder(BUILD)
        .required("database", || ready(Ok(None)))
        .optional("external_api", || ready(Err(DOWN)))
        .build();
    let readiness = serde_json::to_value(health.readiness().await).unwrap();
    let expected = json!({
        "status": "ready",
        "checks": { "database": "healthy", "draining": "healthy", "external_api": "degraded" },
    });
    assert_eq!(readiness, expected);
}

#[tokio::test(start_paused = true)]
async fn readiness_names_the_failed_required_check() {
    let health = Health::builder(BUILD)
        .required("database", || ready(Err(DOWN)))
        .required("migrations", || ready(Ok(None)))
        .build();
    let readiness = serde_json::to_value(health.readiness().await).unwrap();
    let expected = json!({
        "status": "not_ready",
        "checks": { "database": "unhealthy", "draining": "healthy", "migrations": "healthy" },
    });
    assert_eq!(readiness, expected);
}

#[tokio::test(start_paused = true)]
async fn draining_is_reported_despite_cached_results() {
    let health = Health::builder(BUILD).build();
    assert!(health.readiness().await.is_ready());
    health.fail_readiness();
    let readiness = health.readiness().await;
    assert!(!readiness.is_ready());
    assert_eq!(readiness.checks["draining"], Status::Unhealthy);
}

#[tokio::test(start_paused = true)]
async fn checks_run_concurrently_under_one_deadline() {
    let slow = || async {
        sleep(Duration::from_millis(700)).await;
        Ok(Some("slow today".to_owned()))
    };
    let health = Health::builder(BUILD)
        .required("first", slow)
        .required("second", slow)
        .required("hanging", pending)
        .optional("panicking", || async { panic!("a panic of the test") })
        .build();
    let began = Instant::now();
    let report = health.report().await;
    assert_eq!(began.elapsed(), ROUND_TIMEOUT);
    assert_eq!(report.status, "unhealthy");
    assert_eq!(report.checks["hanging"].message.as_deref(), Some(TOO_SLOW.0));
    assert_eq!(report.checks["panicking"].status, Status::Degraded);
    assert_eq!(report.checks["first"].latency_ms, Some(700));
    assert_eq!(report.checks["second"].message.as_deref(), Some("slow today"));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_probes_a_second_cause_one_round_a_second() {
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rounds);
    let health = Health::builder(BUILD)
        .required("counted", move || {
            let counted = Arc::clone(&counted);
            async move {
                counted.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(10)).await;
                Ok(None)
            }
        })
        .build();
    for _ in 0..3000 {
        let health = health.clone();
        tokio::spawn(async move { assert!(health.readiness().await.is_ready()) });
        advance(Duration::from_millis(1)).await;
    }
    assert_eq!(rounds.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_starts_no_further_checks() {
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rounds);
    let health = Health::builder(BUILD)
        .required("counted", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            pending()
        })
        .build();
    for _ in 0..10 {
        let timed_out = tokio::time::timeout(Duration::from_millis(50), health.readiness()).await;
        assert!(timed_out.is_err());
    }
    assert!(!health.readiness().await.is_ready());
    assert_eq!(rounds.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn the_health_report_has_the_build_and_the_uptime() {
    let health = Health::builder(BUILD)
        .required("database", || ready(Ok(None)))
        .section("pool", || json!({ "idle": 3 }))
        .build();
    advance(Duration::from_secs(61)).await;
    let report = serde_json::to_value(health.report().await).unwrap();
    let expected = json!({
        "status": "ok",
        "version": "1.2.3",
        "uptime_seconds": 61,
        "build": { "version": "1.2.3", "commit": "abc", "rustc": "1.95" },
        "checks": {
            "database": { "status": "healthy", "message": null, "latency_ms": 0 },
            "draining": { "status": "healthy", "message": null, "latency_ms": null },
        },
        "pool": { "idle": 3 },
    });
    assert_eq!(report, expected);
}
