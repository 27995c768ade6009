//! The routes of the console: the page, the HTTP API that the page calls, and the receiver of spans.
//!
//! The server pushes changes: `/api/stream` sends a counter of changes for each kind of data, and the newest values of
//! the charts and figures. If the counter of the displayed data has changed, the page fetches this data again, with the
//! filters of the view.
use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    middleware::from_fn_with_state,
    response::{
        IntoResponse, Redirect, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{
    ChangeCounters, ObservedSystem, Receiver, ReplicaHealth, State as Shared, assets, audit, guard, lock,
    logs,
    metrics::RETENTION,
    now::{self, Snapshot},
    traces,
};
use crate::{
    failover::{Change, Replication},
    faults::Fault,
    otlp, project,
};

/// Maximum number of traces in a list.
const MAX_LISTED_TRACES: usize = 200;

/// Maximum number of log lines in a list.
const MAX_LISTED_LINES: usize = 500;

/// Minimum interval between two events for a page.
const MIN_PUSH_INTERVAL: Duration = Duration::from_millis(400);

pub(super) fn router(state: Arc<Shared>) -> Router {
    let pages = ["/now", "/traces", "/traces/{id}", "/logs", "/alerts", "/faults", "/audit"];
    let mut router = Router::new()
        .route("/", get(async || Redirect::temporary("/now")))
        .route("/assets/{name}", get(assets::file))
        .route("/api/stream", get(stream))
        .route("/api/now", get(now))
        .route("/api/traces", get(traces))
        .route("/api/traces/{id}", get(trace))
        .route("/api/first", get(first))
        .route("/api/logs", get(logs))
        .route("/api/alerts", get(alerts))
        .route("/api/faults", get(faults))
        .route("/api/faults/{fault}", post(set_fault))
        .route("/api/normal", post(back_to_normal))
        .route("/api/database", get(database))
        .route("/api/database/{change}", post(change_primary))
        .route("/api/traffic", post(set_traffic))
        .route("/api/audit", get(audit_log))
        .route("/api/audit/verification", post(verify));
    for page in pages {
        router = router.route(page, get(assets::page));
    }
    let address = state.address;
    router
        .with_state(Arc::clone(&state))
        .merge(otlp::router(Receiver(state)))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(from_fn_with_state(address, guard::guard))
}

/// An error response with a one-sentence explanation.
struct ErrorResponse(StatusCode, String);

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl<E: std::error::Error> From<E> for ErrorResponse {
    fn from(error: E) -> Self {
        Self(StatusCode::BAD_GATEWAY, error.to_string())
    }
}

fn system(state: &Shared) -> Result<&ObservedSystem, ErrorResponse> {
    let starting = || ErrorResponse(StatusCode::SERVICE_UNAVAILABLE, "the service is starting".to_owned());
    state.system.get().ok_or_else(starting)
}

async fn stream(State(state): State<Arc<Shared>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stream = EventStream {
        latest: state.latest.subscribe(),
        counters: state.counters.subscribe(),
        is_first: true,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok(event), stream))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// The changes that a page has not received.
struct EventStream {
    latest: watch::Receiver<Option<Snapshot>>,
    counters: watch::Receiver<ChangeCounters>,
    is_first: bool,
}

impl EventStream {
    async fn next(&mut self) -> Option<Event> {
        // The first event is sent immediately, so that a new page fetches the active faults and the alerts.
        if !std::mem::take(&mut self.is_first) {
            self.counters.changed().await.ok()?;
            sleep(MIN_PUSH_INTERVAL).await;
        }
        let counters = *self.counters.borrow_and_update();
        let point = match self.latest.has_changed() {
            Ok(true) => self.latest.borrow_and_update().clone(),
            _ => None,
        };
        Event::default().json_data(json!({ "counters": counters, "now": point })).ok()
    }
}

#[derive(Serialize)]
struct Now {
    service: &'static str,
    began: DateTime<Utc>,
    retention_seconds: u64,
    charts: Vec<now::Chart>,
    points: Vec<Snapshot>,
    routes: Vec<now::Route>,
    replicas: BTreeMap<String, ReplicaHealth>,
    /// Memory use of the console.
    storage: StorageUse,
}

/// Amounts of stored data, and their limits.
#[derive(Serialize)]
struct StorageUse {
    traces: usize,
    max_traces: usize,
    trace_bytes: usize,
    max_trace_bytes: usize,
    lines: usize,
    max_lines: usize,
    line_bytes: usize,
    max_line_bytes: usize,
    series: usize,
    samples: usize,
}

/// The query of `/api/now`. `points=false` omits the history, for a page that already has the history.
#[derive(Deserialize)]
struct NowQuery {
    points: Option<bool>,
}

async fn now(State(state): State<Arc<Shared>>, Query(query): Query<NowQuery>) -> Json<Now> {
    let replicas = lock(&state.replicas);
    let replicas = replicas
        .iter()
        .map(|replica| (replica.ops.authority().to_owned(), lock(&replica.health).clone()))
        .collect();
    let storage = storage(&state);
    let overview = lock(&state.overview);
    let points = match query.points {
        Some(false) => Vec::new(),
        _ => overview.points.iter().cloned().collect(),
    };
    Json(Now {
        service: project::name(),
        began: state.began,
        retention_seconds: RETENTION.as_secs(),
        charts: now::charts(),
        points,
        routes: overview.routes.clone(),
        replicas,
        storage,
    })
}

fn storage(state: &Shared) -> StorageUse {
    let (traces, trace_bytes) = lock(&state.traces).size();
    let (lines, line_bytes) = lock(&state.logs).size();
    let (series, samples) = lock(&state.metrics).size();
    StorageUse {
        traces,
        max_traces: traces::MAX_TRACES,
        trace_bytes,
        max_trace_bytes: traces::MAX_BYTES,
        lines,
        max_lines: logs::MAX_LINES,
        line_bytes,
        max_line_bytes: logs::MAX_BYTES,
        series,
        samples,
    }
}

async fn traces(
    State(state): State<Arc<Shared>>,
    Query(filter): Query<traces::Filter>,
) -> Json<Vec<traces::Summary>> {
    Json(lock(&state.traces).list(&filter, MAX_LISTED_TRACES))
}

async fn trace(
    State(state): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ErrorResponse> {
    let Some(detail) = lock(&state.traces).detail(&id) else {
        return Err(ErrorResponse(StatusCode::NOT_FOUND, "the console has no such trace".to_owned()));
    };
    let lines = lock(&state.logs).list(&logs::Filter::of_trace(&id), MAX_LISTED_LINES);
    Ok(Json(json!({ "trace": detail, "lines": lines })))
}

async fn first(State(state): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "trace_id": state.first_trace.get() }))
}

