//! A receiver of spans and log records over OTLP.
//!
//! One router serves both protocols: gRPC over HTTP/2, and protobuf over HTTP on `/v1/traces` and `/v1/logs`. Both
//! allow gzip compression. A [`Sink`] processes the received data.
use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
pub use opentelemetry_proto::tonic::trace::v1::{span::SpanKind, status::StatusCode as SpanStatus};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::LogRecord,
    trace::v1::{Span as Sent, span},
};
use prost::Message;
use serde::Serialize;
use serde_json::{Value, json};
use tonic::{Status, codec::CompressionEncoding, service::Routes};
use tower_http::decompression::RequestDecompressionLayer;

/// Maximum size of a request in bytes, after decompression. By default an exporter sends at most 512 spans in one
/// request. Such a request is usually far smaller than the maximum.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// Attributes of a span, an event, a log record or a resource. Texts and numbers stay distinct, as in the protocol.
pub type Attributes = BTreeMap<String, Value>;

/// A received span.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace_id: String,
    pub span_id: String,
    /// Empty for the root span of a trace.
    pub parent_id: String,
    pub name: String,
    pub kind: SpanKind,
    pub status: SpanStatus,
    /// Message of the status, usually empty.
    pub status_message: String,
    pub attributes: Attributes,
    pub events: Vec<Event>,
    pub links: Vec<Link>,
    /// Nanoseconds since 1970.
    pub started: u64,
    pub ended: u64,
    /// Resource attributes of the sender, shared by the spans of one `ResourceSpans` message.
    pub resource: Arc<Attributes>,
}

/// An event at one time within a span.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub at: u64,
    pub name: String,
    pub attributes: Attributes,
}

/// A link to another span, usually of another trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    pub trace_id: String,
    pub span_id: String,
}

/// A received log record.
#[derive(Debug, Clone)]
pub struct Record {
    /// Name of the instrumentation scope, which is the target of the log line.
    pub target: String,
    /// Nanoseconds since 1970.
    pub at: u64,
    /// Number of the severity: 9 is `INFO`, 13 is `WARN`, 17 is `ERROR`.
    pub severity: i32,
    pub severity_text: String,
    pub body: Value,
    pub attributes: Attributes,
    /// Empty outside of any span.
    pub trace_id: String,
    pub span_id: String,
    /// Resource attributes of the sender, shared by the records of one `ResourceLogs` message.
    pub resource: Arc<Attributes>,
}

/// A consumer of received spans and log records.
pub trait Sink: Clone + Send + Sync + 'static {
    /// Takes the spans of one request. Returns false to reject the request: with `RESOURCE_EXHAUSTED` over gRPC, and
    /// with status 503 over HTTP.
    fn take(&self, spans: Vec<Span>) -> impl Future<Output = bool> + Send;

    /// Takes the log records of one request, like [`take`](Self::take). By default the records are discarded.
    fn take_records(&self, _records: Vec<Record>) -> impl Future<Output = bool> + Send {
        std::future::ready(true)
    }
}

