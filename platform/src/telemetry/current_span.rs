//! The ids of the current span.
use opentelemetry::{
    SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceContextExt as _},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Returns the trace id of the current span, if there is one.
pub fn current_trace_id() -> Option<TraceId> {
    read_current_span(SpanContext::trace_id)
}

/// Returns the id of the current span, if there is one.
pub fn current_span_id() -> Option<SpanId> {
    read_current_span(SpanContext::span_id)
}

/// Returns the current span as W3C trace context (`traceparent`), to be stored with work that another task may finish.
pub fn current_trace_parent() -> Option<String> {
    read_current_span(|ids| {
        format!("00-{}-{}-{:02x}", ids.trace_id(), ids.span_id(), ids.trace_flags() & TraceFlags::SAMPLED)
    })
}

/// Reads the ids of the current span. `opentelemetry::Context::current()` does not return them, because the tracing
/// layer is built without context activation.
pub(super) fn read_current_span<T>(read: impl FnOnce(&SpanContext) -> T) -> Option<T> {
    let context = Span::current().context();
    let span = context.span();
    let ids = span.span_context();
    ids.is_valid().then(|| read(ids))
}
