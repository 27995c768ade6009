//! A gateway outage raises an alert, and its end resolves the alert.
use dev::{
    example::gateway::Faults,
    harness::{eventually, within},
    traffic::{self, Traffic},
};

use crate::{
    builder,
    stack::{
        alerting::inbox,
        tools::{RULE_TIMEOUT, Server, file_with, tool},
    },
};

/// Returns the name and the text of a rule file. Each minute of a window, and of a `for` of two or three minutes,
/// becomes a second, so that the alert fires soon. The threshold of `PaymentFailureRatioHigh` is 0.25 instead of 0.05.
/// A window of seconds has few attempts, so one or two failures on a busy machine already exceed a ratio of 0.05.
fn with_seconds_for_minutes(file: &str) -> (String, String) {
    let rules = file_with(
        &format!("prometheus/rules/{file}"),
        &[("m]", "s]"), ("for: 3m", "for: 3s"), ("for: 2m", "for: 2s"), ("> 0.05", "> 0.25")],
    );
    (file.to_owned(), rules)
}

#[tokio::test]
async fn a_gateway_outage_pages_and_resolves() {
    let (Some(prometheus), Some(alertmanager)) = (tool("prometheus"), tool("alertmanager")) else { return };
    let inbox = inbox().await;
    let alertmanager = Server::alertmanager(&alertmanager, &inbox.address().to_string()).await;
    // The gateway timeout is long, because a call may take seconds on a busy machine, and a slow call is no outage.
    let service = builder()
        .setting("ALERT_WEBHOOK_URL", &format!("http://{}/service", inbox.address()))
        .setting("ALERTMANAGER_URL", alertmanager.url.as_str())
        .setting("RUNBOOKS_URL", "http://localhost:8025/runbooks/")
        .setting("GATEWAY_TIMEOUT_MS", "20000")
        .setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "10")
        .setting("REQUEST_TIMEOUT_MS", "30000")
        .start()
        .await;
    let rules = vec![
        with_seconds_for_minutes("payments.yml"),
        ("monitoring.yml".to_owned(), file_with("prometheus/rules/monitoring.yml", &[])),
    ];
    let _prometheus = Server::prometheus(&prometheus, &service, alertmanager.url.authority(), rules).await;
    let _traffic = Traffic::start(traffic::Settings {
        rate_per_second: 40.0,
        ..traffic::Settings::new(service.api_url().clone())
    })
    .unwrap();
    within(RULE_TIMEOUT, "the heartbeat arrives", async || inbox.heartbeat_at()).await;
    let arrived = |status: &str| {
        let alerts = inbox.alerts();
        alerts.into_iter().find(|alert| alert.name == "PaymentFailureRatioHigh" && alert.status == status)
    };
    within(RULE_TIMEOUT, "customers pay", async || {
        (service.gateway().ledger().charges.len() > 20).then_some(())
    })
    .await;
    assert_eq!(arrived("firing"), None, "the alert fires before the outage");

    service.gateway().faults().set(Faults { error_rate: 1.0, error_status: 503, ..Faults::default() });
    let page = within(RULE_TIMEOUT, "the page arrives", async || arrived("firing")).await;
    assert_eq!((page.source.as_str(), page.severity.as_str()), ("alertmanager", "critical"));
    assert_eq!(page.runbook_url.as_deref(), Some("http://localhost:8025/runbooks/PaymentFailureRatioHigh"));
    let webhook = eventually("the service reports that its breaker opened", async || {
        inbox.alerts().into_iter().find(|alert| alert.source == "service" && alert.name.contains("opened"))
    })
    .await;

    assert_eq!(webhook.runbook_url.as_deref(), Some("http://localhost:8025/runbooks/CircuitBreakerOpen"));
    // The page, PaymentFailureRatioHigh, is the cause of the incident `payments`. The service's own alert is a symptom
    // of the same incident and job, so Alertmanager suppresses it.
    let own = eventually("the page suppresses the alert of the service", async || {
        let alerts = alertmanager.query("api/v2/alerts", &[("filter", "raised_by=service")]).await;
        let alert = alerts.as_array()?.iter().find(|alert| alert["labels"]["severity"] == "warning")?.clone();
        (alert["status"]["state"] == "suppressed").then_some(alert)
    })
    .await;
    assert_eq!(own["labels"]["alertname"], "CircuitBreakerOpen");
    assert_eq!(own["annotations"]["runbook_url"], "http://localhost:8025/runbooks/CircuitBreakerOpen");

    service.gateway().faults().clear();
    within(RULE_TIMEOUT, "the page is resolved", async || arrived("resolved")).await;
}
