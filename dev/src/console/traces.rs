//! The newest traces, assembled from received spans.
//!
//! Bounds: [`MAX_TRACES`] traces and [`MAX_BYTES`] of spans. The oldest trace that is not pinned is dropped first. A
//! trace stores its first [`MAX_SPANS`] spans and counts the others.
use std::collections::{HashMap, VecDeque};

use serde::Serialize;
use serde_json::Value;

use crate::otlp::{Attributes, Event, Link, Span, SpanKind, SpanStatus};

pub(super) const MAX_TRACES: usize = 2_000;
pub(super) const MAX_BYTES: usize = 32 * 1024 * 1024;
const MAX_SPANS: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Traces {
    by_id: HashMap<String, Trace>,
    /// Trace ids, oldest first, except that a pinned trace can move to the end.
    order: VecDeque<String>,
    bytes: usize,
    /// Id of a trace that is dropped only after all other traces, because `cargo dev` prints a link to it.
    pinned: Option<String>,
}

#[derive(Debug, Default)]
struct Trace {
    spans: Vec<Span>,
    bytes: usize,
    /// Number of spans that were not stored, because the trace already had [`MAX_SPANS`] spans.
    dropped_spans: usize,
}

/// A selection of traces.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    /// Substring of the name, case-insensitive, such as `GET /v1/me`.
    route: String,
    /// A class such as `2xx`, a code such as `404`, or `error` for traces with a failed span or a 5xx response.
    status: String,
    min_ms: Option<f64>,
    correlation_id: String,
    instance: String,
}

/// One row of the list of traces.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    trace_id: String,
    name: String,
    /// Status of the response, if the trace is a request.
    status: Option<i64>,
    /// Milliseconds since 1970.
    started: f64,
    duration_ms: f64,
    spans: usize,
    errors: usize,
    correlation_id: Option<String>,
    instance: String,
    /// True while the service's first span of the trace has not been received. `name` is then the name of another span.
    in_progress: bool,
}

/// A whole trace.
#[derive(Debug, Serialize)]
pub(super) struct Detail {
    #[serde(flatten)]
    summary: Summary,
    waterfall: Vec<Bar>,
    dropped_spans: usize,
    /// Resource attributes of the service.
    resource: Attributes,
    /// Spans that link to this trace.
    linked_from: Vec<Link>,
}

/// One span of the waterfall, with its depth. The spans of a waterfall are in display order.
#[derive(Debug, Serialize)]
pub(super) struct Bar {
    span_id: String,
    parent_id: String,
    depth: usize,
    name: String,
    kind: &'static str,
    error: bool,
    status_message: String,
    /// Milliseconds since the start of the trace.
    offset_ms: f64,
    duration_ms: f64,
    attributes: Attributes,
    events: Vec<Event>,
    links: Vec<Link>,
    instance: String,
}

impl Traces {
    pub(super) fn take(&mut self, spans: Vec<Span>) {
        for span in spans {
            self.add(span);
        }
        while self.order.len() > MAX_TRACES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            if self.pinned.as_ref() == Some(&oldest) && !self.order.is_empty() {
                self.order.push_back(oldest);
                continue;
            }
            if let Some(trace) = self.by_id.remove(&oldest) {
                self.bytes -= trace.bytes;
            }
        }
    }

    fn add(&mut self, span: Span) {
        let trace = self.by_id.entry(span.trace_id.clone()).or_insert_with(|| {
            self.order.push_back(span.trace_id.clone());
            Trace::default()
        });
        if trace.spans.len() >= MAX_SPANS {
            trace.dropped_spans += 1;
            return;
        }
        let size = size_of_span(&span);
        trace.bytes += size;
        self.bytes += size;
        trace.spans.push(span);
    }

    /// Protects this trace from being dropped before other traces.
    pub(super) fn pin(&mut self, trace_id: &str) {
        self.pinned = Some(trace_id.to_owned());
    }

    pub(super) fn has(&self, trace_id: &str) -> bool {
        self.by_id.contains_key(trace_id)
    }

    /// Returns the number of traces, and the size of all spans in bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.by_id.len(), self.bytes)
    }

    /// Returns the newest traces that match the filter.
    pub(super) fn list(&self, filter: &Filter, limit: usize) -> Vec<Summary> {
        let newest = self.order.iter().rev().filter_map(|id| self.by_id.get(id));
        let mut matching: Vec<_> =
            newest.filter_map(Trace::summary).filter(|summary| filter.matches(summary)).take(limit).collect();
        matching.sort_by(|one, other| other.started.total_cmp(&one.started));
        matching
    }

    pub(super) fn detail(&self, trace_id: &str) -> Option<Detail> {
        let trace = self.by_id.get(trace_id)?;
        let summary = trace.summary()?;
        let others = self.by_id.values().flat_map(|trace| &trace.spans);
        let linking = others.filter(|span| span.links.iter().any(|link| link.trace_id == trace_id));
        let linked_from = linking
            .map(|span| Link { trace_id: span.trace_id.clone(), span_id: span.span_id.clone() })
            .collect();
        Some(Detail {
            waterfall: trace.waterfall(),
            dropped_spans: trace.dropped_spans,
            resource: Attributes::clone(&trace.spans.first()?.resource),
            linked_from,
            summary,
        })
    }
}

