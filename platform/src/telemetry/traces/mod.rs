//! Traces: span export, trust in incoming trace headers, and propagation to other services.
//!
//! Without an endpoint nothing is exported, but spans still have ids for the logs.
//!
//! **Trust.** Only a trusted peer's `traceparent` is the parent of a request's span. For any other caller the span
//! starts a new trace, with a *link* to the caller's span. Otherwise a caller could choose the trace id, join another
//! caller's trace, and decide with the *sampled* flag whether this service exports the span. Baggage of untrusted
//! callers is ignored, because it may contain false data.
mod export;
mod propagators;

use std::collections::HashMap;

use axum::http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context,
    baggage::BaggageExt,
    global,
    propagation::{TextMapCompositePropagator, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    propagation::{BaggagePropagator, TraceContextPropagator},
    trace::SdkTracerProvider,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use self::{
    export::counting_processor,
    propagators::{B3Headers, B3Propagator, JaegerPropagator},
};
pub use super::current_span::{current_span_id, current_trace_id, current_trace_parent};
use super::{
    correlation,
    otlp::{self, ExportError, Signal, Transport, names},
    settings::OpenTelemetry,
};

/// The header that carries the correlation id.
pub const CORRELATION_HEADER: &str = "x-correlation-id";

/// Returns the provider of spans, or `None` if `OTEL_SDK_DISABLED` is true.
///
/// Must be called within the tokio runtime, because the gRPC client needs the runtime.
pub(super) fn provider(
    resource: &Resource,
    settings: &OpenTelemetry,
) -> Result<Option<SdkTracerProvider>, ExportError> {
    export::start();
    if settings.disabled {
        return Ok(None);
    }
    let builder = SdkTracerProvider::builder().with_resource(resource.clone());
    let exporter = match otlp::transport(Signal::Traces, settings)? {
        None => return Ok(Some(builder.build())),
        Some(Transport::Grpc(grpc)) => grpc.configure(SpanExporter::builder().with_tonic()).build()?,
        Some(Transport::Http(http)) => http.configure(SpanExporter::builder().with_http()).build()?,
    };
    Ok(Some(builder.with_span_processor(counting_processor(exporter)).build()))
}

/// Installs the propagators that `OTEL_PROPAGATORS` names.
pub(super) fn install_propagators(settings: &OpenTelemetry) {
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

/// Links `span` to the span that started its work. `trace_parent` is the stored result of [`current_trace_parent`].
pub fn link(span: &Span, trace_parent: Option<&str>) {
    let Some(trace_parent) = trace_parent else { return };
    let carrier = HashMap::from([("traceparent".to_owned(), trace_parent.to_owned())]);
    let origin = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let origin = origin.span().span_context().clone();
    if origin.is_valid() {
        span.add_link(origin);
    }
}

/// Adds the trace and the correlation id to the headers of an outbound call. Baggage is removed, because the called
/// service is a third party, to which callers' baggage must not be disclosed.
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context().with_cleared_baggage();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeaderInjector(headers));
    });
    // The propagator writes an empty `tracestate` header, which the specification discourages.
    if headers.get("tracestate").is_some_and(HeaderValue::is_empty) {
        headers.remove("tracestate");
    }
    if let Ok(id) = HeaderValue::from_str(correlation::current_id().as_str()) {
        headers.insert(CORRELATION_HEADER, id);
    }
}

/// Makes the caller's span, which the headers name, the parent of `span` if the peer is `trusted`. Otherwise links
/// `span` to the caller's span. `span` must not have been entered yet.
pub fn join_or_link(headers: &HeaderMap, span: &Span, trusted: bool) {
    let caller = global::get_text_map_propagator(|propagator| {
        let has_context = propagator.fields().any(|field| headers.contains_key(field));
        has_context.then(|| propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers)))
    });
    let Some(caller) = caller else { return };
    if trusted {
        // This fails if there is no trace layer, or the span is filtered out. Then no span is exported that could join
        // the caller's trace.
        let _no_traces = span.set_parent(caller);
    } else {
        // `add_link` ignores an invalid context.
        span.add_link(caller.span().span_context().clone());
    }
}
