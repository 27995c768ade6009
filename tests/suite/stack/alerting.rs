//! Delivery of alerts by a real Alertmanager with the repository's configuration: an incident sends one notification.
//! Also the runbooks, which the alert inbox serves at the addresses to which alerts link.
use std::net::{Ipv4Addr, SocketAddr};

use dev::{
    alert_inbox::{self, Inbox},
    harness::eventually,
};
use serde_json::{Value, json};

use super::{
    files::{Rule, alerts, service_alert_conditions},
    tools::{Server, tool},
};

pub(crate) async fn inbox() -> Inbox {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Inbox::start(alert_inbox::Settings {
        address,
        runbooks: Some(super::files::repository().join("docs/runbooks")),
    })
    .await
    .unwrap()
}

/// Returns the sorted names of the alerts that a real Alertmanager sends while the alerts `firing` fire, or `None` if
/// Alertmanager is not installed. Each entry of `firing` has the name of an alert, and additional labels. One alert
/// fires for each rule of this name, with the labels of the rule and the additional labels. A name without a rule must
/// be an alert that the service itself sends.
pub(crate) async fn sent_while_firing(firing: &[(&str, &[(&str, &str)])]) -> Option<Vec<String>> {
    let program = tool("alertmanager")?;
    let inbox = inbox().await;
    let alertmanager = Server::alertmanager(&program, &inbox.address().to_string()).await;
    let mut posted = Vec::new();
    for (name, added) in firing {
        let mut rules: Vec<_> = alerts().into_iter().filter(|(rule, _)| rule == name).collect();
        if rules.is_empty() {
            assert!(service_alert_conditions().contains_key(*name), "there is no alert {name}");
            rules.push(((*name).to_owned(), Rule::default()));
        }
        for (_, rule) in rules {
            let mut labels = rule.labels;
            labels.insert("alertname".to_owned(), (*name).to_owned());
            labels.extend(added.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())));
            posted.push(json!({ "labels": labels, "annotations": {} }));
        }
    }
    alertmanager.post("api/v2/alerts", &json!(posted)).await;
    let sent = || inbox.alerts().into_iter().map(|alert| alert.name).collect::<Vec<_>>();
    // Alertmanager marks each alert as active or suppressed. A symptom may be active until Alertmanager has processed
    // its cause, so the states are polled.
    eventually("every alert is processed, and the active ones arrive", async || {
        let alerts = alertmanager.query("api/v2/alerts", &[]).await;
        let alerts = alerts.as_array().unwrap();
        let state = |alert: &Value| alert["status"]["state"].as_str().unwrap().to_owned();
        let processed =
            alerts.len() == posted.len() && alerts.iter().all(|alert| state(alert) != "unprocessed");
        let sent = sent();
        let arrived = |alert: &Value| sent.iter().any(|name| alert["labels"]["alertname"] == **name);
        let active = alerts.iter().filter(|alert| state(alert) == "active");
        (processed && active.into_iter().all(arrived)).then_some(())
    })
    .await;
    let mut sent = sent();
    sent.sort_unstable();
    Some(sent)
}

/// The labels of the alerts that the service itself sends.
pub(crate) const SERVICE_LABELS: &[(&str, &str)] =
    &[("job", "service"), ("raised_by", "service"), ("title", "t")];

/// The tests whose names end with `sends_one_alert` check the table of incidents in docs/runbooks/README.md, one test
/// for each row.
#[tokio::test]
async fn a_database_outage_sends_one_alert() {
    let job = &[("job", "service")][..];
    let sent = sent_while_firing(&[
        ("DatabaseDown", job),
        ("DatabasePoolExhausted", &[("job", "service"), ("instance", "a")]),
        ("DatabaseConnectionTimeouts", job),
        ("AuditWriteFailures", job),
        ("AuditSealingBehind", job),
        ("WorkerStalled", &[("job", "service"), ("instance", "a"), ("worker", "seal")]),
        ("HighErrorRate", job),
        ("SlowResponses", job),
        ("ServiceAvailabilityBudgetBurn", job),
        ("ServiceLatencyBudgetBurn", job),
        ("TargetDown", &[("job", "postgres"), ("instance", "postgres-exporter:9187")]),
        ("AuditWriteFailures", SERVICE_LABELS),
        ("AuditSealingBehind", SERVICE_LABELS),
    ])
    .await;
    let Some(sent) = sent else { return };
    assert_eq!(sent, ["DatabaseDown"]);
}

