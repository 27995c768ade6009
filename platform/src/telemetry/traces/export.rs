//! Span export that counts lost spans.
//!
//! The SDK drops spans when its queue is full and when an export fails, and does not expose the count of the first.
//! So this module limits the queue to the same length and counts the dropped spans. The SDK's own queue then never
//! overflows.
use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};

crate::metrics! {
    /// Spans lost because the queue was full or their export failed.
    static DROPPED: counter = "trace_spans_dropped_total";
}

/// The variable of the queue's size.
pub(super) const QUEUE_SIZE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";

/// The queue size that the OpenTelemetry specification defines as the default.
const DEFAULT_QUEUE: usize = 2_048;

pub(super) fn start() {
    initialize();
}

/// Exports spans in batches from a separate thread, and counts lost spans.
pub(super) fn counted(exporter: impl SpanExporter + 'static) -> impl SpanProcessor + 'static {
    let configured = env::var(QUEUE_SIZE).ok().and_then(|size| size.parse().ok());
    let capacity = configured.filter(|size| *size > 0).unwrap_or(DEFAULT_QUEUE);
    let queued = Arc::new(AtomicUsize::new(0));
    let exporting = Arc::new(AtomicUsize::new(0));
    let exporter =
        CountingExporter { inner: exporter, queued: Arc::clone(&queued), exporting: Arc::clone(&exporting) };
    let batches = BatchConfigBuilder::default().with_max_queue_size(capacity).build();
    let inner = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    BoundedProcessor { inner, queued, exporting, capacity }
}

#[derive(Debug)]
struct BoundedProcessor {
    inner: BatchSpanProcessor,
    /// Number of spans that have ended and that the exporter has not taken yet.
    queued: Arc<AtomicUsize>,
    /// Number of spans in the batch that is being exported.
    exporting: Arc<AtomicUsize>,
    capacity: usize,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.queued.fetch_add(1, Ordering::Relaxed) >= self.capacity {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            DROPPED.inc();
        } else {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    /// Exports the remaining spans. Counts and logs those that are lost: their export failed, or has not finished in
    /// time.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let before = DROPPED.get();
        let result = self.inner.shutdown_with_timeout(timeout);
        let unfinished = self.queued.load(Ordering::Relaxed) + self.exporting.load(Ordering::Relaxed);
        DROPPED.inc_by(unfinished.try_into().unwrap_or(u64::MAX));
        let lost = DROPPED.get().saturating_sub(before);
        if lost > 0 {
            tracing::warn!(
                spans = lost,
                "spans were lost at the end: the collector did not accept them in time"
            );
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[derive(Debug)]
struct CountingExporter<E> {
    inner: E,
    queued: Arc<AtomicUsize>,
    exporting: Arc<AtomicUsize>,
}

impl<E: SpanExporter> SpanExporter for CountingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.exporting.store(spans, Ordering::Relaxed);
        self.queued.fetch_sub(spans, Ordering::Relaxed);
        let result = self.inner.export(batch).await;
        self.exporting.store(0, Ordering::Relaxed);
        if result.is_err() {
            DROPPED.inc_by(spans.try_into().unwrap_or(u64::MAX));
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
