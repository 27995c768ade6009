//! Starting, watching, configuring and stopping the service.
use std::path::Path;

use dev::{
    gateway::Faults,
    harness::{Database, Finished, MUG, Service, Signal, eventually, run},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{EXECUTABLE, builder, openapi, service};

async fn page(service: &Service, path: &str) -> (u16, Value) {
    let (status, body) = service.ops(path).await;
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
}

#[tokio::test]
async fn a_live_process_says_that_it_is() {
    let service = service().await;
    let (status, body) = page(&service, "/healthz").await;
    assert_eq!((status, &body["status"]), (200, &json!("ok")));
    assert!(chrono::DateTime::parse_from_rfc3339(body["timestamp"].as_str().unwrap()).is_ok());
}

#[tokio::test]
async fn a_ready_service_says_what_it_has_checked() {
    let service = service().await;
    let (status, body) = page(&service, "/readyz").await;
    let checks = json!({
        "database": "healthy", "migrations": "healthy", "draining": "healthy", "external_api": "healthy"
    });
    assert_eq!((status, body), (200, json!({ "status": "ready", "checks": checks })));
}

#[tokio::test]
async fn a_gateway_that_is_away_degrades_the_service_and_does_not_end_it() {
    let service = service().await;
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the gateway is seen to be away", async || {
        let (status, body) = page(&service, "/readyz").await;
        (status == 200 && body["checks"]["external_api"] == "degraded").then_some(())
    })
    .await;
    assert_eq!(page(&service, "/health").await.1["status"], "degraded");
    service.gateway().faults().clear();
    eventually("the gateway is seen to be back", async || {
        (page(&service, "/readyz").await.1["checks"]["external_api"] == "healthy").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_service_whose_schema_is_behind_is_not_ready() {
    let service = service().await;
    service.database().execute("update _sqlx_migrations set success = false").await;
    let body = eventually("it is not ready", async || {
        let (status, body) = page(&service, "/readyz").await;
        (status == 503).then_some(body)
    })
    .await;
    assert_eq!((&body["status"], &body["checks"]["migrations"]), (&json!("not_ready"), &json!("unhealthy")));
    assert_eq!(page(&service, "/healthz").await.0, 200, "it is alive all the same");
}

#[tokio::test]
async fn the_health_report_tells_everything_and_no_secret() {
    let service = service().await;
    let (status, health) = page(&service, "/health").await;
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptime_seconds"].is_u64());
    for check in ["database", "migrations", "external_api"] {
        let check = &health["checks"][check];
        assert_eq!(check["status"], "healthy", "{health:#}");
        assert!(check["latency_ms"].is_u64(), "{health:#}");
        assert!(check.get("message").is_some(), "{health:#}");
    }
    assert!(health["build"]["commit"].is_string() && health["build"]["rustc"].is_string());
    assert_eq!(health["pool"]["max"], 4);
    assert_eq!(health["breakers"]["payment_gateway"], "closed");
    let workers = health["workers"].as_array().unwrap();
    assert!(workers.iter().any(|worker| worker["name"] == "payment_recovery"));
    assert!(!health.to_string().contains(dev::harness::GATEWAY_API_KEY));
    assert!(!health.to_string().contains(service.database().service_url().password().unwrap()));
}

#[tokio::test]
async fn every_series_of_every_route_is_there_from_the_first_scrape() {
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
    for series in [
        "http_requests_in_flight 0",
        "orders_created_total 0",
        "payments_total{outcome=\"succeeded\"} 0",
        "payments_total{outcome=\"declined\"} 0",
        "payments_total{outcome=\"failed\"} 0",
        "payment_failures_total{reason=\"gateway_timeout\"} 0",
        "payments_parked 0",
        "payments_processing 0",
        "payment_oldest_processing_seconds 0",
        "circuit_breaker_state{service=\"payment_gateway\"} 0",
        "authentication_failures_total{reason=\"bad_credentials\"} 0",
        "authorization_denials_total{reason=\"role\"} 0",
        "db_connection_acquire_timeouts_total 0",
        "db_connections_max 4",
        "audit_write_failures_total 0",
        "alerts_sent_total{outcome=\"sent\"} 0",
        "log_lines_dropped_total 0",
        "panics_total 0",
    ] {
        assert!(metrics.contains(&format!("{series}\n")), "{series}");
    }
    for family in
        ["worker_last_success_timestamp_seconds{", "build_info{", "process_cpu_seconds_total ", "tokio_"]
    {
        assert!(metrics.lines().any(|line| line.starts_with(family)), "{family}");
    }
}

#[tokio::test]
async fn a_request_is_counted_by_its_route_and_never_by_its_path() {
    let service = service().await;
    let nobody = service.nobody();
    let _served = nobody.get(format!("/v1/products/{MUG}")).await.is(200);
    let _unknown = nobody.get("/v1/somewhere/else").await.is(404);
    let _brewed = nobody.request(Method::from_bytes(b"BREW").unwrap(), "/coffee").await.is(404);
    let metrics = service.metrics().await;
    for series in [
        "http_requests_total{method=\"GET\",path=\"/v1/products/{id}\",status=\"200\"} 1",
        "http_requests_total{method=\"GET\",path=\"unmatched\",status=\"404\"} 1",
        "http_requests_total{method=\"_OTHER\",path=\"unmatched\",status=\"404\"} 1",
        "http_request_duration_seconds_count{method=\"GET\",path=\"/v1/products/{id}\"} 1",
        "http_request_duration_seconds_bucket{method=\"GET\",path=\"/v1/products/{id}\",le=\"10\"} 1",
    ] {
        assert!(metrics.contains(series), "{series}\n{metrics}");
    }
    assert!(!metrics.contains(MUG) && !metrics.contains("somewhere") && !metrics.contains("BREW"));
    assert!(!metrics.contains("/readyz"), "only the API is counted");
}

#[tokio::test]
async fn every_log_line_is_an_object_that_says_where_it_comes_from() {
    let service = service().await;
    let customer = service.customer().await;
    let order = customer.orders(&[(MUG, 1)]).header("x-correlation-id", "a-purchase").await.is(201);
    let access = service
        .logs_that("the request's line", |line| {
            line["correlation_id"] == "a-purchase" && line["target"] == "access"
        })
        .await;
    for (field, value) in [
        ("level", json!("INFO")),
        ("method", json!("POST")),
        ("route", json!("/v1/orders")),
        ("status", json!(201)),
        ("user_id", json!(customer.id)),
    ] {
        assert_eq!(access[field], value, "{field} in {access:#}");
    }
    for id in ["trace_id", "span_id"] {
        let id = access[id].as_str().unwrap();
        assert!(id.chars().all(|digit| digit.is_ascii_hexdigit()) && id.len() >= 16, "{access:#}");
    }
    let audited = service
        .logs_that("the change's audit line", |line| {
            line["target"] == "audit" && line["correlation_id"] == "a-purchase"
        })
        .await;
    let event = match &audited["audit_log"] {
        Value::String(text) => serde_json::from_str(text).unwrap(),
        event => event.clone(),
    };
    assert_eq!((&event["resource"], &event["action"]), (&json!("orders"), &json!("create")));
    assert_eq!(event["metadata"]["record_ids"], json!([order.id()]));

    for line in service.logs() {
        for field in ["timestamp", "level", "target", "message", "service", "version"] {
            assert!(line[field].is_string(), "{field} in {line:#}");
        }
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(
            timestamp.ends_with('Z') && timestamp.len() == "2026-01-01T00:00:00.000000Z".len(),
            "{timestamp}"
        );
        assert_eq!(line["service"], env!("CARGO_PKG_NAME"));
    }
}

#[tokio::test]
async fn a_payment_is_followed_to_the_gateway_by_one_trace_and_one_correlation_id() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let paying = order
        .pay("pm_card_ok")
        .header("x-correlation-id", "a-checkout")
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("baggage", "secret=of-the-caller");
    let payment = paying.await.is(201).id().to_string();

    let requests = service.gateway().requests();
    let charge = requests.iter().find(|request| request.idempotency_key.as_ref() == Some(&payment)).unwrap();
    assert_eq!(charge.correlation_id.as_deref(), Some("a-checkout"));
    assert_eq!(charge.traceparent.as_ref().unwrap().split('-').nth(1), Some(trace));
    let settled = service.audit_events("resource = 'payments' and action = 'settle'").await;
    assert_eq!(settled[0]["trace_id"], trace);
    let line = |line: &Value| line["target"] == "access" && line["correlation_id"] == "a-checkout";
    assert_eq!(service.logs_that("the request's line", line).await["trace_id"], trace);
}

#[tokio::test]
async fn the_log_level_is_changed_for_a_while_and_falls_back() {
    let service = service().await;
    let (status, before) = page(&service, "/log-level").await;
    assert_eq!(status, 200);
    assert_eq!(
        before,
        json!({ "filter": before["default"], "default": before["default"], "expires_at": null })
    );

    let change = json!({ "filter": "app=debug", "ttl_seconds": 2 }).to_string();
    let (status, body) = service.operate(Method::PUT, "/log-level", &change).await.unwrap();
    let changed: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &changed["filter"]), (200, &json!("app=debug")));
    assert!(changed["expires_at"].is_string());
    assert_eq!(page(&service, "/log-level").await.1, changed);

    eventually("the default returns", async || {
        (page(&service, "/log-level").await.1 == before).then_some(())
    })
    .await;
    let (status, body) = service.operate(Method::PUT, "/log-level", "{\"filter\":\"a=b=c\"}").await.unwrap();
    assert_eq!(status, 422, "{body}");
}

