//! Operations: liveness, readiness, the health report, metrics, the cost of probes, and changes of the log filter. The
//! modules test start and shutdown, settings, replicas, rolls, the service's own alerts, and calls to other servers.
pub(crate) mod alerts;
pub(crate) mod last_release;
pub(crate) mod outbound;
mod replicas;
mod settings;
mod shutdown;
pub(crate) mod startup;

use std::time::{Duration, Instant};

use dev::harness::{EXTERNAL_CHECKS, PATH, ROUTE, SERIES, Service, TABLE, WAIT_TIMEOUT, eventually};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::{builder, http::openapi, service};

pub async fn page(service: &Service, path: &str) -> (u16, Value) {
    let (status, body) = service.ops(path).await;
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
}

#[tokio::test]
async fn healthz_reports_a_live_process() {
    let service = service().await;
    let (status, body) = page(&service, "/healthz").await;
    assert_eq!((status, &body["status"]), (200, &json!("ok")));
    assert!(chrono::DateTime::parse_from_rfc3339(body["timestamp"].as_str().unwrap()).is_ok());
}

#[tokio::test]
async fn readyz_lists_the_checks() {
    let service = service().await;
    let (status, body) = page(&service, "/readyz").await;
    let names = ["database", "migrations", "draining"].into_iter().chain(EXTERNAL_CHECKS);
    let checks: Value = names.map(|name| (name.to_owned(), json!("healthy"))).collect::<Map<_, _>>().into();
    assert_eq!((status, body), (200, json!({ "status": "ready", "checks": checks })));
}

#[tokio::test]
async fn a_service_with_an_older_schema_is_not_ready() {
    let service = service().await;
    service.database().execute("update _sqlx_migrations set success = false").await;
    let body = eventually("the service is not ready", async || {
        let (status, body) = page(&service, "/readyz").await;
        (status == 503).then_some(body)
    })
    .await;
    assert_eq!((&body["status"], &body["checks"]["migrations"]), (&json!("not_ready"), &json!("unhealthy")));
    assert_eq!(page(&service, "/healthz").await.0, 200, "the process is alive nevertheless");
}

#[tokio::test]
async fn many_probes_cause_few_database_queries() {
    // Nothing else uses a connection of the pool during the probes, because each worker has completed its first run,
    // and its next run is minutes away.
    let service = builder().with_idle_workers().start().await;
    service.wait_for_first_work().await;
    let acquired = async || service.metric("db_connection_acquire_duration_seconds_count").await;
    let client = dev::http::client(WAIT_TIMEOUT).unwrap();
    let url = service.ops_url().join("/readyz").unwrap();
    let (before, began) = (acquired().await, Instant::now());
    for _ in 0..40 {
        let probes: Vec<_> = (0..50).map(|_| tokio::spawn(client.get(url.clone()).send())).collect();
        for probe in probes {
            assert_eq!(probe.await.unwrap().unwrap().status(), 200);
        }
    }
    // The readiness checks of the database read the latest result of the database monitor. The monitor has its own
    // connection, so the checks use no connection of the pool.
    let queries = acquired().await - before;
    assert!(queries <= 2, "{queries} queries for 2000 probes in {:?}", began.elapsed());
}

#[tokio::test]
async fn a_full_pool_does_not_fail_readiness() {
    let service = builder()
        .setting("DATABASE_STATEMENT_TIMEOUT_MS", "60000")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let acquired = [(); 4].map(|()| customer.lists().in_background());
    service.database().wait_for_blocked_statements(4).await;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    // Five seconds exceed the timeout of the checks and the time for which their results are cached.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        pace.tick().await;
        let (status, body) = page(&service, "/readyz").await;
        assert_eq!((status, &body["checks"]["database"]), (200, &json!("healthy")), "{body}");
    }
    held.release().await;
    for request in acquired {
        let _served = request.response().await.assert_status(200);
    }
}

