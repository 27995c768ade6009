//! The routes of the inbox: for senders of alerts and heartbeats, for the page and the list of alerts, for runbooks,
//! and for probes.
use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{InboxState, ReceivedAlert, page};

pub(super) fn router(shared: Arc<InboxState>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/alerts", get(alerts))
        .route("/alertmanager", post(from_alertmanager))
        .route("/service", post(from_service))
        .route("/heartbeat", post(heartbeat))
        .route("/runbooks/{name}", get(runbook))
        .route("/healthz", get(async || "ok"))
        .with_state(shared)
}

/// The displayed part of Alertmanager's webhook body.
#[derive(Deserialize)]
struct Notification {
    alerts: Vec<AlertmanagerMessage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AlertmanagerMessage {
    status: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    starts_at: DateTime<Utc>,
}

async fn from_alertmanager(State(shared): State<Arc<InboxState>>, Json(notification): Json<Notification>) {
    for AlertmanagerMessage { status, mut labels, mut annotations, starts_at } in notification.alerts {
        shared.store(ReceivedAlert {
            received_at: Utc::now(),
            source: "alertmanager".to_owned(),
            status,
            started_at: Some(starts_at),
            name: labels.remove("alertname").unwrap_or_default(),
            severity: labels.remove("severity").unwrap_or_default(),
            summary: annotations.remove("summary").unwrap_or_default(),
            description: annotations.remove("description").unwrap_or_default(),
            runbook_url: annotations.remove("runbook_url"),
            dashboard_url: annotations.remove("dashboard_url"),
        });
    }
}

/// The body of the service's own alerts.
#[derive(Deserialize)]
struct ServiceAlert {
    severity: String,
    title: String,
    description: String,
    timestamp: DateTime<Utc>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

async fn from_service(State(shared): State<Arc<InboxState>>, Json(mut alert): Json<ServiceAlert>) {
    shared.store(ReceivedAlert {
        received_at: Utc::now(),
        source: "service".to_owned(),
        status: "firing".to_owned(),
        started_at: Some(alert.timestamp),
        name: alert.title.clone(),
        severity: alert.severity,
        summary: alert.title,
        description: alert.description,
        runbook_url: alert.metadata.remove("runbook_url"),
        dashboard_url: None,
    });
}

async fn heartbeat(State(shared): State<Arc<InboxState>>) {
    shared.with_contents(|contents| contents.heartbeat_at = Some(Utc::now()));
}

async fn alerts(State(shared): State<Arc<InboxState>>) -> Json<Vec<ReceivedAlert>> {
    Json(shared.with_contents(|contents| contents.alerts.iter().cloned().collect()))
}

async fn page(State(shared): State<Arc<InboxState>>) -> Html<String> {
    Html(shared.with_contents(|contents| page::render(contents)))
}

async fn runbook(State(shared): State<Arc<InboxState>>, Path(name): Path<String>) -> Response {
    // Only letters and digits are accepted, so the name cannot be a path to another directory.
    if !name.chars().all(|letter| letter.is_ascii_alphanumeric()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let Some(directory) = &shared.runbooks else { return StatusCode::NOT_FOUND.into_response() };
    match tokio::fs::read_to_string(directory.join(format!("{name}.md"))).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}
