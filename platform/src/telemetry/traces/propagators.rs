//! The propagators of `OTEL_PROPAGATORS` that the SDK lacks: B3 and Jaeger.
//!
//! Both formats carry the ids and the sampled flag of `traceparent` in another notation. Some other services still
//! support only B3 or only Jaeger. Both are implemented here, because the crate for Jaeger supports OpenTelemetry only
//! up to 0.32, and the crate for B3 is deprecated.
use opentelemetry::{
    Context, SpanId, TraceFlags, TraceId,
    propagation::{Extractor, Injector, TextMapPropagator, text_map_propagator::FieldIter},
    trace::{SpanContext, TraceContextExt, TraceState},
};

const JAEGER: &str = "uber-trace-id";
const B3: &str = "b3";
const B3_TRACE_ID: &str = "x-b3-traceid";
const B3_SPAN_ID: &str = "x-b3-spanid";
const B3_SAMPLED: &str = "x-b3-sampled";
const B3_FLAGS: &str = "x-b3-flags";

/// The header format that a B3 propagator writes. Every B3 propagator reads both formats, as the specification
/// requires.
#[derive(Debug, Clone, Copy)]
pub(super) enum B3Headers {
    /// One header: `b3: {trace id}-{span id}-{sampled}`
    Single,
    /// Three headers: `x-b3-traceid`, `x-b3-spanid`, `x-b3-sampled`
    Multiple,
}

/// Zipkin's B3 format.
#[derive(Debug)]
pub(super) struct B3Propagator {
    headers: B3Headers,
    fields: Vec<String>,
}

/// Jaeger's format: `uber-trace-id: {trace id}:{span id}:{parent, which is always 0}:{flags}`
#[derive(Debug)]
pub(super) struct JaegerPropagator {
    fields: Vec<String>,
}

impl B3Propagator {
    pub(super) fn new(headers: B3Headers) -> Self {
        Self {
            headers,
            fields: [B3, B3_TRACE_ID, B3_SPAN_ID, B3_SAMPLED, B3_FLAGS].map(str::to_owned).into(),
        }
    }
}

impl JaegerPropagator {
    pub(super) fn new() -> Self {
        Self { fields: vec![JAEGER.to_owned()] }
    }
}

impl TextMapPropagator for B3Propagator {
    fn inject_context(&self, context: &Context, injector: &mut dyn Injector) {
        let span = context.span();
        let ids = span.span_context();
        if !ids.is_valid() {
            return;
        }
        let sampled = if ids.is_sampled() { "1" } else { "0" };
        match self.headers {
            B3Headers::Single => {
                injector.set(B3, format!("{}-{}-{sampled}", ids.trace_id(), ids.span_id()));
            }
            B3Headers::Multiple => {
                injector.set(B3_TRACE_ID, ids.trace_id().to_string());
                injector.set(B3_SPAN_ID, ids.span_id().to_string());
                injector.set(B3_SAMPLED, sampled.to_owned());
            }
        }
    }

    fn extract_with_context(&self, context: &Context, extractor: &dyn Extractor) -> Context {
        with_remote_span(context, single(extractor).or_else(|| multiple(extractor)))
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&self.fields)
    }
}

fn single(extractor: &dyn Extractor) -> Option<SpanContext> {
    let mut parts = extractor.get(B3)?.split('-');
    let (trace_id, span_id) = (parts.next()?, parts.next()?);
    remote(trace_id, span_id, is_sampled_in_b3(parts.next()))
}

fn multiple(extractor: &dyn Extractor) -> Option<SpanContext> {
    let debug = extractor.get(B3_FLAGS) == Some("1");
    let sampled = debug || is_sampled_in_b3(extractor.get(B3_SAMPLED));
    remote(extractor.get(B3_TRACE_ID)?, extractor.get(B3_SPAN_ID)?, sampled)
}

/// Returns whether the B3 state means sampled. A missing state leaves the decision to this service, and counts as
/// sampled, so that the caller's trace includes the spans of this service.
fn is_sampled_in_b3(state: Option<&str>) -> bool {
    state.is_none_or(|state| matches!(state, "1" | "d" | "true"))
}

impl TextMapPropagator for JaegerPropagator {
    fn inject_context(&self, context: &Context, injector: &mut dyn Injector) {
        let span = context.span();
        let ids = span.span_context();
        if ids.is_valid() {
            let flags = u8::from(ids.is_sampled());
            injector.set(JAEGER, format!("{}:{}:0:{flags}", ids.trace_id(), ids.span_id()));
        }
    }

    fn extract_with_context(&self, context: &Context, extractor: &dyn Extractor) -> Context {
        with_remote_span(context, jaeger(extractor))
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&self.fields)
    }
}

