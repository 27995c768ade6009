//! From a fault to the person who hears of it, and back: a real Prometheus, a real Alertmanager, an inbox.
use std::net::{Ipv4Addr, SocketAddr};

use dev::{
    gateway::Faults,
    harness::{eventually, within},
    inbox::{self, Inbox},
    traffic::{self, Traffic},
};
use serde_json::json;

use super::tools::{PATIENCE, Server, file_with, tool};
use crate::builder;

async fn inbox() -> Inbox {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Inbox::start(inbox::Settings {
        address,
        runbooks: Some(super::files::repository().join("docs/runbooks")),
    })
    .await
    .unwrap()
}

/// The rules, with seconds for minutes: five minutes of them pass in five seconds. So few attempts fall into that time
/// that two that failed on a busy machine would be one in twenty.
fn hurried(file: &str) -> (String, String) {
    let rules = file_with(
        &format!("prometheus/rules/{file}"),
        &[("m]", "s]"), ("for: 3m", "for: 3s"), ("for: 2m", "for: 2s"), ("> 0.05", "> 0.25")],
    );
    (file.to_owned(), rules)
}

#[tokio::test]
async fn an_outage_of_the_gateway_pages_someone_and_is_resolved_when_it_is_over() {
    let (Some(prometheus), Some(alertmanager)) = (tool("prometheus"), tool("alertmanager")) else { return };
    let inbox = inbox().await;
    let alertmanager = Server::alertmanager(&alertmanager, &inbox.address().to_string()).await;
    // With time for the gateway: on a busy machine a call may take seconds, and that is not the outage.
    let service = builder()
        .setting("ALERT_WEBHOOK_URL", &format!("http://{}/service", inbox.address()))
        .setting("GATEWAY_TIMEOUT_MS", "20000")
        .setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "10")
        .setting("REQUEST_TIMEOUT_MS", "30000")
        .start()
        .await;
    let rules = vec![
        hurried("payments.yml"),
        ("telemetry.yml".to_owned(), file_with("prometheus/rules/telemetry.yml", &[])),
    ];
    let _prometheus = Server::prometheus(&prometheus, &service, alertmanager.address(), rules).await;
    let _traffic = Traffic::start(traffic::Settings {
        rate_per_second: 40.0,
        ..traffic::Settings::new(service.api_url().clone())
    })
    .unwrap();
    within(PATIENCE, "the heartbeat arrives", async || inbox.heartbeat_at()).await;
    let arrived = |status: &str| {
        let alerts = inbox.alerts();
        alerts.into_iter().find(|alert| alert.name == "PaymentFailureRatioHigh" && alert.status == status)
    };
    within(PATIENCE, "customers pay", async || (service.gateway().ledger().charges.len() > 20).then_some(()))
        .await;
    assert_eq!(arrived("firing"), None, "nothing is wrong yet");

    service.gateway().faults().set(Faults { error_rate: 1.0, error_status: 503, ..Faults::default() });
    let page = within(PATIENCE, "the page arrives", async || arrived("firing")).await;
    assert_eq!((page.source.as_str(), page.severity.as_str()), ("alertmanager", "critical"));
    assert_eq!(page.runbook_url.as_deref(), Some("http://localhost:8025/runbooks/PaymentFailureRatioHigh"));
    eventually("the service says by itself that its breaker opened", async || {
        inbox.alerts().into_iter().find(|alert| alert.source == "service" && alert.name.contains("opened"))
    })
    .await;

    service.gateway().faults().clear();
    within(PATIENCE, "the page is resolved", async || arrived("resolved")).await;
}

#[tokio::test]
async fn a_service_that_is_down_silences_what_follows_from_it() {
    let Some(program) = tool("alertmanager") else { return };
    let inbox = inbox().await;
    let alertmanager = Server::alertmanager(&program, &inbox.address().to_string()).await;
    let alert = |name: &str, severity: &str, job: &str| json!({ "labels": { "alertname": name, "severity": severity, "job": job }, "annotations": {} });
    let alerts = json!([
        alert("ServiceDown", "critical", "service"),
        alert("HighErrorRate", "critical", "service"),
        alert("DatabasePoolExhausted", "warning", "service"),
        alert("TargetDown", "warning", "loki"),
    ]);
    alertmanager.tell("api/v2/alerts", &alerts).await;
    eventually("the alerts of two jobs arrive", async || (inbox.alerts().len() >= 2).then_some(())).await;
    let alerts = alertmanager.ask("api/v2/alerts", &[("silenced", "false")]).await;
    let mut states: Vec<_> = alerts
        .as_array()
        .unwrap()
        .iter()
        .map(|alert| {
            (alert["labels"]["alertname"].as_str().unwrap(), alert["status"]["state"].as_str().unwrap())
        })
        .collect();
    states.sort_unstable();
    assert_eq!(
        states,
        [
            ("DatabasePoolExhausted", "suppressed"),
            ("HighErrorRate", "suppressed"),
            ("ServiceDown", "active"),
            ("TargetDown", "active"),
        ]
    );
    let mut arrived: Vec<_> = inbox.alerts().into_iter().map(|alert| alert.name).collect();
    arrived.sort_unstable();
    assert_eq!(arrived, ["ServiceDown", "TargetDown"]);
}

#[tokio::test]
async fn an_alert_leads_to_its_runbook() {
    let inbox = inbox().await;
    let client = dev::http::client(dev::harness::SOON).unwrap();
    let get = async |path: &str| {
        let answer = client.get(format!("http://{}{path}", inbox.address())).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, text) = get("/runbooks/HighErrorRate").await;
    assert_eq!((status, text.lines().next()), (200, Some("# HighErrorRate")));
    assert_eq!(get("/runbooks/..%2F..%2FCargo").await.0, 404);
    assert_eq!(get("/runbooks/Unknown").await.0, 404);
}