impl Trace {
    /// Returns the root span, or the earliest span without a received parent.
    fn root(&self) -> Option<&Span> {
        let without_parent =
            self.spans.iter().filter(|span| !self.spans.iter().any(|other| other.span_id == span.parent_id));
        without_parent.min_by_key(|span| (!span.parent_id.is_empty(), span.started))
    }

    fn summary(&self) -> Option<Summary> {
        let root = self.root()?;
        let started = self.spans.iter().map(|span| span.started).min()?;
        let ended = self.spans.iter().map(|span| span.ended).max()?;
        let text = |name: &str| root.attributes.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        Some(Summary {
            trace_id: root.trace_id.clone(),
            name: root.name.clone(),
            status: root.attributes.get("http.response.status_code").and_then(Value::as_i64),
            started: milliseconds(started),
            duration_ms: milliseconds(ended.saturating_sub(started)),
            spans: self.spans.len() + self.dropped_spans,
            errors: self.spans.iter().filter(|span| span.status == SpanStatus::Error).count(),
            correlation_id: text("correlation_id"),
            instance: instance(root),
            // The parent of a server or consumer span can be a span of another program. The console never receives that
            // parent, so a trace with such a first span counts as complete.
            in_progress: !root.parent_id.is_empty()
                && !matches!(root.kind, SpanKind::Server | SpanKind::Consumer),
        })
    }

    fn waterfall(&self) -> Vec<Bar> {
        let began = self.spans.iter().map(|span| span.started).min().unwrap_or_default();
        let mut children: HashMap<&str, Vec<&Span>> = HashMap::new();
        for span in &self.spans {
            // A span without a received parent is displayed at the top level.
            let has_parent = self.spans.iter().any(|other| other.span_id == span.parent_id);
            children.entry(if has_parent { &span.parent_id } else { "" }).or_default().push(span);
        }
        for siblings in children.values_mut() {
            // The latest span comes first, because the loop below pops spans from the end.
            siblings.sort_by_key(|span| std::cmp::Reverse(span.started));
        }
        let mut bars = Vec::new();
        let mut waiting: Vec<(usize, &Span)> =
            children.remove("").unwrap_or_default().into_iter().map(|span| (0, span)).collect();
        while let Some((depth, span)) = waiting.pop() {
            bars.push(bar(span, depth, began));
            let below = children.remove(span.span_id.as_str()).unwrap_or_default();
            waiting.extend(below.into_iter().map(|span| (depth + 1, span)));
        }
        bars
    }
}

fn bar(span: &Span, depth: usize, began: u64) -> Bar {
    Bar {
        span_id: span.span_id.clone(),
        parent_id: span.parent_id.clone(),
        depth,
        name: span.name.clone(),
        kind: match span.kind {
            SpanKind::Server => "server",
            SpanKind::Client => "client",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
            SpanKind::Internal | SpanKind::Unspecified => "internal",
        },
        error: span.status == SpanStatus::Error,
        status_message: span.status_message.clone(),
        offset_ms: milliseconds(span.started.saturating_sub(began)),
        duration_ms: milliseconds(span.ended.saturating_sub(span.started)),
        attributes: span.attributes.clone(),
        events: span.events.clone(),
        links: span.links.clone(),
        instance: instance(span),
    }
}

impl Filter {
    fn matches(&self, summary: &Summary) -> bool {
        let named = self.route.is_empty() || summary.name.to_lowercase().contains(&self.route.to_lowercase());
        let correlated = self.correlation_id.is_empty()
            || summary.correlation_id.as_deref() == Some(self.correlation_id.as_str());
        let instance = self.instance.is_empty() || summary.instance == self.instance;
        let long = self.min_ms.is_none_or(|least| summary.duration_ms >= least);
        named && correlated && instance && long && self.matches_status(summary)
    }

