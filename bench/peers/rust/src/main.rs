//! The peer in Rust: the routes `POST /v1/orders` and `GET /v1/orders/{id}`, composed as the READMEs of its crates
//! recommend.
mod audit;
mod caller;
mod orders;
mod problem;

use std::{env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, StatusCode},
    response::Response,
    routing::{get, post},
};
use axum_prometheus::PrometheusMetricLayer;
use axum_tracing_opentelemetry::middleware::OtelAxumLayer;
use init_tracing_opentelemetry::TracingConfig;
use sqlx::postgres::PgPoolOptions;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tower_http::{
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    timeout::TimeoutLayer,
    trace::TraceLayer,
};
use tracing::Span;

static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let is_traced = env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some();
    let _guard = TracingConfig::production().with_otel(is_traced).init_subscriber()?;

    let pool = PgPoolOptions::new()
        .max_connections(env::var("DATABASE_MAX_CONNECTIONS").map_or(Ok(16), |text| text.parse())?)
        .connect(&env::var("DATABASE_URL")?)
        .await?;

    let (metrics, metrics_handle) = PrometheusMetricLayer::pair();
    let access_log = TraceLayer::new_for_http()
        .make_span_with(|_: &Request| Span::current())
        .on_request(())
        .on_response(log_access);
    let app = Router::new()
        .route("/v1/orders", post(orders::place))
        .route("/v1/orders/{id}", get(orders::show))
        .with_state(pool)
        .layer(DefaultBodyLimit::max(64 * 1024))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(10)))
        .layer(PropagateRequestIdLayer::new(CORRELATION_ID.clone()))
        .layer(access_log)
        .layer(OtelAxumLayer::default())
        .layer(SetRequestIdLayer::new(CORRELATION_ID.clone(), MakeRequestUuid))
        .layer(metrics)
        .route("/metrics", get(async move || metrics_handle.render()))
        .route("/healthz", get(async || "ok"));

    let listener = TcpListener::bind(env::var("LISTEN_ADDRESS")?).await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let mut sigterm = signal(SignalKind::terminate())?;
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async move {
            sigterm.recv().await;
        })
        .await?;
    Ok(())
}

fn log_access(response: &Response, latency: Duration, _: &Span) {
    // Method, path and route are fields of the span. The formatter adds them to the fields below.
    let correlation_id = response.headers().get(&CORRELATION_ID).and_then(|id| id.to_str().ok());
    tracing::info!(
        target: "access",
        status = response.status().as_u16(),
        duration_ms = latency.as_secs_f64() * 1000.0,
        correlation_id,
        "request"
    );
}
