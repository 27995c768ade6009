//! A collector of traces: takes what a service sends over OTLP and keeps it. It can be as unwell as collectors are.
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{net::TcpListener, task::JoinHandle};

use super::eventually;
use crate::otlp::{self, Span, SpanKind};

/// How a collector meets what it is sent.
#[derive(Debug, Clone, Copy, Default)]
pub enum Mood {
    /// It takes it.
    #[default]
    Well,
    /// It takes it, so much later.
    Slow(Duration),
    /// It refuses it, as one does that is over its limits.
    Refusing,
}

/// A running collector. It ends when this is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    inbox: Inbox,
    server: JoinHandle<()>,
}

/// What has come in so far, and how it is met.
#[derive(Debug, Clone, Default)]
struct Inbox(Arc<Mutex<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    mood: Mood,
    /// Requests that came in, met well or not.
    requests: usize,
    spans: Vec<Span>,
}

impl Collector {
    /// Starts one that is well.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let inbox = Inbox::default();
        let router = otlp::router(inbox.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, inbox, server }
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`, with either protocol.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it meets what it is sent like this.
    pub fn is(&self, mood: Mood) {
        self.inbox.lock().mood = mood;
    }

    /// How many requests came in, met well or not.
    pub fn requests(&self) -> usize {
        self.inbox.lock().requests
    }

    /// Everything that it has taken, in the order in which it came.
    pub fn spans(&self) -> Vec<Span> {
        self.inbox.lock().spans.clone()
    }

    /// Waits for a span.
    pub async fn has(&self, what: &str, fits: impl Fn(&Span) -> bool) -> Span {
        eventually(what, async || self.spans().into_iter().find(&fits)).await
    }

    /// Waits for the span of a request to this route, sent under this correlation id.
    pub async fn has_request(&self, route: &str, correlation_id: &str) -> Span {
        self.has(&format!("{route} {correlation_id}"), |span| {
            let attributes = &span.attributes;
            span.kind == SpanKind::Server
                && attributes.get("http.route").is_some_and(|known| known == route)
                && attributes["correlation_id"] == correlation_id
        })
        .await
    }

    /// The spans right below this one, in the order in which they began.
    pub fn below(&self, parent: &Span) -> Vec<Span> {
        let mut children = self.spans();
        children.retain(|span| span.trace_id == parent.trace_id && span.parent_id == parent.span_id);
        children.sort_by_key(|span| span.started);
        children
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().expect("nobody panics with the inbox in hand")
    }
}

impl otlp::Sink for Inbox {
    async fn take(&self, spans: Vec<Span>) -> bool {
        let mood = {
            let mut contents = self.lock();
            contents.requests += 1;
            contents.mood
        };
        match mood {
            Mood::Well => {}
            Mood::Slow(pause) => tokio::time::sleep(pause).await,
            Mood::Refusing => return false,
        }
        self.lock().spans.extend(spans);
        true
    }
}
