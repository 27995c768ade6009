//! Logs, traces, metrics, and the correlation between them.
//!
//! [`init`] sets up everything once, before the service starts. [`Telemetry::flush`] ends telemetry, after the service
//! has stopped. In between, all code can log, open spans and update metrics without a handle. The context of the task
//! adds the ids of the request and the user to log lines.
pub mod correlation;
mod current_span;
pub mod logs;
pub mod metrics;
mod otlp;
mod panics;
mod settings;
pub mod traces;

use std::{thread, time::Duration};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::{runtime::Handle, task, time::Instant};
use tracing::{Level, Metadata, subscriber::Interest};
use tracing_subscriber::{
    filter::{FilterExt, LevelFilter, dynamic_filter_fn, filter_fn},
    layer::{Layer, SubscriberExt},
    util::SubscriberInitExt,
};

use self::logs::{Guards, Lines, Records};

pub use self::logs::LogFilter;
pub use self::otlp::service_name;
pub use self::settings::{LogFormat, Logs, LogsExporter, OpenTelemetry};
use crate::{build_info::BuildInfo, settings::Process};

/// The error when telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The log filter is invalid.
    #[error("RUST_LOG is not a log filter: {0}")]
    Filter(String),
    /// The log sinks cannot be opened, or the export of log records cannot be set up.
    #[error(transparent)]
    Logs(#[from] logs::LogsError),
    /// The export of spans cannot be set up.
    #[error(transparent)]
    Export(#[from] otlp::ExportError),
    /// There is no Tokio runtime, which the exporters need.
    #[error("telemetry must be initialized within the Tokio runtime")]
    NoRuntime,
    /// Telemetry is already set up in this process.
    #[error("telemetry is already initialized")]
    Twice,
}

/// The telemetry of the process.
pub struct Telemetry {
    filter: LogFilter,
    spans: Option<SdkTracerProvider>,
    records: Option<Records>,
    lines: Guards,
}

/// Sets up logs, traces and metrics for the whole process.
///
/// # Errors
/// A setting cannot be applied, such as an invalid filter, a directory that is not writable, or an unknown protocol. Or
/// there is no Tokio runtime, or telemetry is already initialized.
pub fn init(process: &Process, logs: &Logs, opentelemetry: &OpenTelemetry) -> Result<Telemetry, InitError> {
    let runtime = Handle::try_current().map_err(|_| InitError::NoRuntime)?;
    let service = otlp::service_name(opentelemetry);
    let (configured, filter) =
        logs::reloadable(process.environment, logs.filter.as_deref()).map_err(InitError::Filter)?;
    let resource = otlp::resource(&service, process, opentelemetry);
    let spans = traces::provider(&resource, opentelemetry)?;
    traces::install_propagators(opentelemetry);
    let records = Records::start(&resource, opentelemetry)?;
    let (sinks, guards) = logs::open(logs, records.clone())?;

    // The log layer is added first, directly to the `Registry`, because the type of the reload handle in `LogFilter`
    // names the subscriber below the layer. Each part of the filter has a level hint, because a combined filter has a
    // hint only if both of its parts have one. Without a hint, the filter would be evaluated for every `trace!`.
    let events = dynamic_filter_fn(|metadata, _| may_be_logged(metadata))
        .with_callsite_filter(callsite_interest)
        .with_max_level_hint(LevelFilter::TRACE);
    // Audit log lines of level `info` or more severe pass, whatever the configured filter is.
    let audit = filter_fn(|metadata| *metadata.level() <= Level::INFO && logs::is_audit(metadata.target()))
        .with_max_level_hint(LevelFilter::INFO);
    let lines = Lines::new(&service, sinks, records.clone()).with_filter(events.and(configured.or(audit)));
    let spans_layer = spans.as_ref().map(|provider| {
        // Each of these options, if enabled, costs time in every span. The span's name and attributes already contain
        // the useful information.
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(BuildInfo::current().name))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(filter_fn(is_traced).with_max_level_hint(LevelFilter::INFO))
    });
    tracing_subscriber::registry().with(lines).with(spans_layer).try_init().map_err(|_| InitError::Twice)?;

    panics::start();
    metrics::start(&runtime);
    for warning in otlp::warnings(opentelemetry) {
        tracing::warn!("{warning}");
    }
    Ok(Telemetry { filter, spans, records, lines: guards })
}

/// Returns whether the log filter may enable a log line for this metadata. Spans never become log lines, so their
/// fields are not stored. At `trace`, libraries log the headers and values that they process, which may be secret. So
/// no filter can enable those lines.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let is_ours = ["app", "platform", "access", "audit"]
        .contains(&metadata.target().split("::").next().unwrap_or_default());
    metadata.is_event() && (*metadata.level() <= Level::DEBUG || is_ours)
}

/// Returns `never` for metadata that no filter can enable, and `sometimes` for all other metadata, even for events that
/// are always enabled. `always` is not used because of a bug in tracing-subscriber 0.3.23. After each statement, sqlx
/// asks through the `log` crate whether an event would be logged, and the filter's answer stays in a thread-local
/// variable. For an event with the interest `always`, the filter is not evaluated again. The leftover answer would apply
/// to this event, which could be lost.
fn callsite_interest(metadata: &Metadata<'_>) -> Interest {
    if may_be_logged(metadata) { Interest::sometimes() } else { Interest::never() }
}

/// Returns whether metadata becomes a span or a span event. Spans need at least the level `info`, and events at least
/// `warn`. Spans and events of the libraries that the export uses are excluded.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    let level = if metadata.is_span() { Level::INFO } else { Level::WARN };
    *metadata.level() <= level && !otlp::is_export_target(metadata.target())
}

impl Telemetry {
    /// Returns the log filter, to be read and changed.
    pub fn log_filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Exports the remaining spans and log records, and writes the remaining log lines, until about `deadline`. Later
    /// lines are lost, so callers must call this function last.
    ///
    /// Both exports run concurrently. Each gets the time until `deadline` minus `WRITE_TIMEOUT`, but at least half of
    /// the time until `deadline`. Spans and records that the collector has not accepted by then are lost. They are
    /// counted, and their numbers are logged.
    pub async fn flush(self, deadline: Instant) {
        /// Maximum time for the threads that write log lines.
        const WRITE_TIMEOUT: Duration = Duration::from_millis(1_200);
        let Self { spans, records, lines, .. } = self;
        // Exporting and writing block their thread, so they run outside of the runtime's own threads, which the gRPC
        // clients need.
        let flushed = task::spawn_blocking(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.saturating_sub(WRITE_TIMEOUT).max(left / 2);
            thread::scope(|scope| {
                if let Some(records) = records {
                    scope.spawn(move || records.finish(timeout));
                }
                if let Some(spans) = spans {
                    // The processor logs the number of lost spans.
                    let _lost = spans.shutdown_with_timeout(timeout);
                }
            });
            lines.finish(WRITE_TIMEOUT);
        });
        let _only_a_panic_fails = flushed.await;
    }
}