    fn matches_status(&self, summary: &Summary) -> bool {
        let status = summary.status.map(|status| status.to_string()).unwrap_or_default();
        match self.status.as_str() {
            "" => true,
            "error" => summary.errors > 0 || status.starts_with('5'),
            class if class.ends_with("xx") => {
                !status.is_empty() && class.chars().next() == status.chars().next()
            }
            exact => status == exact,
        }
    }
}

/// Returns the id of the replica that sent the span.
fn instance(span: &Span) -> String {
    span.resource.get("service.instance.id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "a double holds microseconds since 1970")]
fn milliseconds(nanoseconds: u64) -> f64 {
    (nanoseconds / 1_000) as f64 / 1_000.0
}

/// Returns the approximate size of a span in memory, in bytes.
fn size_of_span(span: &Span) -> usize {
    let of = |attributes: &Attributes| -> usize {
        attributes.iter().map(|(name, value)| 96 + name.len() + value.as_str().map_or(0, str::len)).sum()
    };
    let events: usize = span.events.iter().map(|event| 64 + event.name.len() + of(&event.attributes)).sum();
    let texts = span.name.len() + span.status_message.len() + 80;
    size_of::<Span>() + texts + of(&span.attributes) + events + span.links.len() * 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(trace: usize, id: &str, parent: &str, started: u64) -> Span {
        Span {
            trace_id: format!("{trace:032x}"),
            span_id: id.to_owned(),
            parent_id: parent.to_owned(),
            name: format!("span {id}"),
            kind: SpanKind::Internal,
            status: SpanStatus::Unset,
            status_message: String::new(),
            attributes: Attributes::new(),
            events: Vec::new(),
            links: Vec::new(),
            started,
            ended: started + 1_000_000,
            resource: std::sync::Arc::default(),
        }
    }

    #[test]
    fn a_waterfall_is_a_tree_ordered_by_time() {
        let mut traces = Traces::default();
        traces.take(vec![span(1, "c", "a", 30), span(1, "d", "b", 25), span(1, "b", "a", 20)]);
        traces.take(vec![span(1, "a", "", 10), span(1, "orphan", "elsewhere", 15)]);
        let detail = traces.detail(&format!("{:032x}", 1)).unwrap();
        let shown: Vec<_> = detail.waterfall.iter().map(|bar| (bar.span_id.as_str(), bar.depth)).collect();
        assert_eq!(shown, [("a", 0), ("b", 1), ("d", 2), ("c", 1), ("orphan", 0)]);
        assert_eq!(detail.summary.name, "span a");
    }

    #[test]
    fn a_trace_is_in_progress_until_its_root_span_is_received() {
        let mut traces = Traces::default();
        let in_progress = |traces: &Traces| traces.list(&Filter::default(), 1)[0].in_progress;
        traces.take(vec![span(1, "b", "a", 20)]);
        assert!(in_progress(&traces));
        traces.take(vec![span(1, "a", "", 10)]);
        assert!(!in_progress(&traces));
        traces.take(vec![Span { kind: SpanKind::Server, ..span(2, "c", "span of the caller", 30) }]);
        assert!(!in_progress(&traces));
    }

    #[test]
    fn memory_for_traces_is_bounded() {
        let mut traces = Traces::default();
        traces.take(vec![span(0, "first", "", 1)]);
        traces.pin(&format!("{:032x}", 0));
        for trace in 1..3 * MAX_TRACES {
            traces.take(vec![span(trace, "a", "", 1)]);
        }
        assert_eq!(traces.size().0, MAX_TRACES);
        assert!(traces.has(&format!("{:032x}", 0)), "the pinned trace was dropped");

        let mut large = span(1, "a", "", 1);
        large.attributes.insert("text".to_owned(), Value::from("x".repeat(1024 * 1024)));
        for trace in 10_000..10_100 {
            traces.take(vec![Span { trace_id: trace.to_string(), ..large.clone() }]);
        }
        assert!(traces.size().1 <= MAX_BYTES);

        for number in 0..2 * MAX_SPANS {
            traces.take(vec![span(1, &number.to_string(), "", 1)]);
        }
        let detail = traces.detail(&format!("{:032x}", 1)).unwrap();
        assert_eq!((detail.waterfall.len(), detail.dropped_spans), (MAX_SPANS, MAX_SPANS));
    }
}
