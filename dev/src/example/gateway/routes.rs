//! The gateway's API, and `/ledger` and `/faults`, which a real gateway does not have.
//!
//! A request to the API passes these steps in order:
//! - the request is recorded
//! - a fault may reject the request
//! - the API key is checked
//! - the request is executed ([`super::state`])
//! - faults may replace, malform, delay or lose the response
use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{TimeDelta, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use uuid::Uuid;

use super::{
    Gateway,
    charges::{Charge, ChargeRequest, Refund, RefundRequest},
    faults::{Faults, RequestFaults},
    ledger::{Counts, KeyedRequest, Ledger},
    listing::{ListQuery, ListRequest, PageFaults, PageRequest},
    lock,
    requests::RecordedRequest,
    server::CutConnection,
    state::{Outcome, Rejection},
    webhooks::{self, Event},
};

const BODY_LIMIT: usize = 64 * 1024;

pub(super) fn router(gateway: Arc<Gateway>) -> Router {
    let api = Router::new()
        .route("/v1/charges", post(charge).get(charges))
        .route("/v1/charges/{id}/refunds", post(refund))
        .route("/v1/refunds", get(refunds))
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), authenticate))
        // An outage affects the health check too.
        .route("/healthz", get(healthz))
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), apply_faults))
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), record));
    Router::new()
        .route("/ledger", get(ledger))
        .route("/faults", get(show_faults).put(set_faults).delete(clear_faults))
        .merge(api)
        .with_state(gateway)
}

/// An error response: `{"error": "…"}`.
struct ErrorResponse(u16, String);

impl ErrorResponse {
    fn malformed(why: &impl ToString) -> Self {
        Self(400, why.to_string())
    }

    fn invalid(why: &impl ToString) -> Self {
        Self(422, why.to_string())
    }
}

impl From<Rejection> for ErrorResponse {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::ByPaymentMethod(status) => Self(status, "the gateway is unavailable".to_owned()),
            Rejection::KeyReused => Self(409, "the Idempotency-Key was used for another request".to_owned()),
            Rejection::NoSuchCharge => Self(404, "the charge does not exist".to_owned()),
            Rejection::LedgerFailure(error) => Self(500, error.to_string()),
        }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        (status(self.0), Json(json!({ "error": self.1 }))).into_response()
    }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

