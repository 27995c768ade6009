//! Settings of logs, and the variables of OpenTelemetry.
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

/// The exporter of log records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogsExporter {
    /// No export: log lines are only written to standard output and files.
    None,
    /// Export over OTLP, in addition to standard output and files.
    Otlp,
}

fn logs_exporter(text: &str) -> Result<LogsExporter, String> {
    match text {
        "none" => Ok(LogsExporter::None),
        "otlp" => Ok(LogsExporter::Otlp),
        _ => Err("must be none or otlp".into()),
    }
}

/// Checks the exporter of metrics. There is no value to keep, because every accepted value has the same effect.
fn metrics_exporter(text: &str) -> Result<(), String> {
    match text {
        "none" | "prometheus" => Ok(()),
        _ => Err("must be prometheus or none: docs/telemetry-backends.md has a collector that forwards metrics over \
                  OTLP"
            .into()),
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
        /// Number of daily files to keep of each log, that of the service and that of the audit log. One more of each may exist.
        "LOG_FILES_KEPT" files_kept: usize = count, default("14");
    }
    /// OpenTelemetry: variables of its specification.
    opentelemetry: OpenTelemetry {
        /// URL of the receiver of spans and log records. Unset: no export; logs still have trace ids.
        "OTEL_EXPORTER_OTLP_ENDPOINT" endpoint: Url = http_url, optional, no_flag;
        /// `grpc` or `http/protobuf`.
        "OTEL_EXPORTER_OTLP_PROTOCOL" protocol: String = text, default("grpc"), no_flag;
        /// `otlp` exports log records in addition to the log lines, `none` does not.
        "OTEL_LOGS_EXPORTER" logs_exporter: LogsExporter = logs_exporter, default("none"), no_flag;
        /// `prometheus` or `none`: metrics are scraped from `/metrics`, and never pushed.
        "OTEL_METRICS_EXPORTER" metrics_exporter: () = metrics_exporter, default("prometheus"), no_flag;
        /// Name of the service in every signal. Unset: the name of the package.
        "OTEL_SERVICE_NAME" service_name: String = text, optional, no_flag;
        /// Additional attributes of every span and log record, as `key=value,key=value`.
        "OTEL_RESOURCE_ATTRIBUTES" resource_attributes: String = text, optional, no_flag;
        /// Sampler of traces.
        "OTEL_TRACES_SAMPLER" sampler: String = text, default("parentbased_always_on"), no_flag;
        /// Argument of the sampler, such as a ratio.
        "OTEL_TRACES_SAMPLER_ARG" sampler_argument: String = text, optional, no_flag;
        /// Propagators of the trace context.
        "OTEL_PROPAGATORS" propagators: String = text, default("tracecontext,baggage"), no_flag;
        /// Turns spans and the export of log records off.
        "OTEL_SDK_DISABLED" disabled: bool = flag, default("false"), no_flag;
    }
}
