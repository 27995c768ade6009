//! Traces: span export, trust in incoming trace headers, and propagation to other services.
//!
//! The SDK reads most `OTEL_*` variables itself, and this module handles the rest. Without an endpoint nothing is
//! exported, but spans still have ids for the logs.
//!
//! **Trust.** A `traceparent` joins the service's spans to the trace of any caller, because it only names ids. The
//! *sampled* flag and the baggage are accepted from trusted peers only. The flag would let a caller cause export
//! costs or suppress tracing, and baggage may contain false data. For other callers the sampling decision is made
//! again, as for a new trace (see [`Edge`]). So an untrusted caller can neither hide from the traces nor flood them.
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

/// The header that carries the correlation id.
pub const CORRELATION_HEADER: &str = "x-correlation-id";

/// Timeout of one export. It is shorter than the specification's ten seconds, so that an unresponsive collector
/// cannot delay the end of the process.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// The error when traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The protocol is not supported.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf")]
    Protocol,
    /// The exporter rejected its settings.
    #[error("failed to create the trace exporter")]
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
    let mut builder = SdkTracerProvider::builder()
        .with_sampler(Edge::from_environment())
        .with_resource(resource(service, process));
    if is_exported(settings) {
        builder = builder.with_span_processor(counted(exporter(settings)?));
    }
    Ok(Some(builder.build()))
}

/// Returns whether spans are exported: an endpoint is set, and `OTEL_TRACES_EXPORTER`, which the SDK does not read,
/// permits the export.
fn is_exported(settings: &Traces) -> bool {
    let has_endpoint = settings.endpoint.is_some() || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some();
    let exporters = set("OTEL_TRACES_EXPORTER").unwrap_or_default();
    has_endpoint && !names(&exporters).any(|name| name == "none")
}

/// Builds the exporter. The exporter itself reads endpoint, headers and compression from the environment. Otherwise it
/// could not distinguish the general endpoint, to which HTTP adds a path, from the traces endpoint, which is used
/// unchanged.
fn exporter(settings: &Traces) -> Result<SpanExporter, TracesError> {
    let protocol = set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL");
    let timeout = timeout();
    let exporter = match protocol.as_deref().unwrap_or(&settings.protocol) {
        "grpc" => SpanExporter::builder().with_tonic().with_timeout(timeout).build()?,
        "http/protobuf" => {
            // The HTTP client is built here, before any other client, and requires an installed cryptography
            // provider.
            let _already_installed = rustls::crypto::ring::default_provider().install_default();
            SpanExporter::builder().with_http().with_timeout(timeout).build()?
        }
        _ => return Err(TracesError::Protocol),
    };
    Ok(exporter)
}

/// Returns the timeout of one export. The specification's variables are in milliseconds.
fn timeout() -> Duration {
    ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"]
        .into_iter()
        .find_map(|name| set(name)?.parse().ok())
        .map_or(EXPORT_TIMEOUT, Duration::from_millis)
}

/// Returns the attributes that describe the process in every span. `OTEL_RESOURCE_ATTRIBUTES` overrides them, except
/// for the service name, which all signals share.
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

/// Returns the service name of every signal: `OTEL_SERVICE_NAME`, or the resource attribute `service.name`, or the
/// package name.
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

/// Returns warnings about these settings, to be logged once the log is set up.
///
/// The specification requires that an unknown value is ignored with a warning. The SDK warns before the log is set
/// up, so the service repeats the warning.
pub(super) fn warnings(settings: &Traces) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in names(&settings.propagators) {
        if !matches!(name, "tracecontext" | "baggage" | "b3" | "b3multi" | "jaeger" | "none") {
            warnings.push(format!(
                "OTEL_PROPAGATORS: ignored {name}; supported values are tracecontext, baggage, b3, b3multi, jaeger \
                 and none"
            ));
        }
    }
    for name in names(&set("OTEL_TRACES_EXPORTER").unwrap_or_default()) {
        if !matches!(name, "otlp" | "none") {
            warnings
                .push(format!("OTEL_TRACES_EXPORTER: ignored {name}; supported values are otlp and none"));
        }
    }
    match settings.sampler.as_str() {
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => {}
        "traceidratio" | "parentbased_traceidratio" => {
            let ratio = settings.sampler_argument.as_deref().and_then(|ratio| ratio.parse::<f64>().ok());
            if !ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)) {
                warnings.push(
                    "OTEL_TRACES_SAMPLER_ARG is not a ratio between 0 and 1: every trace is sampled".to_owned(),
                );
            }
        }
        name => warnings.push(format!(
            "OTEL_TRACES_SAMPLER: ignored {name} and used parentbased_always_on; supported values are always_on, always_off, traceidratio and these three after parentbased_"
        )),
    }
    warnings
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

/// Joins `span`, which must not have been entered yet, to the trace that the request's headers name.
///
/// If the peer is `trusted`, its sampled flag and baggage are accepted.
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
    // This fails if there is no trace layer, or the span is filtered out. Then there is no span to join.
    let _no_traces = span.set_parent(parent);
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// Reads an environment variable that is not in the table of settings. An empty value counts as unset.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}