async fn record(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Result<Response, ErrorResponse> {
    let (parts, body) = request.into_parts();
    let body =
        axum::body::to_bytes(body, BODY_LIMIT).await.map_err(|error| ErrorResponse::malformed(&error))?;
    lock(&gateway.requests).push(RecordedRequest {
        at: Utc::now(),
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        idempotency_key: text(&parts.headers, "idempotency-key"),
        correlation_id: text(&parts.headers, "x-correlation-id"),
        traceparent: text(&parts.headers, "traceparent"),
        baggage: text(&parts.headers, "baggage"),
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    gateway.notify();
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

async fn apply_faults(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let faults = gateway.faults.borrow().clone();
    let faults_of_request = lock(&gateway.fault_generator).draw(&faults);
    request.extensions_mut().insert(faults_of_request.clone());
    let injected_error = || {
        let mut rejected = ErrorResponse(
            faults_of_request.error_status,
            "the gateway failed because of an injected fault".to_owned(),
        )
        .into_response();
        if let Some(retry_after) = faults_of_request.retry_after.clone() {
            rejected.headers_mut().insert(header::RETRY_AFTER, retry_after);
        }
        rejected
    };

    let mut response =
        if faults_of_request.error_before { injected_error() } else { next.run(request).await };
    if faults_of_request.error_after && response.status() == StatusCode::CREATED {
        response = injected_error();
    }
    if let Some(malformation) = faults_of_request.malformation {
        response = malformation.malform(response).await;
    }
    tokio::time::sleep(faults_of_request.latency).await;
    // The wait cannot fail, because `gateway` owns the sender.
    let _ = gateway.faults.subscribe().wait_for(|faults| !faults.hold_responses).await;
    if faults_of_request.cut {
        response.extensions_mut().insert(CutConnection);
    }
    response
}

async fn authenticate(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let expected = format!("Bearer {}", gateway.api_key);
    if text(request.headers(), header::AUTHORIZATION.as_str()).is_some_and(|given| given == expected) {
        return next.run(request).await;
    }
    let rejected = ErrorResponse(401, "Authorization: Bearer API_KEY is required".to_owned());
    ([(header::WWW_AUTHENTICATE, "Bearer")], rejected).into_response()
}

/// A parsed request that moves money, with its idempotency key.
struct MoneyRequest<T> {
    keyed: KeyedRequest,
    request: T,
    correlation_id: Option<String>,
}

impl<T: DeserializeOwned> MoneyRequest<T> {
    fn parse(path: String, headers: &HeaderMap, body: &Bytes) -> Result<Self, ErrorResponse> {
        let key = text(headers, "idempotency-key")
            .filter(|key| !key.is_empty())
            .ok_or_else(|| ErrorResponse::malformed(&"Idempotency-Key is required"))?;
        let request = parse(body)?;
        let body = std::str::from_utf8(body).map_err(|error| ErrorResponse::malformed(&error))?.to_owned();
        let correlation_id = text(headers, "x-correlation-id");
        Ok(Self { keyed: KeyedRequest { key, path, body }, request, correlation_id })
    }
}

async fn charge(
    State(gateway): State<Arc<Gateway>>,
    Extension(faults_of_request): Extension<RequestFaults>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ErrorResponse> {
    let money_request = MoneyRequest::<ChargeRequest>::parse("/v1/charges".to_owned(), &headers, &body)?;
    money_request
        .request
        .validation_error()
        .map_or(Ok(()), |validation_error| Err(ErrorResponse::invalid(&validation_error)))?;
    execute(gateway, move |gateway| {
        let outcome = lock(&gateway.state).charge(
            money_request.keyed,
            &money_request.request,
            faults_of_request.decline,
            gateway.timings.slow_response,
        )?;
        if outcome.is_new {
            enqueue_event(gateway, Event::of_charge(&outcome.done), money_request.correlation_id);
        }
        Ok(outcome)
    })
    .await
}

async fn refund(
    State(gateway): State<Arc<Gateway>>,
    Path(charge_id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ErrorResponse> {
    let money_request =
        MoneyRequest::<RefundRequest>::parse(format!("/v1/charges/{charge_id}/refunds"), &headers, &body)?;
    money_request
        .request
        .validation_error()
        .map_or(Ok(()), |validation_error| Err(ErrorResponse::invalid(&validation_error)))?;
    execute(gateway, move |gateway| {
        let outcome = lock(&gateway.state).refund(money_request.keyed, &charge_id, &money_request.request)?;
        if outcome.is_new {
            enqueue_event(gateway, Event::of_refund(&outcome.done), money_request.correlation_id);
        }
        Ok(outcome)
    })
    .await
}

fn enqueue_event(gateway: &Gateway, event: Result<Event, super::Error>, correlation_id: Option<String>) {
    if let Ok(event) = event {
        webhooks::enqueue(gateway, event.with_correlation_id(correlation_id));
    }
}

/// Executes a request on a blocking thread, because the ledger is flushed to the disk. The execution completes even if
/// the client disconnects. The response is sent at `respond_at`, or never.
async fn execute<T: Serialize + Send + 'static>(
    gateway: Arc<Gateway>,
    operation: impl FnOnce(&Gateway) -> Result<Outcome<T>, Rejection> + Send + 'static,
) -> Result<Response, ErrorResponse> {
    let outcome = tokio::task::spawn_blocking(move || operation(&gateway))
        .await
        .map_err(|failed| ErrorResponse(500, failed.to_string()))??;
    match outcome.respond_at {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
    match outcome.error_status_after {
        Some(status) => Err(ErrorResponse(status, "the gateway failed after the charge".to_owned())),
        None => Ok((StatusCode::CREATED, Json(outcome.done)).into_response()),
    }
}

#[derive(Serialize)]
struct ListResponse<T> {
    data: Vec<T>,
}

async fn charges(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, ErrorResponse> {
    Ok(match query.validate().map_err(|why| ErrorResponse::malformed(&why))? {
        ListRequest::ByReference(reference) => {
            let data: Vec<Charge> = lock(&gateway.state).ledger().charges_for(reference).cloned().collect();
            Json(ListResponse { data }).into_response()
        }
        ListRequest::Page(request) => {
            let (delay, faults) = draw_for_page(&gateway, &request);
            Json(lock(&gateway.state).list_charges(&request, delay, &faults)).into_response()
        }
    })
}

async fn refunds(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, ErrorResponse> {
    Ok(match query.validate().map_err(|why| ErrorResponse::malformed(&why))? {
        ListRequest::ByReference(reference) => {
            let data: Vec<Refund> = lock(&gateway.state).ledger().refunds_for(reference).cloned().collect();
            Json(ListResponse { data }).into_response()
        }
        ListRequest::Page(request) => {
            let (delay, faults) = draw_for_page(&gateway, &request);
            Json(lock(&gateway.state).list_refunds(&request, delay, &faults)).into_response()
        }
    })
}

/// Returns how long a new object is missing in lists, and the other faults of this page.
fn draw_for_page(gateway: &Gateway, request: &PageRequest) -> (TimeDelta, PageFaults) {
    let faults = gateway.faults.borrow().clone();
    let delay = TimeDelta::milliseconds(faults.list_delay_ms.into());
    (delay, lock(&gateway.fault_generator).draw_for_page(&faults, request.limit))
}

async fn healthz() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok" }))
}

#[derive(Serialize)]
struct LedgerPage {
    counts: Counts,
    #[serde(flatten)]
    ledger: Ledger,
}

/// Range of references, including both ends. The default is all references.
#[derive(Deserialize)]
#[serde(default)]
struct References {
    from: Uuid,
    through: Uuid,
}

impl Default for References {
    fn default() -> Self {
        Self { from: Uuid::nil(), through: Uuid::max() }
    }
}

/// Returns the charges and refunds with references in the range, and their counts. The check of the invariants reads a
/// large ledger in parts, one range per request.
async fn ledger(
    State(gateway): State<Arc<Gateway>>,
    Query(references): Query<References>,
) -> Json<LedgerPage> {
    let ledger = lock(&gateway.state).ledger().of(references.from..=references.through);
    Json(LedgerPage { counts: ledger.counts(), ledger })
}

async fn show_faults(State(gateway): State<Arc<Gateway>>) -> Json<Faults> {
    Json(gateway.faults.borrow().clone())
}

/// Replaces the faults. Fields missing in the body take their defaults.
async fn set_faults(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Result<Json<Faults>, ErrorResponse> {
    let faults: Faults = parse(&body)?;
    if let Some(validation_error) = faults.validation_error() {
        return Err(ErrorResponse::invalid(&validation_error));
    }
    gateway.set_faults(faults.clone());
    Ok(Json(faults))
}

async fn clear_faults(State(gateway): State<Arc<Gateway>>) -> Json<Faults> {
    gateway.set_faults(Faults::default());
    Json(Faults::default())
}

/// Parses a body. Returns 400 for invalid JSON, 422 for JSON of another shape.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorResponse> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ErrorResponse::invalid(&error),
        _ => ErrorResponse::malformed(&error),
    })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
}
