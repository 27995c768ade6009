//! Sampling of traces that untrusted callers started.
use opentelemetry::{
    Context, KeyValue, TraceId,
    trace::{Link, SpanContext, SpanKind, TraceContextExt},
};
use opentelemetry_sdk::trace::{Config, IdGenerator, RandomIdGenerator, SamplingResult, ShouldSample};

/// The sampler that `OTEL_TRACES_SAMPLER` names. It treats a span with an untrusted parent like the start of a new
/// trace.
///
/// For such a span the decision uses a newly generated trace id, because ratio samplers decide by the trace id, which
/// the caller chose. Spans within the service follow the decision of their parent as usual.
#[derive(Debug, Clone)]
pub(super) struct Edge {
    configured: Box<dyn ShouldSample>,
    ids: RandomIdGenerator,
}

/// Marks a context from an untrusted caller. The contexts of inner spans inherit the mark, where it has no effect
/// because their parents are not remote.
#[derive(Debug)]
struct Untrusted;

impl Edge {
    /// Wraps the sampler that the SDK reads from the environment.
    pub(super) fn from_environment() -> Self {
        Self { configured: Config::default().sampler, ids: RandomIdGenerator::default() }
    }

    /// Returns a parent context with the ids of an untrusted caller's span, and without its baggage.
    pub(super) fn untrusted(parent: SpanContext) -> Context {
        Context::new().with_remote_span_context(parent).with_value(Untrusted)
    }
}

impl ShouldSample for Edge {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let strange = |context: &Context| {
            context.get::<Untrusted>().is_some() && context.span().span_context().is_remote()
        };
        let (parent, trace_id) = match parent {
            Some(context) if strange(context) => (None, self.ids.new_trace_id()),
            _ => (parent, trace_id),
        };
        self.configured.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::{
        SpanId, TraceFlags,
        trace::{Span as _, TraceState, Tracer as _, TracerProvider as _},
    };
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;

    fn sampled(edge: Edge, parent: &Context) -> bool {
        let provider = SdkTracerProvider::builder().with_sampler(edge).build();
        let span = provider.tracer("test").start_with_context("request", parent);
        let ids = span.span_context();
        assert_eq!(ids.trace_id(), TraceId::from(42), "the trace goes on, whoever decides");
        ids.is_sampled()
    }

    fn remote(flags: TraceFlags) -> SpanContext {
        SpanContext::new(TraceId::from(42), SpanId::from(7), flags, true, TraceState::default())
    }

    fn edge(root: Sampler) -> Edge {
        Edge { configured: Box::new(Sampler::ParentBased(Box::new(root))), ids: RandomIdGenerator::default() }
    }

    #[test]
    fn an_untrusted_caller_does_not_decide_sampling() {
        let [ordered, forbidden] = [TraceFlags::SAMPLED, TraceFlags::default()].map(remote);
        assert!(!sampled(edge(Sampler::AlwaysOff), &Edge::untrusted(ordered)));
        assert!(sampled(edge(Sampler::AlwaysOn), &Edge::untrusted(forbidden)));
    }

    #[test]
    fn a_trusted_peer_decides() {
        let [ordered, forbidden] = [TraceFlags::SAMPLED, TraceFlags::default()]
            .map(|flags| Context::new().with_remote_span_context(remote(flags)));
        assert!(sampled(edge(Sampler::AlwaysOff), &ordered));
        assert!(!sampled(edge(Sampler::AlwaysOn), &forbidden));
    }

    #[test]
    fn spans_within_follow_their_parent() {
        let provider = SdkTracerProvider::builder().with_sampler(edge(Sampler::AlwaysOn)).build();
        let request = provider
            .tracer("test")
            .start_with_context("request", &Edge::untrusted(remote(TraceFlags::default())));
        let within = Edge::untrusted(remote(TraceFlags::default())).with_span(request);
        assert!(sampled(edge(Sampler::AlwaysOff), &within));
    }
}
