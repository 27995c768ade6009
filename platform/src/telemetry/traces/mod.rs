//! Traces: where spans go, whom we believe about them, and how a trace goes on in other services.
//!
//! The SDK reads most of the `OTEL_*` variables by itself; what stands here is what it leaves to us. Without
//! an endpoint nothing is exported, and spans still have ids for the logs.
//!
//! **Whom we believe.** A `traceparent` joins our spans to the caller's trace, whoever the caller is: it only
//! names ids. Its *sampled* flag is an order to spend money or to look away, and its baggage is what it wants
//! us to believe; both are taken from trusted peers only. For anybody else the decision is
//! made anew, as for a trace that begins here (see [`Edge`]), so that no stranger can hide from the traces
//! or flood them.
mod export;
mod propagators;
mod sampling;

use std::{collections::HashMap, env, time::Duration};

use axum::http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    baggage::BaggageExt,
    global,
    propagation::{TextMapCompositePropagator, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::{BaggagePropagator, TraceContextPropagator},
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::SdkTracerProvider,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use self::{
    export::counted,
    propagators::{B3Headers, B3Propagator, JaegerPropagator},
    sampling::Edge,
};
use super::correlation;
pub use super::current_span::{current_span_id, current_trace_id, current_trace_parent};
use super::settings::Traces;
use crate::{build_info::BuildInfo, settings::Process};

/// Where the correlation id travels.
pub const CORRELATION_HEADER: &str = "x-correlation-id";

/// Below the specification's ten seconds: a collector that does not answer must not keep the process alive.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A protocol that we do not speak.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf")]
    Protocol,
    /// The exporter refused its settings.
    #[error("the exporter of traces cannot be built")]
    Exporter(#[from] ExporterBuildError),
}

/// The provider of spans, or `None` where `OTEL_SDK_DISABLED` says so.
///
/// Must be called within the runtime: the gRPC client lives there.
pub(super) fn provider(
    service: &str,
    process: &Process,
    settings: &Traces,
) -> Result<Option<SdkTracerProvider>, TracesError> {
    export::start();
    if settings.disabled {
        return Ok(None);
    }
    let mut builder = SdkTracerProvider::builder()
        .with_sampler(Edge::from_environment())
        .with_resource(resource(service, process));
    if is_exported(settings) {
        builder = builder.with_span_processor(counted(exporter(settings)?));
    }
    Ok(Some(builder.build()))
}

/// Whether spans leave the process: there is somewhere to send them, and `OTEL_TRACES_EXPORTER`, which the SDK does
/// not read, has nothing against it.
fn is_exported(settings: &Traces) -> bool {
    let has_endpoint = settings.endpoint.is_some() || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some();
    let exporters = set("OTEL_TRACES_EXPORTER").unwrap_or_default();
    has_endpoint && !names(&exporters).any(|name| name == "none")
}

/// The exporter. It reads endpoint, headers and compression from the environment itself: only there does it
/// tell the general endpoint, to which HTTP adds a path, from the one for traces, which is taken as it is.
fn exporter(settings: &Traces) -> Result<SpanExporter, TracesError> {
    let protocol = set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL");
    let timeout = timeout();
    let exporter = match protocol.as_deref().unwrap_or(&settings.protocol) {
        "grpc" => SpanExporter::builder().with_tonic().with_timeout(timeout).build()?,
        "http/protobuf" => {
            // The HTTP client is built here, on the way to any other, and needs to know its cryptography.
            let _already_installed = rustls::crypto::ring::default_provider().install_default();
            SpanExporter::builder().with_http().with_timeout(timeout).build()?
        }
        _ => return Err(TracesError::Protocol),
    };
    Ok(exporter)
}

/// How long one export may take; the specification's variables have it in milliseconds.
fn timeout() -> Duration {
    ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"]
        .into_iter()
        .find_map(|name| set(name)?.parse().ok())
        .map_or(EXPORT_TIMEOUT, Duration::from_millis)
}

/// What every span says of the process. What `OTEL_RESOURCE_ATTRIBUTES` says has the last word, but for the
/// name, which all signals share.
fn resource(service: &str, process: &Process) -> Resource {
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.version", BuildInfo::current().version),
            KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
            KeyValue::new("deployment.environment.name", process.environment.as_str()),
        ])
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())])
        .with_service_name(service.to_owned())
        .build()
}