fn jaeger(extractor: &dyn Extractor) -> Option<SpanContext> {
    // Some clients percent-encode the colons, as in a URL.
    let header = extractor.get(JAEGER)?.replace("%3A", ":");
    let mut parts = header.split(':');
    let (trace_id, span_id, _parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    remote(trace_id, span_id, flags & 1 == 1)
}

fn with_remote_span(context: &Context, found: Option<SpanContext>) -> Context {
    found.map_or_else(|| context.clone(), |ids| context.with_remote_span_context(ids))
}

/// Returns the span context of a caller, or `None` if an id is malformed or zero. B3 and Jaeger allow shorter ids,
/// which are padded with zeros on the left.
fn remote(trace_id: &str, span_id: &str, sampled: bool) -> Option<SpanContext> {
    let is_hex_id = |id: &str, max_length: usize| {
        (1..=max_length).contains(&id.len()) && id.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    if !is_hex_id(trace_id, 32) || !is_hex_id(span_id, 16) {
        return None;
    }
    let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace_id, span_id) = (TraceId::from_hex(trace_id).ok()?, SpanId::from_hex(span_id).ok()?);
    let ids = SpanContext::new(trace_id, span_id, flags, true, TraceState::default());
    ids.is_valid().then_some(ids)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Returns the trace id, the span id and the sampled flag that the propagator reads from these headers.
    fn read(propagator: &dyn TextMapPropagator, pairs: &[(&str, &str)]) -> Option<(String, String, bool)> {
        let context = propagator.extract_with_context(&Context::new(), &headers(pairs));
        let span = context.span();
        let ids = span.span_context();
        let found = || (ids.trace_id().to_string(), ids.span_id().to_string(), ids.is_sampled());
        ids.is_valid().then(found)
    }

    fn written(propagator: &dyn TextMapPropagator, flags: TraceFlags) -> HashMap<String, String> {
        let (trace_id, span_id) = (TraceId::from_hex(TRACE).unwrap(), SpanId::from_hex(SPAN).unwrap());
        let ids = SpanContext::new(trace_id, span_id, flags, false, TraceState::default());
        let mut headers = HashMap::new();
        propagator.inject_context(&Context::new().with_remote_span_context(ids), &mut headers);
        headers
    }

    #[test]
    fn injected_trace_headers_are_extracted_again() {
        let propagators: [&dyn TextMapPropagator; 3] = [
            &B3Propagator::new(B3Headers::Single),
            &B3Propagator::new(B3Headers::Multiple),
            &JaegerPropagator::new(),
        ];
        for propagator in propagators {
            for flags in [TraceFlags::SAMPLED, TraceFlags::default()] {
                let headers = written(propagator, flags);
                let pairs: Vec<_> =
                    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                let expected = (TRACE.to_owned(), SPAN.to_owned(), flags.is_sampled());
                assert_eq!(read(propagator, &pairs), Some(expected), "{headers:?}");
                assert!(headers.keys().all(|name| propagator.fields().any(|field| field == name)));
            }
        }
    }

    #[test]
    fn b3_and_jaeger_headers_follow_their_specifications() {
        let sampled = TraceFlags::SAMPLED;
        let single = headers(&[("b3", &format!("{TRACE}-{SPAN}-1"))]);
        assert_eq!(written(&B3Propagator::new(B3Headers::Single), sampled), single);
        let multiple = headers(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")]);
        assert_eq!(written(&B3Propagator::new(B3Headers::Multiple), sampled), multiple);
        let jaeger = headers(&[("uber-trace-id", &format!("{TRACE}:{SPAN}:0:1"))]);
        assert_eq!(written(&JaegerPropagator::new(), sampled), jaeger);
    }

    #[test]
    fn short_ids_and_missing_states_are_parsed() {
        let b3 = B3Propagator::new(B3Headers::Single);
        let long = || ("0".repeat(16) + "a3ce929d0e0e4736", SPAN.to_owned(), true);
        assert_eq!(read(&b3, &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7")]), Some(long()));
        assert_eq!(
            read(&b3, &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-d-05e3ac9a4f6e3b90")]),
            Some(long())
        );
        let jaeger = [("uber-trace-id", "a3ce929d0e0e4736%3Af067aa0ba902b7%3A0%3A3")];
        assert_eq!(read(&JaegerPropagator::new(), &jaeger), Some(long()));
    }

    #[test]
    fn a_malformed_header_starts_a_new_trace() {
        let b3 = B3Propagator::new(B3Headers::Single);
        for value in ["", "0", "1", "-", "xyz-00f067aa0ba902b7-1", &format!("{TRACE}0-{SPAN}-1")] {
            assert_eq!(read(&b3, &[("b3", value)]), None, "{value}");
        }
        let zero = format!("{}:{SPAN}:0:1", "0".repeat(32));
        for value in ["", ":::", "1:2:0:loud", "+1:2:0:1", &zero] {
            assert_eq!(read(&JaegerPropagator::new(), &[("uber-trace-id", value)]), None, "{value}");
        }
    }
}
