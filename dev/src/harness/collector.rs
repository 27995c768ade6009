//! A collector of traces: takes what a service sends over OTLP, on the wire that any backend has, and keeps it.
//!
//! One port speaks both protocols, since both are HTTP: gRPC on HTTP/2, and protobuf on `/v1/traces`. It can be
//! as unwell as collectors are.
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{Span as Sent, span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status, service::Routes};

use super::eventually;

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

/// A span, as it was sent.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace_id: String,
    pub span_id: String,
    /// Empty for the first of its trace.
    pub parent_id: String,
    pub name: String,
    pub kind: SpanKind,
    pub status: SpanStatus,
    pub attributes: BTreeMap<String, Value>,
    /// The traces that it is linked to.
    pub links: Vec<String>,
    /// Nanoseconds since 1970.
    pub started: u64,
    pub ended: u64,
    /// What the service says of itself.
    pub resource: BTreeMap<String, Value>,
}

impl Collector {
    /// Starts one that is well.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let inbox = Inbox::default();
        let router: Router = Routes::new(TraceServiceServer::new(inbox.clone()))
            .into_axum_router()
            .route("/v1/traces", post(take_protobuf).with_state(inbox.clone()));
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

    /// Takes it, or says that it does not.
    async fn take(&self, request: ExportTraceServiceRequest) -> bool {
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
        self.lock().spans.extend(spans(request));
        true
    }
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.take(request.into_inner()).await {
            Ok(Response::new(ExportTraceServiceResponse::default()))
        } else {
            Err(Status::resource_exhausted("it is over its limits"))
        }
    }
}

async fn take_protobuf(State(inbox): State<Inbox>, body: Bytes) -> Result<Vec<u8>, StatusCode> {
    let request = ExportTraceServiceRequest::decode(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    if inbox.take(request).await {
        Ok(ExportTraceServiceResponse::default().encode_to_vec())
    } else {
        Err(StatusCode::SERVICE_UNAVAILABLE)
    }
}

fn spans(request: ExportTraceServiceRequest) -> impl Iterator<Item = Span> {
    request.resource_spans.into_iter().flat_map(|of_resource| {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        let sent = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        sent.map(move |sent| span(sent, &resource))
    })
}

fn span(sent: Sent, resource: &BTreeMap<String, Value>) -> Span {
    Span {
        trace_id: hex::encode(&sent.trace_id),
        span_id: hex::encode(&sent.span_id),
        parent_id: hex::encode(&sent.parent_span_id),
        kind: sent.kind(),
        status: sent.status.clone().unwrap_or_default().code(),
        links: sent.links.iter().map(|link| hex::encode(&link.trace_id)).collect(),
        started: sent.start_time_unix_nano,
        ended: sent.end_time_unix_nano,
        attributes: attributes(sent.attributes),
        resource: resource.clone(),
        name: sent.name,
    }
}

fn attributes(sent: Vec<KeyValue>) -> BTreeMap<String, Value> {
    sent.into_iter().map(|pair| (pair.key, pair.value.map_or(Value::Null, value))).collect()
}

/// Texts and numbers stay apart: on the wire they are.
fn value(sent: AnyValue) -> Value {
    match sent.value {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::BoolValue(truth)) => json!(truth),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::DoubleValue(number)) => json!(number),
        other => json!(format!("{other:?}")),
    }
}