#[tokio::test]
async fn a_restored_database_sends_one_alert() {
    let tampered = [SERVICE_LABELS[0], SERVICE_LABELS[1], SERVICE_LABELS[2], ("severity", "critical")];
    let restored = [("DatabaseRestored", &[("job", "service")][..]), ("AuditLogTampered", &tampered)];
    let Some(sent) = sent_while_firing(&restored).await else { return };
    assert_eq!(sent, ["DatabaseRestored"]);

    // Without `DatabaseRestored`, Alertmanager sends the service's own alert, `AuditLogTampered`.
    assert_eq!(sent_while_firing(&restored[1..]).await.unwrap(), ["AuditLogTampered"]);
}

#[tokio::test]
async fn a_rule_suppresses_the_services_own_alert() {
    let failures =
        [("AuditWriteFailures", &[("job", "service")][..]), ("AuditWriteFailures", SERVICE_LABELS)];
    let Some(sent) = sent_while_firing(&failures).await else { return };
    assert_eq!(sent, ["AuditWriteFailures"]);
}

#[tokio::test]
async fn a_lost_replica_sends_one_alert() {
    let lost = &[("job", "service"), ("instance", "a")][..];
    let Some(sent) = sent_while_firing(&[("TargetDown", lost)]).await else { return };
    assert_eq!(sent, ["TargetDown"]);
}

#[tokio::test]
async fn a_bad_release_sends_one_alert() {
    let job = &[("job", "service")][..];
    let instance = &[("job", "service"), ("instance", "a")][..];
    let sent = sent_while_firing(&[
        ("HighErrorRate", job),
        ("ServiceAvailabilityBudgetBurn", job),
        ("ServicePanicked", instance),
        ("ServiceRestarting", instance),
    ])
    .await;
    let Some(sent) = sent else { return };
    assert_eq!(sent, ["HighErrorRate"]);
}

#[tokio::test]
async fn a_login_attack_sends_one_alert() {
    let sent = sent_while_firing(&[
        ("LoginAttack", &[("job", "service")]),
        ("AuthorizationDenialsHigh", &[("job", "service"), ("reason", "role")]),
    ])
    .await;
    let Some(sent) = sent else { return };
    assert_eq!(sent, ["LoginAttack"]);
}

#[tokio::test]
async fn a_failing_export_sends_one_alert() {
    let export =
        &[("job", "collector"), ("instance", "collector:8888"), ("exporter", "otlp_grpc/jaeger")][..];
    let instance = &[("job", "service"), ("instance", "a")][..];
    let failing =
        [("TelemetryExportFailing", export), ("TraceSpansDropped", instance), ("LogLinesDropped", instance)];
    let Some(sent) = sent_while_firing(&failing).await else { return };
    assert_eq!(sent, ["TelemetryExportFailing"]);

    let down = &[("job", "jaeger"), ("instance", "jaeger:8888")][..];
    let sent = sent_while_firing(&[failing[0], failing[1], failing[2], ("TargetDown", down)]).await;
    assert_eq!(sent.unwrap(), ["TargetDown"]);
}

#[tokio::test]
async fn a_full_disk_of_the_log_store_sends_one_alert() {
    let export = |exporter| [("job", "collector"), ("instance", "collector:8888"), ("exporter", exporter)];
    let (logs, traces) = (export("otlp_http/loki"), export("otlp_grpc/jaeger"));
    let loki = &[("job", "loki"), ("instance", "loki:3100")][..];
    let instance = &[("job", "service"), ("instance", "a")][..];
    let full =
        [("LogStorageFull", loki), ("TelemetryExportFailing", &logs[..]), ("LogLinesDropped", instance)];
    let Some(sent) = sent_while_firing(&full).await else { return };
    assert_eq!(sent, ["LogStorageFull"]);

    // Spans are not sent to the log store, so its full disk does not explain their failed export.
    let sent = sent_while_firing(&[full[0], full[1], ("TelemetryExportFailing", &traces)]).await;
    assert_eq!(sent.unwrap(), ["LogStorageFull", "TelemetryExportFailing"]);
}

