//! Settings of logs and traces.
use std::path::PathBuf;

use url::Url;

use crate::settings::values::{count, directory, flag, http_url, text};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for a terminal.
    Pretty,
    /// One JSON object per line.
    Json,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "pretty" => Ok(LogFormat::Pretty),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be pretty or json".into()),
    }
}

crate::groups! {
    /// Logs.
    logs: Logs {
        /// `pretty` or `json`. Unset: pretty on a terminal, otherwise json.
        "LOG_FORMAT" format: LogFormat = log_format, optional;
        /// Log filter in the syntax of `tracing`. `app` names all code of the service. Unset: depends on `APP_ENV`.
        "RUST_LOG" filter: String = text, optional;
        /// Directory of daily log files, in addition to standard output.
        "LOG_DIRECTORY" directory: PathBuf = directory, optional;
        /// Number of daily log files to keep.
        "LOG_FILES_KEPT" files_kept: usize = count, default("14");
    }
    /// Traces: variables of the OpenTelemetry specification.
    traces: Traces {
        /// URL of the receiver of spans. Unset: no export; logs still have trace ids.
        "OTEL_EXPORTER_OTLP_ENDPOINT" endpoint: Url = http_url, optional, no_flag;
        /// `grpc` or `http/protobuf`.
        "OTEL_EXPORTER_OTLP_PROTOCOL" protocol: String = text, default("grpc"), no_flag;
        /// Name of the service in every signal. Unset: the name of the package.
        "OTEL_SERVICE_NAME" service_name: String = text, optional, no_flag;
        /// Additional attributes of every span, as `key=value,key=value`.
        "OTEL_RESOURCE_ATTRIBUTES" resource_attributes: String = text, optional, no_flag;
        /// Sampler of traces.
        "OTEL_TRACES_SAMPLER" sampler: String = text, default("parentbased_always_on"), no_flag;
        /// Argument of the sampler, such as a ratio.
        "OTEL_TRACES_SAMPLER_ARG" sampler_argument: String = text, optional, no_flag;
        /// Propagators of the trace context.
        "OTEL_PROPAGATORS" propagators: String = text, default("tracecontext,baggage"), no_flag;
        /// Turns all spans off.
        "OTEL_SDK_DISABLED" disabled: bool = flag, default("false"), no_flag;
    }
}
