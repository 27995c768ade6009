//! Traces: span export, trust in incoming trace headers, and propagation to other services.
//!
//! The SDK reads most `OTEL_*` variables itself, and this module handles the rest. Without an endpoint nothing is
//! exported, but spans still have ids for the logs.
//!
//! **Trust.** Only a trusted peer's `traceparent` is the parent of a request's span. For any other caller the span begins
//! a new trace, with a *link* to the caller's span. Otherwise a caller could choose the trace id, put its requests into
//! the trace of another caller, and decide with the *sampled* flag whether they are exported. Baggage of untrusted
//! callers is ignored, because it may contain false data.
mod environment;
mod export;
mod propagators;

use std::{collections::HashMap, panic::resume_unwind, thread};

use axum::http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    baggage::BaggageExt,
    global,
    propagation::{TextMapCompositePropagator, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource,
    propagation::{BaggagePropagator, TraceContextPropagator},
    resource::TelemetryResourceDetector,
    trace::SdkTracerProvider,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::Url;
use uuid::Uuid;

pub(super) use self::environment::warnings;
use self::{
    environment::names,
    export::counted,
    propagators::{B3Headers, B3Propagator, JaegerPropagator},
};
use super::correlation;
pub use super::current_span::{current_span_id, current_trace_id, current_trace_parent};
use super::settings::Traces;
use crate::{build_info::BuildInfo, settings::Process};

/// The header that carries the correlation id.
pub const CORRELATION_HEADER: &str = "x-correlation-id";

/// The error when traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The protocol is not supported.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf")]
    Protocol,
    /// The endpoint for traces alone is invalid. The general one is in the table of settings.
    #[error("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT {0}")]
    Endpoint(String),
    /// The HTTP client of the exporter could not be created.
    #[error("the client that exports traces cannot be built: {0}")]
    Client(#[source] reqwest::Error),
    /// The exporter rejected its settings.
    #[error("failed to create the trace exporter: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// Returns the provider of spans, or `None` if `OTEL_SDK_DISABLED` is set.
///
/// Must be called within the runtime, because the gRPC client needs it.
pub(super) fn provider(
    service: &str,
    process: &Process,
    settings: &Traces,
) -> Result<Option<SdkTracerProvider>, TracesError> {
    export::start();
    if settings.disabled {
        return Ok(None);
    }
    let mut builder = SdkTracerProvider::builder().with_resource(resource(service, process, settings));
    if let Some(endpoint) = environment::endpoint(settings)? {
        builder = builder.with_span_processor(counted(exporter(settings, &endpoint)?));
    }
    Ok(Some(builder.build()))
}

/// Builds the exporter. The exporter itself reads endpoint, headers and compression from the environment. Otherwise it
/// could not distinguish the general endpoint, to which HTTP adds a path, from the traces endpoint, which is used
/// unchanged.
///
/// Both protocols trust the certificates of the operating system, and use no proxy. By default the gRPC exporter trusts
/// no certificate at all (opentelemetry-rust#2008).
fn exporter(settings: &Traces, endpoint: &Url) -> Result<SpanExporter, TracesError> {
    let timeout = environment::timeout();
    match environment::protocol(settings).as_str() {
        "grpc" => {
            let mut builder = SpanExporter::builder().with_tonic().with_timeout(timeout);
            if endpoint.scheme() == "https" {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
            }
            Ok(builder.build()?)
        }
        "http/protobuf" => {
            crate::outbound::install_tls_provider();
            let building = thread::spawn(move || {
                reqwest::blocking::Client::builder().no_proxy().timeout(timeout).build()
            });
            // The thread exists because a blocking client must not be built within the runtime.
            let client =
                building.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(TracesError::Client)?;
            Ok(SpanExporter::builder().with_http().with_http_client(client).with_timeout(timeout).build()?)
        }
        _ => Err(TracesError::Protocol),
    }
}

/// Returns the attributes that describe the process in every span. `OTEL_RESOURCE_ATTRIBUTES` overrides them, except
/// for the service name, which all signals share.
fn resource(service: &str, process: &Process, settings: &Traces) -> Resource {
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.version", BuildInfo::current().version),
            KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
            KeyValue::new("deployment.environment.name", process.environment.as_str()),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(environment::attributes(settings))
        .with_service_name(service.to_owned())
        .build()
}

/// Returns the service name of every signal: `OTEL_SERVICE_NAME`, or the resource attribute `service.name`, or the
/// package name.
pub fn service_name(settings: &Traces) -> String {
    let among_attributes = || {
        let attributes = environment::attributes(settings).into_iter();
        let mut names = attributes.filter(|attribute| attribute.key.as_str() == "service.name");
        names.next().map(|attribute| attribute.value.to_string()).filter(|name| !name.is_empty())
    };
    settings
        .service_name
        .clone()
        .or_else(among_attributes)
        .unwrap_or_else(|| BuildInfo::current().name.to_owned())
}

/// Installs the propagators that `OTEL_PROPAGATORS` names.
pub(super) fn propagate(settings: &Traces) {
    let propagators =
        names(&settings.propagators).filter_map(|name| -> Option<Box<dyn TextMapPropagator + Send + Sync>> {
            match name {
                "tracecontext" => Some(Box::new(TraceContextPropagator::new())),
                "baggage" => Some(Box::new(BaggagePropagator::new())),
                "b3" => Some(Box::new(B3Propagator::new(B3Headers::Single))),
                "b3multi" => Some(Box::new(B3Propagator::new(B3Headers::Multiple))),
                "jaeger" => Some(Box::new(JaegerPropagator::new())),
                _ => None,
            }
        });
    global::set_text_map_propagator(TextMapCompositePropagator::new(propagators.collect()));
}

/// Links `span` to the span that started its work, as stored by [`current_trace_parent`].
pub fn link(span: &Span, trace_parent: Option<&str>) {
    let Some(trace_parent) = trace_parent else { return };
    let carrier = HashMap::from([("traceparent".to_owned(), trace_parent.to_owned())]);
    let began = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let began = began.span().span_context().clone();
    if began.is_valid() {
        span.add_link(began);
    }
}

/// Adds the trace and the correlation id to an outbound call. Baggage is removed: the called service is a third
/// party, and the callers' baggage must not be disclosed to it.
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context().with_cleared_baggage();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeaderInjector(headers));
    });
    // The propagator writes an empty header, which the specification discourages.
    if headers.get("tracestate").is_some_and(HeaderValue::is_empty) {
        headers.remove("tracestate");
    }
    if let Ok(id) = HeaderValue::from_str(correlation::current_id().as_str()) {
        headers.insert(CORRELATION_HEADER, id);
    }
}

/// Makes the span that the request's headers name the parent of `span` if the peer is `trusted`, and otherwise links
/// `span` to it. `span` must not have been entered yet.
pub fn join_or_link(headers: &HeaderMap, span: &Span, trusted: bool) {
    let found = global::get_text_map_propagator(|propagator| {
        let says_something = propagator.fields().any(|field| headers.contains_key(field));
        says_something.then(|| propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers)))
    });
    let Some(caller) = found else { return };
    if trusted {
        // This fails if there is no trace layer, or the span is filtered out. Then there is no span to join.
        let _no_traces = span.set_parent(caller);
    } else {
        // An invalid context is not linked.
        span.add_link(caller.span().span_context().clone());
    }
}