#[tokio::test]
async fn a_service_outage_suppresses_its_consequences() {
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
    alertmanager.post("api/v2/alerts", &alerts).await;
    eventually("the alerts of two jobs arrive", async || (inbox.alerts().len() >= 2).then_some(())).await;
    let alerts = alertmanager.query("api/v2/alerts", &[("silenced", "false")]).await;
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
async fn the_cause_of_an_incident_suppresses_its_symptoms() {
    let Some(program) = tool("alertmanager") else { return };
    let inbox = inbox().await;
    let alertmanager = Server::alertmanager(&program, &inbox.address().to_string()).await;
    let alert = |name: &str, incident: &str, role: &str| {
        let labels = json!({
            "alertname": name, "severity": "critical", "job": "service", "incident": incident, "incident_role": role
        });
        json!({ "labels": labels, "annotations": {} })
    };
    let alerts = json!([
        alert("Cause", "one", "cause"),
        alert("Symptom", "one", "symptom"),
        alert("SymptomOfAnother", "another", "symptom"),
    ]);
    alertmanager.post("api/v2/alerts", &alerts).await;
    eventually("the cause and the symptom of another incident arrive", async || {
        (inbox.alerts().len() >= 2).then_some(())
    })
    .await;
    let mut arrived: Vec<_> = inbox.alerts().into_iter().map(|alert| alert.name).collect();
    arrived.sort_unstable();
    assert_eq!(arrived, ["Cause", "SymptomOfAnother"]);
}

#[tokio::test]
async fn a_database_outage_pages_once_with_the_name_of_its_cause() {
    let Some(program) = tool("alertmanager") else { return };
    let inbox = inbox().await;
    let alertmanager = Server::alertmanager(&program, &inbox.address().to_string()).await;
    let alert = |name: &str, incident: &str, role: &str, job: &str| {
        let labels = json!({
            "alertname": name, "severity": "critical", "job": job, "incident": incident, "incident_role": role
        });
        json!({ "labels": labels, "annotations": {} })
    };
    let alerts = json!([
        alert("DatabaseDown", "database", "cause", "service"),
        alert("AuditWriteFailures", "database", "symptom", "service"),
        alert("CauseOfAnother", "another", "cause", "service"),
        alert("SymptomOfAnother", "another", "symptom", "service"),
        alert("HighErrorRate", "", "symptom", "service"),
        alert("HighErrorRate", "", "symptom", "elsewhere"),
        alert("Unrelated", "", "", "service"),
    ]);
    alertmanager.post("api/v2/alerts", &alerts).await;
    eventually("the cause, the symptom of another job and the unrelated alert arrive", async || {
        (inbox.alerts().len() >= 3).then_some(())
    })
    .await;
    let mut arrived: Vec<_> = inbox.alerts().into_iter().map(|alert| alert.name).collect();
    arrived.sort_unstable();
    assert_eq!(arrived, ["DatabaseDown", "HighErrorRate", "Unrelated"]);
}

#[tokio::test]
async fn an_alert_leads_to_its_runbook() {
    let inbox = inbox().await;
    let client = dev::http::client(dev::harness::WAIT_TIMEOUT).unwrap();
    let get = async |path: &str| {
        let response = client.get(format!("http://{}{path}", inbox.address())).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (status, text) = get("/runbooks/HighErrorRate").await;
    assert_eq!((status, text.lines().next()), (200, Some("# HighErrorRate")));
    assert_eq!(get("/runbooks/..%2F..%2FCargo").await.0, 404);
    assert_eq!(get("/runbooks/Unknown").await.0, 404);
}
