//! Telemetry: log lines, exported log records, the log level, metrics and traces, also during outages.
mod logs;
pub(crate) mod metrics;
mod records;
mod telemetry_outages;
pub(crate) mod traces;

use dev::harness::{PATH, Service, TABLE, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use crate::service;

#[tokio::test]
async fn every_log_line_is_an_object_with_its_origin() {
    let service = service().await;
    let customer = service.customer().await;
    let created = customer.creates().header("x-correlation-id", "a-change").await.assert_status(201);
    let access = service
        .wait_for_log("the request's line", |line| {
            line["correlation_id"] == "a-change" && line["target"] == "access"
        })
        .await;
    for (field, value) in [
        ("level", json!("INFO")),
        ("method", json!("POST")),
        ("route", json!(PATH)),
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
        .wait_for_log("the change's audit line", |line| {
            line["target"] == "audit" && line["correlation_id"] == "a-change"
        })
        .await;
    let event = match &audited["audit_log"] {
        Value::String(text) => serde_json::from_str(text).unwrap(),
        event => event.clone(),
    };
    assert_eq!((&event["resource"], &event["action"]), (&json!(TABLE), &json!("create")));
    assert_eq!(event["metadata"]["record_ids"], json!([created.id()]));

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

async fn log_level(service: &Service) -> Value {
    let (status, body) = service.ops("/log-level").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn a_changed_log_level_expires() {
    let service = service().await;
    let before = log_level(&service).await;
    assert_eq!(
        before,
        json!({ "filter": before["default"], "default": before["default"], "expires_at": null })
    );

    let change = json!({ "filter": "app=debug", "ttl_seconds": 4 }).to_string();
    let (status, body) = service.request_ops(Method::PUT, "/log-level", &change).await.unwrap();
    let changed: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &changed["filter"]), (200, &json!("app=debug")));
    assert!(changed["expires_at"].is_string());
    assert_eq!(log_level(&service).await, changed);

    eventually("the filter expires", async || (log_level(&service).await == before).then_some(())).await;
    let (status, body) =
        service.request_ops(Method::PUT, "/log-level", "{\"filter\":\"a=b=c\"}").await.unwrap();
    assert_eq!(status, 422, "{body}");
}

#[tokio::test]
async fn rejected_log_level_changes_are_audited_and_counted() {
    let service = service().await;
    let url = service.ops_url().join("/log-level").unwrap();
    let client = reqwest::Client::new();
    let rejected = async |count: usize| {
        for _ in 0..count {
            let request =
                client.put(url.clone()).header("host", "evil.example").json(&json!({ "filter": "off" }));
            assert_eq!(request.send().await.unwrap().status(), 403);
        }
    };
    rejected(1).await;
    let rejections = "event_type = 'authorization' and resource = 'log_level' and result = 'denied'";
    let event =
        eventually("the event is recorded", async || service.audit_events(rejections).await.pop()).await;
    assert_eq!(event["action"], "change");
    assert_eq!(event["metadata"]["reason"], "foreign_host");
    assert_eq!(event["ip_address"], "127.0.0.1");

    rejected(129).await;
    service.terminate().await;
    let written = service.audit_events(rejections).await.len();
    let counted = service.audit_events("action = 'refuse' and resource = 'requests'").await;
    let more: u64 = counted.iter().map(|event| event["metadata"]["count"].as_u64().unwrap()).sum();
    // At most a hundred rejected requests from one IP address per minute are recorded as separate events. If a new
    // minute begins during the requests, more than a hundred separate events are recorded.
    assert!((100..130).contains(&written), "{written}");
    assert_eq!(u64::try_from(written).unwrap() + more, 130);
}

#[tokio::test]
async fn a_change_of_the_log_level_is_audited() {
    let service = service().await;
    let change = json!({ "filter": "app=debug", "ttl_seconds": 60 }).to_string();
    let (status, body) = service.request_ops(Method::PUT, "/log-level", &change).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let event = eventually("the event is recorded", async || {
        service.audit_events("event_type = 'configuration'").await.into_iter().next()
    })
    .await;
    assert!(event.to_string().contains("app=debug"), "{event:#}");
}

#[tokio::test]
async fn a_log_level_that_cannot_be_audited_is_rejected() {
    let service = service().await;
    let before = log_level(&service).await;
    // PostgreSQL stores no NUL, so the event of this change could never be recorded.
    let change = json!({ "filter": "off,a\0b=info" }).to_string();
    let (status, body) = service.request_ops(Method::PUT, "/log-level", &change).await.unwrap();
    assert_eq!(status, 422, "{body}");
    assert_eq!(log_level(&service).await, before);
}
