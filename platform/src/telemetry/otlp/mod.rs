//! The OTLP export of spans and log records: its environment variables, its transport, its resource attributes, and the
//! counts of queued and lost items.
//!
//! The SDK reads most `OTEL_*` variables itself, and this module handles the rest.
mod environment;
mod queue;

use std::{panic::resume_unwind, thread, time::Duration};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{Resource, resource::TelemetryResourceDetector};
use uuid::Uuid;

pub(super) use self::{
    environment::{names, warnings},
    queue::Queue,
};
use super::settings::OpenTelemetry;
use crate::{build_info::BuildInfo, settings::Process};

/// The error when the export of a signal cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The protocol is not supported.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL and OTEL_EXPORTER_OTLP_{0}_PROTOCOL must be grpc or http/protobuf")]
    Protocol(&'static str),
    /// The variable with the endpoint of a single signal is invalid. `OTEL_EXPORTER_OTLP_ENDPOINT`, the endpoint of all
    /// signals, is checked with the settings.
    #[error("{name} {rule}")]
    Endpoint {
        /// The name of the variable.
        name: String,
        /// The expected format.
        rule: String,
    },
    /// Log records are to be exported, but no endpoint is set.
    #[error("OTEL_LOGS_EXPORTER=otlp needs OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_LOGS_ENDPOINT")]
    NoEndpoint,
    /// The HTTP client of the exporter could not be created.
    #[error("failed to create the HTTP client of the exporter: {0}")]
    Client(#[source] reqwest::Error),
    /// The exporter rejected its settings.
    #[error("failed to create the exporter: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// A kind of telemetry that is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Logs,
}

impl Signal {
    const ALL: [Self; 2] = [Self::Traces, Self::Logs];

    /// Returns the signal's part of a variable name, such as `TRACES` in `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Logs => "LOGS",
        }
    }
}

/// The connection of an exporter. The exporter itself reads the endpoint, headers and compression from the environment.
/// Over HTTP, the exporter adds a path to the endpoint of all signals, but uses the endpoint of a single signal
/// unchanged. An endpoint that is passed in code overrides both, so this module passes none.
///
/// Both protocols trust the certificates of the operating system, and use no proxy. By default the gRPC exporter trusts
/// no certificate at all (opentelemetry-rust#2008).
pub(super) enum Transport {
    Grpc(Grpc),
    Http(Http),
}

pub(super) struct Grpc {
    timeout: Duration,
    is_encrypted: bool,
}

pub(super) struct Http {
    timeout: Duration,
    client: reqwest::blocking::Client,
}

/// Returns the transport of a signal, or `None` if the signal is not exported.
///
/// # Errors
/// An environment variable of the export is invalid or missing, or the HTTP client cannot be created.
pub(super) fn transport(signal: Signal, settings: &OpenTelemetry) -> Result<Option<Transport>, ExportError> {
    let Some(endpoint) = environment::endpoint(signal, settings)? else { return Ok(None) };
    let timeout = environment::timeout(signal);
    match environment::protocol(signal, settings).as_str() {
        "grpc" => Ok(Some(Transport::Grpc(Grpc { timeout, is_encrypted: endpoint.scheme() == "https" }))),
        "http/protobuf" => {
            crate::outbound::install_tls_provider();
            let thread = thread::spawn(move || {
                reqwest::blocking::Client::builder().no_proxy().timeout(timeout).build()
            });
            // Built in a separate thread, because a blocking client must not be built within the tokio runtime.
            let client =
                thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(ExportError::Client)?;
            Ok(Some(Transport::Http(Http { timeout, client })))
        }
        _ => Err(ExportError::Protocol(signal.name())),
    }
}

impl Grpc {
    pub(super) fn configure<B: WithExportConfig + WithTonicConfig>(self, builder: B) -> B {
        let builder = builder.with_timeout(self.timeout);
        if self.is_encrypted {
            builder.with_tls_config(ClientTlsConfig::new().with_native_roots())
        } else {
            builder
        }
    }
}

impl Http {
    pub(super) fn configure<B: WithExportConfig + WithHttpConfig>(self, builder: B) -> B {
        builder.with_http_client(self.client).with_timeout(self.timeout)
    }
}

/// Returns whether a target belongs to a library that the export uses. Exporting the events of such a target would
/// create further events endlessly.
pub(super) fn is_export_target(target: &str) -> bool {
    ["h2", "hyper", "opentelemetry", "reqwest", "rustls", "tonic", "tower"]
        .iter()
        .any(|name| target.starts_with(name))
}

/// Returns the attributes that describe the process in every signal. `OTEL_RESOURCE_ATTRIBUTES` overrides them, except
/// the service name, which [`service_name`] returns.
pub(super) fn resource(service: &str, process: &Process, settings: &OpenTelemetry) -> Resource {
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
pub fn service_name(settings: &OpenTelemetry) -> String {
    let from_attributes = || {
        let attributes = environment::attributes(settings).into_iter();
        let mut names = attributes.filter(|attribute| attribute.key.as_str() == "service.name");
        names.next().map(|attribute| attribute.value.to_string()).filter(|name| !name.is_empty())
    };
    settings
        .service_name
        .clone()
        .or_else(from_attributes)
        .unwrap_or_else(|| BuildInfo::current().name.to_owned())
}
