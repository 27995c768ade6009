//! Logs, traces, metrics, and the correlation that ties them together.
//!
//! [`init`] sets all of it up, once, before anything else happens; [`Telemetry::flush`] ends it, after
//! everything else. Between the two nobody needs a handle: code logs, opens spans and counts, and the
//! context of the task says for whom.
pub mod correlation;
mod current_span;
pub mod logs;
pub mod metrics;
mod panics;
mod settings;
pub mod traces;

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::{runtime::Handle, task};
use tracing::{Level, Metadata, subscriber::Interest};
use tracing_subscriber::{
    filter::{FilterExt, LevelFilter, dynamic_filter_fn, filter_fn},
    layer::{Layer, SubscriberExt},
    util::SubscriberInitExt,
};

use self::logs::{Guards, Lines};

pub use self::logs::LogFilter;
pub use self::settings::{LogFormat, Logs, Traces};
use crate::{build_info::BuildInfo, settings::Process};

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter cannot be read.
    #[error("RUST_LOG is not a filter: {0}")]
    Filter(String),
    /// The logs cannot be opened.
    #[error(transparent)]
    Logs(#[from] logs::LogsError),
    /// The exporter of traces cannot be built.
    #[error(transparent)]
    Traces(#[from] traces::TracesError),
    /// The exporter of traces lives in the runtime.
    #[error("telemetry must be set up within the runtime")]
    NoRuntime,
    /// There is one for a process.
    #[error("telemetry is set up already")]
    Twice,
}

/// The telemetry of the process, as long as it runs.
pub struct Telemetry {
    filter: LogFilter,
    spans: Option<SdkTracerProvider>,
    lines: Guards,
}

/// Sets up logs, traces and metrics for the whole process.
///
/// # Errors
/// A setting that cannot be met: a filter that is not one, a directory that cannot be written, a protocol
/// that is not known.
pub fn init(process: &Process, logs: &Logs, traces: &Traces) -> Result<Telemetry, InitError> {
    let runtime = Handle::try_current().map_err(|_| InitError::NoRuntime)?;
    let service = traces::service_name(traces);
    let (wanted, filter) =
        logs::reloadable(process.environment, logs.filter.as_deref()).map_err(InitError::Filter)?;
    let spans = traces::provider(&service, process, traces)?;
    traces::propagate(traces);
    let (sinks, guards) = logs::open(logs)?;

    // The layer of the logs comes first: the handle that changes its filter knows the type below it.
    // Without a hint from both of its halves, a filter has none, and every `trace!` would be asked about.
    let events = dynamic_filter_fn(|metadata, _| may_be_told(metadata))
        .with_callsite_filter(asked_each_time)
        .with_max_level_hint(LevelFilter::TRACE);
    // Nobody may silence the audit trail by asking for less of everything else.
    let audit =
        filter_fn(|metadata| logs::is_audit(metadata.target())).with_max_level_hint(LevelFilter::INFO);
    let lines = Lines::new(&service, sinks).with_filter(events.and(wanted.or(audit)));
    let spans_layer = spans.as_ref().map(|provider| {
        // Each of these costs every span something, and none tells more than the span's name does.
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
    for warning in traces::warnings(traces) {
        tracing::warn!("{warning}");
    }
    Ok(Telemetry { filter, spans, lines: guards })
}

/// What may become a line, whatever the filter asks for. Spans leave none, so what they carry need not be kept for any.
/// And at `trace` libraries write down what passes through them, headers and values: nobody may ask for that.
fn may_be_told(metadata: &Metadata<'_>) -> bool {
    let is_ours = ["app", "platform", "access", "audit"]
        .contains(&metadata.target().split("::").next().unwrap_or_default());
    metadata.is_event() && (*metadata.level() <= Level::DEBUG || is_ours)
}

/// Events are never wanted *always*, though they are: whoever only asks whether something would be logged, as sqlx
/// does after each statement through the `log` crate, leaves the answer behind in the thread (tracing-subscriber
/// 0.3.23), and the next event that is not asked about takes it for its own, and is lost.
fn asked_each_time(metadata: &Metadata<'_>) -> Interest {
    if may_be_told(metadata) { Interest::sometimes() } else { Interest::never() }
}

/// What becomes a span, or an event of one: our spans, and what was worth a warning within them. Whatever the
/// export itself does must not become spans again: it would never end.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    const OF_THE_EXPORT: [&str; 7] = ["h2", "hyper", "opentelemetry", "reqwest", "rustls", "tonic", "tower"];
    let level = if metadata.is_span() { Level::INFO } else { Level::WARN };
    *metadata.level() <= level && !OF_THE_EXPORT.iter().any(|name| metadata.target().starts_with(name))
}

impl Telemetry {
    /// What is logged, to be read and changed.
    pub fn log_filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Sends the spans and writes the lines that are still under way. Whatever is logged afterwards is lost,
    /// so this comes last.
    ///
    /// Spans have until `deadline`, less what the writing threads may take at most; a collector that does not
    /// answer until then loses them.
    pub async fn flush(self, deadline: Duration) {
        const WRITING: Duration = Duration::from_millis(1_200);
        let Self { spans, lines, .. } = self;
        // Both block, and the gRPC client needs the runtime's own threads meanwhile.
        let flushed = task::spawn_blocking(move || {
            let sending = deadline.saturating_sub(WRITING).max(deadline / 2);
            if let Some(Err(error)) = spans.map(|spans| spans.shutdown_with_timeout(sending)) {
                tracing::warn!(
                    error = &error as &(dyn std::error::Error + 'static),
                    "spans were lost at the end"
                );
            }
            lines.finish(WRITING);
        });
        let _only_a_panic_fails = flushed.await;
    }
}
