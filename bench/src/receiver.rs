//! A receiver of traces, and a server with axum alone. Each is this program, run again as a separate process, so that
//! its CPU time is counted separately.
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Router, routing::get};
use dev::{
    otlp::{self, Sink, Span},
    process::Launch,
};
use tokio::net::TcpListener;

use crate::{service::Server, test_bed::free_address};

#[derive(Clone, Default)]
struct CountingReceiver(Arc<AtomicU64>);

impl Sink for CountingReceiver {
    async fn take(&self, spans: Vec<Span>) -> bool {
        self.0.fetch_add(spans.len() as u64, Ordering::Relaxed);
        true
    }
}

/// Receives and counts spans, until the process is ended.
pub async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let spans = CountingReceiver::default();
    let counted = spans.clone();
    let count = get(async move || counted.0.load(Ordering::Relaxed).to_string());
    let router = otlp::router(spans).route("/spans", count);
    Ok(axum::serve(TcpListener::bind(address).await?, router).await?)
}

/// Starts the receiver.
pub async fn start() -> anyhow::Result<Server> {
    let address = free_address()?;
    let launch =
        Launch::new(std::env::current_exe()?).args(["receive-traces", &address.to_string()]).uncaptured();
    Server::launch(launch, address, None, &format!("http://{address}/spans")).await
}

/// Returns the number of received spans.
pub async fn spans(receiver: &Server) -> anyhow::Result<u64> {
    let client = dev::http::client(std::time::Duration::from_secs(5))?;
    Ok(client.get(format!("http://{}/spans", receiver.address)).send().await?.text().await?.parse()?)
}

/// Serves axum alone: one JSON route without middleware, which returns the given body for every path but `/`.
pub async fn serve_axum_alone(address: SocketAddr, body: String) -> anyhow::Result<()> {
    let body: serde_json::Value = serde_json::from_str(&body)?;
    let route = get(async move || axum::Json(body.clone()));
    Ok(axum::serve(TcpListener::bind(address).await?, Router::new().route("/{*any}", route)).await?)
}

/// Starts axum alone, with the same response as the route `/problems/not-found` of the service.
pub async fn start_axum_alone() -> anyhow::Result<Server> {
    let address = free_address()?;
    let body = serde_json::json!({
        "type": "/problems/not-found",
        "status": 404,
        "title": "Not found",
        "about": "No resource has this address, or the resource belongs to another user.",
    });
    let launch = Launch::new(std::env::current_exe()?)
        .args(["respond", &address.to_string(), &body.to_string()])
        .uncaptured();
    Server::launch(launch, address, None, &format!("http://{address}/")).await
}