#[tokio::test]
async fn an_invalid_filter_is_rejected_and_its_expiry_is_audited() {
    let service = service().await;
    let (status, body) =
        service.request_ops(Method::PUT, "/log-level", "{\"filter\":\"app=loud\"}").await.unwrap();
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/filter")), "{problem:#}");
    assert!(problem["errors"][0]["message"].as_str().is_some_and(|message| !message.is_empty()));

    let change = "{\"filter\":\"app=debug\",\"ttl_seconds\":1}";
    assert_eq!(service.request_ops(Method::PUT, "/log-level", change).await.unwrap().0, 200);
    service.wait_for_log("the change is logged", |line| line["message"] == "changed the log filter").await;
    for action in ["change", "restore"] {
        let event = format!("event_type = 'configuration' and action = '{action}'");
        eventually("the change is audited", async || {
            (service.audit_events(&event).await.len() == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_health_report_is_complete_and_has_no_secret() {
    let service = builder().setting("OPS_TOKEN", "a-token-of-operators").start().await;
    let (status, health) = page(&service, "/health").await;
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptime_seconds"].is_u64());
    for check in ["database", "migrations"].into_iter().chain(EXTERNAL_CHECKS) {
        let check = &health["checks"][check];
        assert_eq!(check["status"], "healthy", "{health:#}");
        assert!(check["latency_ms"].is_u64(), "{health:#}");
        assert!(check.get("message").is_some(), "{health:#}");
    }
    assert!(health["build"]["commit"].is_string() && health["build"]["rustc"].is_string());
    assert_eq!(health["pool"]["max"], 4);
    let workers = health["workers"].as_array().unwrap();
    assert!(workers.iter().any(|worker| worker["name"] == "audit_sealing"));
    assert!(!health.to_string().contains("a-token-of-operators"));
    assert!(!health.to_string().contains(service.database().service_url().password().unwrap()));
}

#[tokio::test]
async fn the_first_scrape_has_every_series_of_every_route() {
    let service = service().await;
    let metrics = service.metrics().await;
    for (method, path, operation) in openapi::operations() {
        let success =
            operation["responses"].as_object().unwrap().keys().find(|status| status.starts_with('2'));
        for status in [success.unwrap().as_str(), "500", "503", "504"] {
            let series =
                format!("http_requests_total{{method=\"{method}\",path=\"{path}\",status=\"{status}\"}} 0");
            assert!(metrics.contains(&series), "{series}");
        }
    }
    let expected = [
        "http_requests_in_flight 0",
        "authentication_failures_total{reason=\"bad_credentials\"} 0",
        "authorization_denials_total{reason=\"role\"} 0",
        "db_connection_acquire_timeouts_total 0",
        "db_connections_max 4",
        "audit_write_failures_total 0",
        "alerts_sent_total{outcome=\"sent\"} 0",
        "log_lines_dropped_total 0",
        "panics_total 0",
    ];
    let missing: Vec<_> =
        expected.iter().chain(&SERIES).filter(|series| !metrics.contains(&format!("{series}\n"))).collect();
    assert_eq!(missing, [&""; 0]);
    for family in
        ["worker_last_success_timestamp_seconds{", "build_info{", "process_cpu_seconds_total ", "tokio_"]
    {
        assert!(metrics.lines().any(|line| line.starts_with(family)), "{family}");
    }
}

#[tokio::test]
async fn a_request_is_counted_by_its_route_and_never_by_its_path() {
    let service = service().await;
    let anonymous = service.anonymous();
    let customer = service.customer().await;
    let id = customer.creates().await.assert_status(201).id().to_string();
    let _served = customer.get(format!("{PATH}/{id}")).await.assert_status(200);
    let _unknown = anonymous.get("/v1/somewhere/else").await.assert_status(404);
    let _brewed = anonymous.request(Method::from_bytes(b"BREW").unwrap(), "/coffee").await.assert_status(404);
    let metrics = service.metrics().await;
    for series in [
        &format!("http_requests_total{{method=\"GET\",path=\"{ROUTE}\",status=\"200\"}} 1"),
        "http_requests_total{method=\"GET\",path=\"unmatched\",status=\"404\"} 1",
        "http_requests_total{method=\"_OTHER\",path=\"unmatched\",status=\"404\"} 1",
        &format!("http_request_duration_seconds_count{{method=\"GET\",path=\"{ROUTE}\"}} 1"),
        &format!("http_request_duration_seconds_bucket{{method=\"GET\",path=\"{ROUTE}\",le=\"10\"}} 1"),
    ] {
        assert!(metrics.contains(series), "{series}\n{metrics}");
    }
    assert!(!metrics.contains(&id) && !metrics.contains("somewhere") && !metrics.contains("BREW"));
    assert!(!metrics.contains("/readyz"), "requests to the operations listener must not be counted");
}
