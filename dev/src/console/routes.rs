//! The API of the page.
//!
//! The server pushes changes: `/api/stream` sends the kind of data that has changed, and the page fetches the displayed
//! data again with its own filters. The newest figures are pushed completely.
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
    ChangeCounters, Condition, ObservedSystem, Receiver, State as Shared, assets, audit, guard, lock, logs,
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
const TRACES_SHOWN: usize = 200;

/// Maximum number of log lines in a list.
const LINES_SHOWN: usize = 500;

/// Minimum interval between pushes to a page. A person cannot perceive more.
const BETWEEN_PULSES: Duration = Duration::from_millis(400);

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

/// An error with a one-sentence explanation.
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

fn scene(state: &Shared) -> Result<&ObservedSystem, ErrorResponse> {
    let starting = || ErrorResponse(StatusCode::SERVICE_UNAVAILABLE, "the service is starting".to_owned());
    state.scene.get().ok_or_else(starting)
}

async fn stream(State(state): State<Arc<Shared>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let told = EventStream { latest: state.latest.subscribe(), pulse: state.pulse.subscribe(), first: true };
    let events = stream::unfold(told, |mut told| async move {
        let event = told.next().await?;
        Some((Ok(event), told))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// The last state sent to a page.
struct EventStream {
    latest: watch::Receiver<Option<Snapshot>>,
    pulse: watch::Receiver<ChangeCounters>,
    first: bool,
}

impl EventStream {
    async fn next(&mut self) -> Option<Event> {
        // The first event is sent at once, so that the page can show that it is connected.
        if !std::mem::take(&mut self.first) {
            self.pulse.changed().await.ok()?;
            sleep(BETWEEN_PULSES).await;
        }
        let pulse = *self.pulse.borrow_and_update();
        let point = match self.latest.has_changed() {
            Ok(true) => self.latest.borrow_and_update().clone(),
            _ => None,
        };
        Event::default().json_data(json!({ "pulse": pulse, "now": point })).ok()
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
    replicas: BTreeMap<String, Condition>,
    /// Data stored by the console itself.
    kept: StorageUse,
}

/// Amount of stored data, and its limit.
#[derive(Serialize)]
struct StorageUse {
    traces: usize,
    most_traces: usize,
    trace_bytes: usize,
    most_trace_bytes: usize,
    lines: usize,
    most_lines: usize,
    line_bytes: usize,
    most_line_bytes: usize,
    series: usize,
    samples: usize,
}

/// `?points=false` omits the history, for a page that already has it.
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
    let kept = kept(&state);
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
        kept,
    })
}

fn kept(state: &Shared) -> StorageUse {
    let (traces, trace_bytes) = lock(&state.traces).size();
    let (lines, line_bytes) = lock(&state.logs).size();
    let (series, samples) = lock(&state.metrics).size();
    StorageUse {
        traces,
        most_traces: traces::MAX_TRACES,
        trace_bytes,
        most_trace_bytes: traces::MAX_BYTES,
        lines,
        most_lines: logs::MAX_LINES,
        line_bytes,
        most_line_bytes: logs::MAX_BYTES,
        series,
        samples,
    }
}

async fn traces(
    State(state): State<Arc<Shared>>,
    Query(filter): Query<traces::Filter>,
) -> Json<Vec<traces::Summary>> {
    Json(lock(&state.traces).list(&filter, TRACES_SHOWN))
}

async fn trace(
    State(state): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ErrorResponse> {
    let Some(detail) = lock(&state.traces).detail(&id) else {
        return Err(ErrorResponse(StatusCode::NOT_FOUND, "the console has not stored this trace".to_owned()));
    };
    let lines = lock(&state.logs).list(&logs::Filter::of_trace(&id), LINES_SHOWN);
    Ok(Json(json!({ "trace": detail, "lines": lines })))
}

async fn first(State(state): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "trace_id": state.first.get() }))
}

async fn logs(State(state): State<Arc<Shared>>, Query(filter): Query<logs::Filter>) -> Json<Vec<logs::Line>> {
    Json(lock(&state.logs).list(&filter, LINES_SHOWN))
}

async fn alerts(State(state): State<Arc<Shared>>) -> Json<Value> {
    let alerting = state.alerting.get();
    Json(json!({
        "prometheus": alerting.map(|alerting| alerting.prometheus.as_str()),
        "alertmanager": alerting.map(|alerting| alerting.alertmanager.as_str()),
        "inbox": format!("http://{}/", state.inbox.address()),
        "rules": *lock(&state.standing),
        "arrived": state.inbox.alerts(),
    }))
}

async fn faults(State(state): State<Arc<Shared>>) -> Result<Json<Value>, ErrorResponse> {
    let scene = scene(&state)?;
    let mut periods = scene.faults.periods();
    periods.extend(scene.replication.iter().flat_map(Replication::periods));
    periods.sort_by_key(|period| (period.ended.is_none(), period.ended));
    Ok(Json(json!({
        "faults": Fault::all(),
        "periods": periods,
        "traffic": scene.traffic.as_ref().map(crate::traffic::Switch::is_on),
        "compares": scene.books.is_some(),
        "books": *lock(&state.books),
    })))
}

/// Returns the state of the primary and its standby, or null if the database has no standby.
async fn database(State(state): State<Arc<Shared>>) -> Result<Json<Value>, ErrorResponse> {
    let Some(replication) = &scene(&state)?.replication else { return Ok(Json(Value::Null)) };
    Ok(Json(json!({ "nodes": replication.nodes().await, "changes": replication.reports() })))
}

async fn change_primary(
    State(state): State<Arc<Shared>>,
    Path(change): Path<Change>,
    Json(_nothing): Json<Value>,
) -> Result<StatusCode, ErrorResponse> {
    let conflict = |why: String| ErrorResponse(StatusCode::CONFLICT, why);
    let none = || conflict("the database has no standby: start `cargo dev --standby`".to_owned());
    let replication = scene(&state)?.replication.as_ref().ok_or_else(none)?;
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
    scene(&state)?.faults.set(fault, on).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn back_to_normal(
    State(state): State<Arc<Shared>>,
    Json(_nothing): Json<Value>,
) -> Result<StatusCode, ErrorResponse> {
    let scene = scene(&state)?;
    scene.faults.clear().await?;
    if let Some(traffic) = &scene.traffic {
        traffic.set(true);
    }
    state.changed(|pulse| pulse.faults += 1);
    Ok(StatusCode::NO_CONTENT)
}

async fn set_traffic(
    State(state): State<Arc<Shared>>,
    Json(SwitchRequest { on }): Json<SwitchRequest>,
) -> Result<StatusCode, ErrorResponse> {
    let none = || ErrorResponse(StatusCode::CONFLICT, "no traffic is configured".to_owned());
    scene(&state)?.traffic.as_ref().ok_or_else(none)?.set(on);
    state.changed(|pulse| pulse.faults += 1);
    Ok(StatusCode::NO_CONTENT)
}

async fn audit_log(State(state): State<Arc<Shared>>) -> Result<Json<audit::AuditLog>, ErrorResponse> {
    Ok(Json(audit::audit_log(&scene(&state)?.owner_url).await?))
}

async fn verify(
    State(state): State<Arc<Shared>>,
    Json(_nothing): Json<Value>,
) -> Result<Json<audit::Verification>, ErrorResponse> {
    let scene = scene(&state)?;
    let _one_at_a_time = state.verifying.lock().await;
    Ok(Json(audit::verify(&scene.executable, &scene.database_url, scene.log.as_deref()).await?))
}
