//! The second listener: probes, metrics and the log level. It is never exposed to the public.
pub mod health;
pub mod log_level;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::get,
};
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use self::{health::Health, log_level::LogLevel};
use super::{
    http::{
        limits,
        problem::{self, Problem},
    },
    telemetry,
};

/// Everything that this listener answers.
pub fn router(health: Health, log_level: LogLevel) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/health", get(report))
        .with_state(health)
        .route("/metrics", get(metrics))
        .merge(log_level::routes(log_level))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::new(problem::METHOD_NOT_ALLOWED))
        .layer(CatchPanicLayer::custom(problem::from_panic))
        .layer(from_fn(limits::security_headers))
}

/// Whether the process itself is alive: asks nobody.
async fn alive() -> Json<Value> {
    let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    Json(json!({ "status": "ok", "timestamp": timestamp }))
}

async fn ready(State(health): State<Health>) -> Response {
    let readiness = health.readiness().await;
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// For people: always 200, since it is `/readyz` that decides.
async fn report(State(health): State<Health>) -> Json<health::Report> {
    Json(health.report().await)
}

async fn metrics() -> Result<Response, Problem> {
    let (media_type, text) = telemetry::metrics::render().map_err(|error| Problem::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Method, Request},
    };
    use tower::ServiceExt;

    use super::{
        health::{Build, CheckError},
        log_level::Filter,
        *,
    };

    struct Fixed;

    impl Filter for Fixed {
        fn current(&self) -> String {
            "info".to_owned()
        }

        fn default_filter(&self) -> &'static str {
            "info"
        }

        fn set(&self, _: &str) -> Result<(), String> {
            Ok(())
        }
    }

    async fn ask(method: Method, path: &str) -> (StatusCode, header::HeaderMap, String) {
        let health = Health::builder(Build { version: "1.2.3", commit: "abc", rustc: "1.95" })
            .required("database", async || Err(CheckError("cannot be reached")))
            .section("pool", || panic!("a panic of the test"))
            .build();
        let router = router(health, LogLevel::new(Fixed, ([127, 0, 0, 1], 9000).into(), None));
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn a_live_process_says_so_and_when() {
        let (status, headers, body) = ask(Method::GET, "/healthz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("ok")));
        assert!(chrono::DateTime::parse_from_rfc3339(body["timestamp"].as_str().unwrap()).is_ok());
        assert_eq!(headers["cache-control"], "no-store");
    }

    #[tokio::test]
    async fn a_process_that_is_not_ready_says_what_is_missing() {
        let (status, headers, body) = ask(Method::GET, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap(),
            json!({ "status": "not_ready", "checks": { "database": "unhealthy", "draining": "healthy" } })
        );
    }

    #[tokio::test]
    async fn metrics_are_text() {
        let (status, headers, _) = ask(Method::GET, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["content-type"], "text/plain; version=0.0.4");
    }

    #[tokio::test]
    async fn refusals_are_problems_here_too() {
        for (method, path, expected) in [
            (Method::GET, "/nothing", StatusCode::NOT_FOUND),
            (Method::POST, "/readyz", StatusCode::METHOD_NOT_ALLOWED),
            (Method::DELETE, "/log-level", StatusCode::METHOD_NOT_ALLOWED),
            (Method::GET, "/health", StatusCode::INTERNAL_SERVER_ERROR),
        ] {
            let (status, headers, _) = ask(method, path).await;
            assert_eq!(status, expected, "{path}");
            assert_eq!(headers["content-type"], problem::MEDIA_TYPE, "{path}");
            assert_eq!(status == StatusCode::METHOD_NOT_ALLOWED, headers.contains_key("allow"), "{path}");
        }
        let (_, headers, _) = ask(Method::DELETE, "/log-level").await;
        assert_eq!(headers["allow"], "GET,HEAD,PUT");
    }
}
