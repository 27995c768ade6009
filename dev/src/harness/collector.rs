//! A collector that receives and stores the spans and log records of a service over OTLP. The collector can reject
//! requests or delay its responses. When the collector is dropped, the test fails if a stored attribute or field is
//! missing in `docs/telemetry-schema*.md`.
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    eventually,
    schema::{Schema, assert_documented},
};
use crate::otlp::{self, Record, Span, SpanKind};

/// The behaviour of a collector.
#[derive(Debug, Clone, Copy, Default)]
pub enum CollectorBehavior {
    /// Accepts requests.
    #[default]
    Accepting,
    /// Accepts requests after a delay.
    Slow(Duration),
    /// Rejects requests, as a collector does above its limits.
    Rejecting,
}

/// A running collector. Dropping the value stops the collector.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    inbox: Inbox,
    server: JoinHandle<()>,
}

/// The accepted spans and log records, the number of received requests, and the current behaviour.
#[derive(Debug, Clone, Default)]
struct Inbox(Arc<Mutex<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    behavior: CollectorBehavior,
    /// Number of received requests, accepted or not.
    requests: usize,
    spans: Vec<Span>,
    records: Vec<Record>,
}

impl Collector {
    /// Starts a collector that accepts requests.
    pub async fn start() -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("failed to listen on a free port");
        let address = listener.local_addr().expect("failed to read the listener's address");
        let inbox = Inbox::default();
        let router = otlp::router(inbox.clone());
        let server =
            tokio::spawn(async move { axum::serve(listener, router).await.expect("the server failed") });
        Self { address, inbox, server }
    }

    /// Returns the value for `OTEL_EXPORTER_OTLP_ENDPOINT`, which is the same for OTLP over gRPC and over HTTP.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the behaviour for further requests.
    pub fn set_behavior(&self, behavior: CollectorBehavior) {
        self.inbox.lock().behavior = behavior;
    }

    /// Returns the number of received requests, accepted or not.
    pub fn requests(&self) -> usize {
        self.inbox.lock().requests
    }

    /// Returns all accepted spans, in order of arrival.
    pub fn spans(&self) -> Vec<Span> {
        self.inbox.lock().spans.clone()
    }

    /// Returns all accepted log records, in order of arrival.
    pub fn records(&self) -> Vec<Record> {
        self.inbox.lock().records.clone()
    }

    /// Waits for a log record that matches.
    pub async fn wait_for_record(&self, what: &str, matches: impl Fn(&Record) -> bool) -> Record {
        eventually(what, async || self.records().into_iter().find(&matches)).await
    }

    /// Waits for a span that matches.
    pub async fn wait_for_span(&self, what: &str, matches: impl Fn(&Span) -> bool) -> Span {
        eventually(what, async || self.spans().into_iter().find(&matches)).await
    }

    /// Waits for the span of a request to this route with this correlation id.
    pub async fn wait_for_request(&self, route: &str, correlation_id: &str) -> Span {
        self.wait_for_span(&format!("{route} {correlation_id}"), |span| {
            let attributes = &span.attributes;
            span.kind == SpanKind::Server
                && attributes.get("http.route").is_some_and(|known| known == route)
                && attributes["correlation_id"] == correlation_id
        })
        .await
    }

    /// Returns the child spans of this span, in order of their start.
    pub fn children_of(&self, parent: &Span) -> Vec<Span> {
        let mut children = self.spans();
        children.retain(|span| span.trace_id == parent.trace_id && span.parent_id == parent.span_id);
        children.sort_by_key(|span| span.started);
        children
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
        let schema = Schema::documented();
        let contents = self.inbox.lock();
        let of_records = |record: &Record| schema.unknown_in_record(&record.target, &record.attributes);
        let mut unknown: BTreeSet<_> =
            contents.spans.iter().flat_map(|span| schema.unknown_in_span(span)).collect();
        unknown.extend(contents.records.iter().flat_map(of_records));
        drop(contents);
        assert_documented(&unknown);
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().expect("a holder of the lock panicked")
    }

    /// Counts a request, and simulates the current behaviour. Returns whether the request is accepted.
    async fn accepts(&self) -> bool {
        let behavior = {
            let mut contents = self.lock();
            contents.requests += 1;
            contents.behavior
        };
        match behavior {
            CollectorBehavior::Accepting => {}
            CollectorBehavior::Slow(pause) => tokio::time::sleep(pause).await,
            CollectorBehavior::Rejecting => return false,
        }
        true
    }
}

impl otlp::Sink for Inbox {
    async fn take(&self, spans: Vec<Span>) -> bool {
        let accepted = self.accepts().await;
        if accepted {
            self.lock().spans.extend(spans);
        }
        accepted
    }

    async fn take_records(&self, records: Vec<Record>) -> bool {
        let accepted = self.accepts().await;
        if accepted {
            self.lock().records.extend(records);
        }
        accepted
    }
}
