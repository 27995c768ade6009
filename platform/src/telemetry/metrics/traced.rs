//! Histograms with exemplars: each bucket stores the trace of a recent sampled operation. An exemplar leads from a
//! latency spike to the trace of one of its operations.
//!
//! The `prometheus` crate has no exemplars, so they are stored separately, and only the `OpenMetrics` format exposes
//! them. Storing an exemplar does not wait for the lock of its bucket. If another thread holds this lock, the new
//! exemplar is dropped.
use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use opentelemetry::{SpanId, TraceId, trace::SpanContext};
use prometheus::{HistogramVec, core::Collector, proto::Metric, register_histogram_vec};

use super::registered;
use crate::telemetry::current_span;

/// All families that have exemplars, by name.
static FAMILIES: LazyLock<RwLock<HashMap<String, Arc<Exemplars>>>> = LazyLock::new(RwLock::default);

/// A family of histograms in seconds, with exemplars. Each observation is the duration of one operation, whose span
/// must be the current span.
pub struct TracedHistograms {
    histograms: HistogramVec,
    exemplars: Arc<Exemplars>,
}

/// One of the observations in a bucket, with the ids of the operation's trace and span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exemplar {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) value: f64,
    pub(super) at: SystemTime,
}

/// The exemplars of a family.
pub(super) struct Exemplars {
    /// Label names, in the order in which the label values are given.
    labels: Vec<String>,
    bounds: Vec<f64>,
    /// The newest exemplar of each bucket, by the concatenated label values.
    series: RwLock<HashMap<String, Arc<Buckets>>>,
}

type Buckets = [Mutex<Option<Exemplar>>];

impl TracedHistograms {
    /// Registers a family with these labels and bucket bounds.
    ///
    /// # Panics
    /// The name is taken or invalid. This is a bug, which the first start reveals.
    pub fn new(name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> Self {
        let histograms = registered(register_histogram_vec!(name, help, labels, bounds.to_vec()));
        let described = histograms.desc();
        let labels = described.first().map_or_else(Vec::new, |family| family.variable_labels.clone());
        let exemplars = Arc::new(Exemplars { labels, bounds: bounds.to_vec(), series: RwLock::default() });
        if let Some(family) = described.first() {
            let mut families = FAMILIES.write().unwrap_or_else(PoisonError::into_inner);
            families.insert(family.fq_name.clone(), Arc::clone(&exemplars));
        }
        Self { histograms, exemplars }
    }

    /// Creates the series with these label values, at zero.
    pub fn declare(&self, labels: &[&str]) {
        self.histograms.with_label_values(labels);
    }

    /// Records the duration of one operation.
    pub fn observe(&self, labels: &[&str], duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.histograms.with_label_values(labels).observe(seconds);
        let exemplar = current_span::read_current_span(|span| {
            let exemplar = |span: &SpanContext| Exemplar {
                trace_id: span.trace_id(),
                span_id: span.span_id(),
                value: seconds,
                at: SystemTime::now(),
            };
            span.is_sampled().then(|| exemplar(span))
        });
        if let Some(exemplar) = exemplar.flatten() {
            self.exemplars.store(labels, exemplar);
        }
    }
}

impl Exemplars {
    /// Returns the exemplars of the family with this name, if it has any.
    pub(super) fn of(family: &str) -> Option<Arc<Self>> {
        FAMILIES.read().unwrap_or_else(PoisonError::into_inner).get(family).cloned()
    }

    fn store(&self, labels: &[&str], exemplar: Exemplar) {
        let bucket = self.bounds.partition_point(|bound| *bound < exemplar.value);
        let buckets = self.buckets(labels);
        if let Some(Ok(mut newest)) = buckets.get(bucket).map(Mutex::try_lock) {
            *newest = Some(exemplar);
        }
    }

    fn buckets(&self, labels: &[&str]) -> Arc<Buckets> {
        let key = key(labels.iter().copied());
        let existing = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        existing.unwrap_or_else(|| {
            // One more bucket for values above every bound.
            let empty = || (0..=self.bounds.len()).map(|_| Mutex::default()).collect();
            let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(series.entry(key).or_insert_with(empty))
        })
    }

    /// Returns the newest exemplar of each bucket of a series, in the order of the bounds.
    pub(super) fn newest(&self, series: &Metric) -> Vec<Option<Exemplar>> {
        let value = |name: &String| {
            let found = series.get_label().iter().find(|label| label.name() == name);
            found.map_or("", |label| label.value())
        };
        let key = key(self.labels.iter().map(value));
        let existing = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let copy = |bucket: &Mutex<Option<Exemplar>>| *bucket.lock().unwrap_or_else(PoisonError::into_inner);
        existing.map_or_else(Vec::new, |buckets| buckets.iter().map(copy).collect())
    }
}

/// Joins label values with a separator that no value contains.
fn key<'a>(values: impl Iterator<Item = &'a str>) -> String {
    values.fold(String::new(), |mut key, value| {
        key.push_str(value);
        key.push('\u{1f}');
        key
    })
}
