//! Logs: one line per event, on standard output and, if a directory is set, in daily files. With
//! `OTEL_LOGS_EXPORTER=otlp` the lines are also exported as log records, except those of the libraries that the export
//! uses.
//!
//! A line takes its correlation id and its user from the [task's context](correlation), and its trace from the current
//! span, never from span fields. So no filter can remove these ids from a line, and opening a span does not format its
//! fields.
//!
//! Logging never blocks. Each output has bounded queues, and a separate thread writes the lines of each queue. Lines
//! that do not fit into a queue, or cannot be written (a full disk, a closed pipe), are lost and counted in
//! `log_lines_dropped_total`. Audit log lines of level `info` or more severe pass every filter and have queues of their
//! own, so neither a filter nor other lines can suppress them.
mod filter;
mod json;
mod pretty;
mod records;
mod sinks;

use std::{cell::RefCell, time::Duration};

use chrono::{DateTime, Utc};
use opentelemetry::{SpanId, TraceId};
use tracing::{Event, Metadata, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::layer::{Context, Layer};

pub(crate) use self::filter::reloadable;
pub use self::{filter::LogFilter, sinks::LogsError};
use self::{json::Origin, sinks::Sink};
pub(super) use self::{
    records::Records,
    sinks::{Guards, open},
};
use super::{correlation, current_span};
use crate::build_info::BuildInfo;

/// Converts a duration for log lines: milliseconds, rounded to the microsecond.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The layer that writes each event to the sinks that accept its target, and exports the event.
pub(super) struct Lines {
    origin: Origin,
    sinks: Vec<Sink>,
    records: Option<Records>,
}

/// The format of a sink's lines.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    Json,
    Pretty { coloured: bool },
}

/// An event, and its context.
struct Line<'a> {
    at: DateTime<Utc>,
    event: &'a Event<'a>,
    metadata: &'a Metadata<'a>,
    context: Option<correlation::Context>,
    trace: Option<(TraceId, SpanId)>,
}

/// Buffers in which a line is formatted. Each thread reuses its own buffers, so that a line needs no new ones.
#[derive(Default)]
struct Buffers {
    line: Vec<u8>,
    /// Buffer for values before they are escaped.
    text: String,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl Lines {
    pub(super) fn new(service: &str, sinks: Vec<Sink>, records: Option<Records>) -> Self {
        Self { origin: Origin::new(service, BuildInfo::current().version), sinks, records }
    }

    fn write(&self, line: &Line<'_>, buffers: &mut Buffers) {
        for sink in self.sinks.iter().filter(|sink| sink.accepts(line.metadata.target())) {
            buffers.line.clear();
            match sink.format {
                Format::Json => json::write(line, &self.origin, buffers),
                Format::Pretty { coloured } => pretty::write(line, coloured, buffers),
            }
            sink.write(&buffers.line);
        }
        if let Some(records) = &self.records {
            records.write(line, &mut buffers.text);
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        // Events of the `log` crate have their actual target in fields.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let line =
            Line { at: Utc::now(), event, metadata, context: correlation::current(), trace: trace(metadata) };
        BUFFERS.with(|buffers| match buffers.try_borrow_mut() {
            Ok(mut buffers) => self.write(&line, &mut buffers),
            // The buffers are in use if a value logs while it is being formatted.
            Err(_) => self.write(&line, &mut Buffers::default()),
        });
    }
}

/// Returns the ids of the current trace and span for an event. The OpenTelemetry SDK may log while it holds a span's
/// lock. Reading the ids at that moment would deadlock, so the SDK's own events have no trace.
fn trace(metadata: &Metadata<'_>) -> Option<(TraceId, SpanId)> {
    if metadata.target().starts_with("opentelemetry") {
        return None;
    }
    current_span::read_current_span(|span| (span.trace_id(), span.span_id()))
}

impl Line<'_> {
    /// Writes the event's `message` into `text`. If the event has no message, its name is used, which contains the file
    /// and line.
    fn message(&self, text: &mut String) {
        struct Message<'a>(&'a mut String);
        impl tracing::field::Visit for Message<'_> {
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                if field.name() == "message" {
                    self.0.push_str(value);
                }
            }
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    display(self.0, format_args!("{value:?}"));
                }
            }
        }
        text.clear();
        self.event.record(&mut Message(text));
        if text.is_empty() {
            text.push_str(self.metadata.name());
        }
    }
}

/// Returns whether lines of this target belong to the audit log.
pub(super) fn is_audit(target: &str) -> bool {
    target == "audit" || target.starts_with("audit::")
}

/// Appends a formatted value to a text. A value whose formatting fails is truncated, so that the line is not lost.
fn display(text: &mut String, value: std::fmt::Arguments<'_>) {
    let _truncated = std::fmt::Write::write_fmt(text, value);
}

/// Appends an error and its causes: `a: b: c`.
fn chain(text: &mut String, error: &(dyn std::error::Error + 'static)) {
    display(text, format_args!("{error}"));
    let mut cause = error.source();
    while let Some(error) = cause {
        display(text, format_args!(": {error}"));
        cause = error.source();
    }
}

/// Returns whether a field must not be written among the event's own fields. The message is written under its own key.
/// The `log.*` fields only repeat the metadata of an event of the `log` crate.
fn is_written_separately(name: &str) -> bool {
    name == "message" || name.starts_with("log.")
}
