//! The operations listener: probes, the health report, metrics and the log level. The listener must never be exposed to
//! the public.
pub mod health;
pub mod log_level;

use std::{net::SocketAddr, time::Instant};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use tower::util::MapResponseLayer;
use tower_http::catch_panic::CatchPanicLayer;

use self::{health::Health, log_level::LogLevel};
use super::{
    http::{
        host::require_host,
        limits,
        problem::{self, Problem},
    },
    telemetry::{
        correlation::{Context, CorrelationId},
        logs, metrics,
        traces::CORRELATION_HEADER,
    },
};

/// Returns the routes of this listener.
pub fn router(health: Health, log_level: LogLevel) -> Router {
    Router::new()
        .route("/healthz", get(liveness))
        .route("/readyz", get(ready))
        .route("/health", get(report))
        .with_state(health)
        .route("/metrics", get(scrape))
        .merge(log_level::routes(log_level))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::new(problem::METHOD_NOT_ALLOWED))
        .layer(from_fn(require_host))
        .layer(CatchPanicLayer::custom(problem::from_panic))
        .layer(MapResponseLayer::new(limits::security_headers::<Body>))
        // The outermost layer, so that responses to panics and rejections have a correlation id, too.
        .layer(from_fn(add_context))
}

/// Responds with 200, without checking any dependency.
async fn liveness() -> Json<Value> {
    let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    Json(json!({ "status": "ok", "timestamp": timestamp }))
}

async fn ready(State(health): State<Health>) -> Response {
    let readiness = health.readiness().await;
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// Returns the health report, with 200 even if a check failed. The report is for operators. Load balancers use
/// `/readyz`.
async fn report(State(health): State<Health>) -> Json<health::Report> {
    Json(health.report().await)
}

async fn scrape(headers: HeaderMap) -> Result<Response, Problem> {
    let (media_type, text) = metrics::render(&headers).map_err(|error| Problem::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}

/// Runs each request in a correlation context, and adds the correlation id to the response, as the API listener does.
/// Logs the request at debug level, because probes and scrapes arrive every few seconds. The metrics of HTTP requests
/// and the traces do not include these requests.
async fn add_context(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let sent = request.headers().get(CORRELATION_HEADER).and_then(|value| value.to_str().ok());
    let id = sent.and_then(CorrelationId::parse).unwrap_or_else(CorrelationId::generate);
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let address = peer.map(|ConnectInfo(peer)| peer.ip().to_canonical());
    let context = Context::for_request(id.clone(), request.uri().path(), address);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let handled = async {
        let response = next.run(request).await;
        let status = response.status().as_u16();
        let duration_ms = logs::milliseconds(started.elapsed());
        tracing::debug!(target: "access", %method, path, status, duration_ms, "request");
        response
    };
    let mut response = context.scope(handled).await;
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(CORRELATION_HEADER, id);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Method, Request},
    };
    use tower::ServiceExt;

    use super::{health::CheckError, *};
    use crate::{build_info::BuildInfo, settings::Environment, telemetry::logs::reloadable};

    async fn send(method: Method, path: &str) -> (StatusCode, HeaderMap, String) {
        let health = Health::builder(BuildInfo::current())
            .required("database", async || Err(CheckError("cannot be reached")))
            .section("pool", || panic!("a panic of the test"))
            .build();
        let (_layer, filter) = reloadable(Environment::Production, None).unwrap();
        let router = router(health, LogLevel::new(filter, ([127, 0, 0, 1], 9000).into(), None, |_| {}));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "ops")
            .header("x-correlation-id", "probe-7")
            .body(Body::empty())
            .unwrap();
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn healthz_reports_the_status_and_time() {
        let (status, headers, body) = send(Method::GET, "/healthz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("ok")));
        assert!(chrono::DateTime::parse_from_rfc3339(body["timestamp"].as_str().unwrap()).is_ok());
        assert_eq!(headers["cache-control"], "no-store");
    }

    #[tokio::test]
    async fn readyz_names_the_failed_checks() {
        let (status, headers, body) = send(Method::GET, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap(),
            json!({ "status": "not_ready", "checks": { "database": "unhealthy", "draining": "healthy" } })
        );
    }

    #[tokio::test]
    async fn metrics_have_the_prometheus_text_format() {
        let (status, headers, _) = send(Method::GET, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["content-type"], "text/plain; version=0.0.4");
    }

    #[tokio::test]
    async fn rejections_are_problem_responses() {
        for (method, path, expected) in [
            (Method::GET, "/nothing", StatusCode::NOT_FOUND),
            (Method::POST, "/readyz", StatusCode::METHOD_NOT_ALLOWED),
            (Method::DELETE, "/log-level", StatusCode::METHOD_NOT_ALLOWED),
            (Method::GET, "/health", StatusCode::INTERNAL_SERVER_ERROR),
        ] {
            let (status, headers, body) = send(method, path).await;
            assert_eq!(status, expected, "{path}");
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((&body["instance"], &body["correlation_id"]), (&json!(path), &json!("probe-7")));
            assert_eq!(headers["x-correlation-id"], "probe-7");
            assert_eq!(headers["content-type"], problem::MEDIA_TYPE, "{path}");
            assert_eq!(status == StatusCode::METHOD_NOT_ALLOWED, headers.contains_key("allow"), "{path}");
        }
        let (_, headers, _) = send(Method::DELETE, "/log-level").await;
        assert_eq!(headers["allow"], "GET,HEAD,PUT");
    }
}