/// Returns a router with the routes of both protocols.
pub fn router<S: Sink>(sink: S) -> Router {
    let traces = TraceServiceServer::new(Receiver(sink.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let logs = LogsServiceServer::new(Receiver(sink.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let protobuf = Router::new()
        .route("/v1/traces", post(take_spans::<S>))
        .route("/v1/logs", post(take_records::<S>))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(RequestDecompressionLayer::new())
        .with_state(sink);
    // tonic's fallback is removed, so that the caller can merge this router with a router that has a fallback. axum
    // panics if both routers have one.
    Routes::new(traces).add_service(logs).into_axum_router().reset_fallback().merge(protobuf)
}

struct Receiver<S>(S);

fn rejected() -> Status {
    Status::resource_exhausted("the receiver has rejected the request")
}

#[tonic::async_trait]
impl<S: Sink> TraceService for Receiver<S> {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        let taken = self.0.take(spans(request.into_inner())).await;
        taken.then(|| tonic::Response::new(ExportTraceServiceResponse::default())).ok_or_else(rejected)
    }
}

#[tonic::async_trait]
impl<S: Sink> LogsService for Receiver<S> {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, Status> {
        let taken = self.0.take_records(records(request.into_inner())).await;
        taken.then(|| tonic::Response::new(ExportLogsServiceResponse::default())).ok_or_else(rejected)
    }
}

async fn take_spans<S: Sink>(State(sink): State<S>, body: Bytes) -> Result<Response, StatusCode> {
    let request = ExportTraceServiceRequest::decode(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    accepted(sink.take(spans(request)).await, &ExportTraceServiceResponse::default())
}

async fn take_records<S: Sink>(State(sink): State<S>, body: Bytes) -> Result<Response, StatusCode> {
    let request = ExportLogsServiceRequest::decode(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    accepted(sink.take_records(records(request)).await, &ExportLogsServiceResponse::default())
}

fn accepted(taken: bool, response: &impl Message) -> Result<Response, StatusCode> {
    if taken {
        Ok(([(header::CONTENT_TYPE, "application/x-protobuf")], response.encode_to_vec()).into_response())
    } else {
        Err(StatusCode::SERVICE_UNAVAILABLE)
    }
}

fn records(request: ExportLogsServiceRequest) -> Vec<Record> {
    let of_resources = request.resource_logs.into_iter().flat_map(|of_resource| {
        let resource = Arc::new(attributes(of_resource.resource.unwrap_or_default().attributes));
        of_resource.scope_logs.into_iter().flat_map(move |of_scope| {
            let target = of_scope.scope.unwrap_or_default().name;
            let resource = Arc::clone(&resource);
            of_scope.log_records.into_iter().map(move |sent| record(sent, &target, &resource))
        })
    });
    of_resources.collect()
}

fn record(sent: LogRecord, target: &str, resource: &Arc<Attributes>) -> Record {
    Record {
        target: target.to_owned(),
        at: sent.time_unix_nano,
        severity: sent.severity_number,
        severity_text: sent.severity_text,
        body: sent.body.map_or(Value::Null, value),
        attributes: attributes(sent.attributes),
        trace_id: hex::encode(&sent.trace_id),
        span_id: hex::encode(&sent.span_id),
        resource: Arc::clone(resource),
    }
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    let of_resources = request.resource_spans.into_iter().flat_map(|of_resource| {
        let resource = Arc::new(attributes(of_resource.resource.unwrap_or_default().attributes));
        let sent = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        sent.map(move |sent| span(sent, &resource))
    });
    of_resources.collect()
}

fn span(sent: Sent, resource: &Arc<Attributes>) -> Span {
    let kind = sent.kind();
    let status = sent.status.unwrap_or_default();
    Span {
        trace_id: hex::encode(&sent.trace_id),
        span_id: hex::encode(&sent.span_id),
        parent_id: hex::encode(&sent.parent_span_id),
        kind,
        status: status.code(),
        status_message: status.message,
        events: sent.events.into_iter().map(event).collect(),
        links: sent.links.into_iter().map(|link| link_of(&link)).collect(),
        started: sent.start_time_unix_nano,
        ended: sent.end_time_unix_nano,
        attributes: attributes(sent.attributes),
        resource: Arc::clone(resource),
        name: sent.name,
    }
}

fn event(sent: span::Event) -> Event {
    Event { at: sent.time_unix_nano, name: sent.name, attributes: attributes(sent.attributes) }
}

fn link_of(sent: &span::Link) -> Link {
    Link { trace_id: hex::encode(&sent.trace_id), span_id: hex::encode(&sent.span_id) }
}

fn attributes(sent: Vec<KeyValue>) -> Attributes {
    sent.into_iter().map(|pair| (pair.key, pair.value.map_or(Value::Null, value))).collect()
}

fn value(sent: AnyValue) -> Value {
    match sent.value {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::BoolValue(truth)) => json!(truth),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::DoubleValue(number)) => json!(number),
        other => json!(format!("{other:?}")),
    }
}