async fn logs(State(state): State<Arc<Shared>>, Query(filter): Query<logs::Filter>) -> Json<Vec<logs::Line>> {
    Json(lock(&state.logs).list(&filter, MAX_LISTED_LINES))
}

async fn alerts(State(state): State<Arc<Shared>>) -> Json<Value> {
    let alerting = state.alerting.get();
    Json(json!({
        "prometheus": alerting.map(|alerting| alerting.prometheus.as_str()),
        "alertmanager": alerting.map(|alerting| alerting.alertmanager.as_str()),
        "inbox": format!("http://{}/", state.inbox.address()),
        "rules": *lock(&state.evaluated_rules),
        "received": state.inbox.alerts(),
    }))
}

async fn faults(State(state): State<Arc<Shared>>) -> Result<Json<Value>, ErrorResponse> {
    let system = system(&state)?;
    let mut periods = system.faults.periods();
    periods.extend(system.replication.iter().flat_map(Replication::periods));
    periods.sort_by_key(|period| (period.ended.is_none(), period.ended));
    Ok(Json(json!({
        "faults": Fault::all(),
        "periods": periods,
        "traffic": system.traffic.as_ref().map(crate::traffic::Switch::is_on),
        "has_reconciliation": system.reconciliation.is_some(),
        "reconciliation": *lock(&state.reconciliation),
    })))
}

/// Returns the states of the primary and its standby, and the changes of the primary. Returns null if the database has
/// no standby.
async fn database(State(state): State<Arc<Shared>>) -> Result<Json<Value>, ErrorResponse> {
    let Some(replication) = &system(&state)?.replication else { return Ok(Json(Value::Null)) };
    Ok(Json(json!({ "nodes": replication.nodes().await, "changes": replication.reports() })))
}

async fn change_primary(
    State(state): State<Arc<Shared>>,
    Path(change): Path<Change>,
    Json(_nothing): Json<Value>,
) -> Result<StatusCode, ErrorResponse> {
    let conflict = |reason: String| ErrorResponse(StatusCode::CONFLICT, reason);
    let none = || conflict("the database has no standby: start `cargo dev --standby`".to_owned());
    let replication = system(&state)?.replication.as_ref().ok_or_else(none)?;
    replication.request(change).map_err(|error| conflict(error.to_string()))?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
struct SwitchRequest {
    on: bool,
}

async fn set_fault(
    State(state): State<Arc<Shared>>,
    Path(fault): Path<Fault>,
    Json(SwitchRequest { on }): Json<SwitchRequest>,
) -> Result<StatusCode, ErrorResponse> {
    system(&state)?.faults.set(fault, on).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn back_to_normal(
    State(state): State<Arc<Shared>>,
    Json(_nothing): Json<Value>,
) -> Result<StatusCode, ErrorResponse> {
    let system = system(&state)?;
    system.faults.clear().await?;
    if let Some(traffic) = &system.traffic {
        traffic.set(true);
    }
    state.changed(|counters| counters.faults += 1);
    Ok(StatusCode::NO_CONTENT)
}

async fn set_traffic(
    State(state): State<Arc<Shared>>,
    Json(SwitchRequest { on }): Json<SwitchRequest>,
) -> Result<StatusCode, ErrorResponse> {
    let none = || ErrorResponse(StatusCode::CONFLICT, "no traffic is configured".to_owned());
    system(&state)?.traffic.as_ref().ok_or_else(none)?.set(on);
    state.changed(|counters| counters.faults += 1);
    Ok(StatusCode::NO_CONTENT)
}

async fn audit_log(State(state): State<Arc<Shared>>) -> Result<Json<audit::AuditLog>, ErrorResponse> {
    Ok(Json(audit::audit_log(&system(&state)?.owner_url).await?))
}

async fn verify(
    State(state): State<Arc<Shared>>,
    Json(_nothing): Json<Value>,
) -> Result<Json<audit::Verification>, ErrorResponse> {
    let system = system(&state)?;
    let _one_at_a_time = state.verifying.lock().await;
    Ok(Json(audit::verify(&system.executable, &system.database_url, system.log.as_deref()).await?))
}