#[tokio::test]
async fn a_change_of_the_log_level_is_audited() {
    let service = service().await;
    let change = json!({ "filter": "app=debug", "ttl_seconds": 60 }).to_string();
    let (status, body) = service.operate(Method::PUT, "/log-level", &change).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let told = eventually("it is in the trail", async || {
        service.audit_events("event_type = 'configuration'").await.into_iter().next()
    })
    .await;
    assert!(told.to_string().contains("app=debug"), "{told:#}");
}

#[tokio::test]
async fn a_signal_ends_the_service_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let service = service().await;
        service.signal(signal);
        assert_eq!(service.ends().await.code(), Some(0));
        let last = service.logs().pop().unwrap();
        assert_eq!(last["message"], "the service has ended");
    }
}

#[tokio::test]
async fn a_request_in_flight_is_finished_before_the_service_ends() {
    let service = service().await;
    service.gateway_sends_no_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    order.has_a_payment().await;
    service.signal(Signal::SIGTERM);
    service.logs_that("it has begun to end", |line| line["message"] == "the service is shutting down").await;
    service.gateway().release();

    assert_eq!(attempt.answer().await.is(201).text("status"), "succeeded");
    assert_eq!(service.ends().await.code(), Some(0));
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_service_that_is_to_end_is_not_ready_before_it_stops_listening() {
    let service = builder().setting("SHUTDOWN_GRACE_SECONDS", "2").start().await;
    service.signal(Signal::SIGTERM);
    let body = eventually("it is not ready", async || {
        let (status, body) = page(&service, "/readyz").await;
        (status == 503).then_some(body)
    })
    .await;
    assert_eq!((&body["status"], &body["checks"]["draining"]), (&json!("not_ready"), &json!("unhealthy")));
    let _still_served = service.nobody().get("/v1/products").await.is(200);
    assert_eq!(service.ends().await.code(), Some(0));
}

#[tokio::test]
async fn what_cannot_end_in_time_is_cut_and_named() {
    let service = builder()
        .setting("SHUTDOWN_DEADLINE_SECONDS", "3")
        .setting("GATEWAY_TIMEOUT_MS", "9000")
        .setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600")
        .start()
        .await;
    service.gateway_sends_no_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    order.has_a_payment().await;
    assert_eq!(service.terminate().await.code(), Some(1));
    assert!(service.logs().iter().any(|line| line.to_string().contains("cut short")));
    let _cut = attempt.give_up().await;
}

#[tokio::test]
async fn a_second_signal_ends_the_service_at_once() {
    let service = builder().setting("SHUTDOWN_GRACE_SECONDS", "20").start().await;
    service.signal(Signal::SIGTERM);
    service.logs_that("it has begun to end", |line| line["message"] == "the service is shutting down").await;
    service.signal(Signal::SIGTERM);
    let started = std::time::Instant::now();
    assert_eq!(service.ends().await.code(), Some(1));
    assert!(started.elapsed().as_secs() < 15);
}

/// A command of the executable with these settings and nothing else.
async fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
    run(Path::new(EXECUTABLE), arguments, settings).await
}

