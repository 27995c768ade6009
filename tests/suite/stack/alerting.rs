//! From a fault to a delivered alert, and back: a real Prometheus, a real Alertmanager, an inbox.
use std::net::{Ipv4Addr, SocketAddr};

use dev::{
    alert_inbox::{self, Inbox},
    harness::eventually,
};
use serde_json::json;

use super::tools::{Server, tool};

pub(crate) async fn inbox() -> Inbox {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Inbox::start(alert_inbox::Settings {
        address,
        runbooks: Some(super::files::repository().join("docs/runbooks")),
    })
    .await
    .unwrap()
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
    alertmanager.post("api/v2/alerts", &alerts).await;
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
    eventually("the cause and the other symptom arrive", async || (inbox.alerts().len() >= 2).then_some(()))
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
    eventually("the cause and what does not follow from it arrive", async || {
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
        let answer = client.get(format!("http://{}{path}", inbox.address())).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, text) = get("/runbooks/HighErrorRate").await;
    assert_eq!((status, text.lines().next()), (200, Some("# HighErrorRate")));
    assert_eq!(get("/runbooks/..%2F..%2FCargo").await.0, 404);
    assert_eq!(get("/runbooks/Unknown").await.0, 404);
}