/// The name of the service in every signal: `OTEL_SERVICE_NAME`, or `service.name` among the resource's
/// attributes, or the package's.
pub(super) fn service_name(settings: &Traces) -> String {
    let among_attributes = || {
        let attributes = settings.resource_attributes.as_deref()?;
        attributes.split(',').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key.trim() == "service.name" && !value.trim().is_empty()).then(|| value.trim().to_owned())
        })
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

/// What somebody should know about these settings, once there is a log to say it in.
///
/// The specification wants a value that is not known to be warned about and ignored. The SDK does that
/// before there is a log, so we say it again.
pub(super) fn warnings(settings: &Traces) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in names(&settings.propagators) {
        if !matches!(name, "tracecontext" | "baggage" | "b3" | "b3multi" | "jaeger" | "none") {
            warnings.push(format!(
                "OTEL_PROPAGATORS: {name} is ignored; supported are tracecontext, baggage, b3, b3multi, jaeger \
                 and none"
            ));
        }
    }
    for name in names(&set("OTEL_TRACES_EXPORTER").unwrap_or_default()) {
        if !matches!(name, "otlp" | "none") {
            warnings.push(format!("OTEL_TRACES_EXPORTER: {name} is ignored; supported are otlp and none"));
        }
    }
    match settings.sampler.as_str() {
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => {}
        "traceidratio" | "parentbased_traceidratio" => {
            let ratio = settings.sampler_argument.as_deref().and_then(|ratio| ratio.parse::<f64>().ok());
            if !ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)) {
                warnings.push(
                    "OTEL_TRACES_SAMPLER_ARG is not a ratio between 0 and 1: every trace is kept".to_owned(),
                );
            }
        }
        name => warnings.push(format!(
            "OTEL_TRACES_SAMPLER: {name} is not supported, parentbased_always_on is used; supported are \
             always_on, always_off, traceidratio and these three after parentbased_"
        )),
    }
    warnings
}

/// Links `span` to the one that began its work, as [`current_trace_parent`] stored it.
pub fn link(span: &Span, trace_parent: Option<&str>) {
    let Some(trace_parent) = trace_parent else { return };
    let carrier = HashMap::from([("traceparent".to_owned(), trace_parent.to_owned())]);
    let began = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let began = began.span().span_context().clone();
    if began.is_valid() {
        span.add_link(began);
    }
}

/// Lets an outbound call go on in this trace and under this correlation id. Baggage stays: whom we call is another
/// house, and what callers have put into it is not ours to give away.
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context().with_cleared_baggage();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeaderInjector(headers));
    });
    // The propagator writes it empty; the specification would rather not have it then.
    if headers.get("tracestate").is_some_and(HeaderValue::is_empty) {
        headers.remove("tracestate");
    }
    if let Ok(id) = HeaderValue::from_str(correlation::current_id().as_str()) {
        headers.insert(CORRELATION_HEADER, id);
    }
}

/// Joins `span`, which nobody has entered yet, to the trace that the request's headers name.
///
/// `trusted` says whether the peer is one whose sampled flag and baggage we believe.
pub fn set_parent_from(headers: &HeaderMap, span: &Span, trusted: bool) {
    let found = global::get_text_map_propagator(|propagator| {
        let says_something = propagator.fields().any(|field| headers.contains_key(field));
        says_something.then(|| propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers)))
    });
    let Some(mut parent) = found else { return };
    if !trusted {
        let ids = parent.span().span_context().clone();
        if !ids.is_valid() {
            return;
        }
        parent = Edge::untrusted(ids);
    }
    // It fails where there is no layer for traces, or the span is filtered out: then there is nothing to join.
    let _no_traces = span.set_parent(parent);
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// An environment variable that is not in the table of settings; empty is unset.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}