/// What `serve` needs at least; nothing of it is reached.
const SUFFICIENT: [(&str, &str); 5] = [
    ("APP_ENV", "test"),
    ("DATABASE_URL", "postgres://somebody:a-password@127.0.0.1:1/orders"),
    ("GATEWAY_URL", "http://127.0.0.1:1"),
    ("GATEWAY_API_KEY", "an-api-key"),
    ("GATEWAY_WEBHOOK_SECRET", "whsec_YSB3ZWJob29rIHNlY3JldA=="),
];

#[tokio::test]
async fn a_service_without_a_database_says_what_to_set_and_what_does_it_for_you() {
    let stopped = command(&["serve"], &[]).await;
    assert_eq!(stopped.code(), Some(1));
    assert!(stopped.stderr.contains("DATABASE_URL is not set"), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("cargo dev"), "{}", stopped.stderr);
}

#[tokio::test]
async fn every_mistake_in_the_settings_is_reported_at_once_and_no_value() {
    let mistakes = [
        ("API_ADDRESS", "8080"),
        ("MIGRATE_ON_START", "perhaps"),
        ("SESSION_TTL_SECONDS", "-1"),
        ("TRUSTED_PROXIES", "everybody"),
        ("GATEWAY_WEBHOOK_SECRET", "not-a-webhook-secret"),
        ("CORS_ALLOWED_ORIGINS", "https://shop.example/"),
        ("LOG_FORMAT", "xml"),
        ("OPS_TOKEN", "too-short"),
        ("GATEWAY_TIMEOUT_MS", "99999"),
        ("ARGON2_MEMORY_KIB", "0"),
    ];
    let stopped = command(&["serve"], &mistakes).await;
    assert_eq!(stopped.code(), Some(1));
    let missing = ["DATABASE_URL", "GATEWAY_URL", "GATEWAY_API_KEY"];
    // What is only wrong together with others is seen once each is right by itself.
    let alone = mistakes
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"].contains(name));
    for name in alone.chain(missing) {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
    assert!(!stopped.stderr.contains("not-a-webhook-secret"), "{}", stopped.stderr);

    let together = [&SUFFICIENT[..], &[("OPS_TOKEN", "too-short"), ("GATEWAY_TIMEOUT_MS", "99999")]].concat();
    let stopped = command(&["serve"], &together).await;
    assert_eq!(stopped.code(), Some(1));
    for name in ["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"] {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_waited_for_and_then_named_without_its_password() {
    let settings = [&SUFFICIENT[..], &[("DATABASE_STARTUP_WAIT_SECONDS", "1")]].concat();
    for arguments in [["serve"], ["migrate"]] {
        let stopped = command(&arguments, &settings).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains("127.0.0.1:1 could not be reached"), "{}", stopped.stderr);
        assert!(!stopped.stderr.contains("a-password") && !stopped.stdout.contains("a-password"));
    }
}

#[tokio::test]
async fn a_service_does_not_start_on_a_database_without_its_schema() {
    let database = Database::create_empty().await;
    let urls = database.settings();
    let mut settings = SUFFICIENT.to_vec();
    settings.extend(urls.iter().map(|(name, value)| (*name, value.as_str())));
    let stopped = command(&["serve"], &settings).await;
    assert_eq!(stopped.code(), Some(1));
    assert!(
        stopped.stderr.contains("migrate") && stopped.stderr.contains("MIGRATE_ON_START"),
        "{}",
        stopped.stderr
    );
}

#[tokio::test]
async fn a_service_that_is_told_so_makes_its_schema_itself() {
    let service = builder().without_schema().setting("MIGRATE_ON_START", "true").start().await;
    let customer = service.customer().await;
    assert_eq!(customer.get("/v1/orders").await.is(200).json()["data"], json!([]));
}

#[tokio::test]
async fn in_production_the_service_refuses_to_run_as_somebody_who_could_rewrite_the_trail() {
    let service = service().await;
    let owner = service.database().owner_url().to_string();
    for environment in ["staging", "production"] {
        let as_owner = [("APP_ENV", environment), ("DATABASE_URL", owner.as_str())];
        let stopped = service.command(&["serve"], &as_owner).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains("audit trail"), "{}", stopped.stderr);
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_setting() {
    let service = service().await;
    for setting in ["API_ADDRESS", "OPS_ADDRESS"] {
        let taken = service.ops_url().socket_addrs(|| None).unwrap()[0].to_string();
        let stopped = service.command(&["serve"], &[(setting, taken.as_str())]).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains(setting) && stopped.stderr.contains(&taken), "{}", stopped.stderr);
    }
}

#[tokio::test]
async fn the_settings_are_shown_without_secrets() {
    let told = command(&["config"], &SUFFICIENT).await.succeeded();
    for line in ["DATABASE_URL=<redacted>", "GATEWAY_API_KEY=<redacted>", "GATEWAY_WEBHOOK_SECRET=<redacted>"]
    {
        assert!(told.lines().any(|known| known == line), "{line} in {told}");
    }
    for line in [
        "GATEWAY_URL=http://127.0.0.1:1",
        "API_ADDRESS=127.0.0.1:8080",
        "APP_ENV=test",
        "# OPS_TOKEN is not set",
    ] {
        assert!(told.lines().any(|known| known == line), "{line} in {told}");
    }
    for secret in ["a-password", "an-api-key", "YSB3ZWJob29rIHNlY3JldA"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn a_flag_goes_before_the_environment() {
    let settings = [&SUFFICIENT[..], &[("REQUEST_TIMEOUT_MS", "7000")]].concat();
    let told = command(&["config", "--request-timeout-ms", "8000"], &settings).await.succeeded();
    assert!(told.contains("\nREQUEST_TIMEOUT_MS=8000\n"), "{told}");
}

#[tokio::test]
async fn wrong_usage_is_told_from_failure_by_its_exit_code() {
    for arguments in
        [&[][..], &["fly"], &["serve", "--no-such-flag"], &["user"], &["serve", "--database-url", "x"]]
    {
        assert_eq!(command(arguments, &[]).await.code(), Some(2), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"], &["openapi"]] {
        assert_eq!(command(arguments, &[]).await.code(), Some(0), "{arguments:?}");
    }
}
