//! Span export that counts lost spans.
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};

use crate::telemetry::otlp::Queue;

crate::metrics! {
    /// Spans lost because the queue was full or their export failed.
    static DROPPED: counter = "trace_spans_dropped_total";
}

pub(super) fn start() {
    initialize();
}

/// Returns a processor that exports spans in batches from a separate thread, and counts lost spans.
pub(super) fn counting_processor(exporter: impl SpanExporter + 'static) -> impl SpanProcessor + 'static {
    let queue = Queue::new("OTEL_BSP_MAX_QUEUE_SIZE", DROPPED.clone());
    let exporter = CountingExporter { inner: exporter, queue: queue.clone() };
    let batches = BatchConfigBuilder::default().with_max_queue_size(queue.capacity()).build();
    let inner = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    BoundedProcessor { inner, queue }
}

#[derive(Debug)]
struct BoundedProcessor {
    inner: BatchSpanProcessor,
    queue: Queue,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.queue.try_add(self.queue.capacity()) {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    /// Exports the remaining spans. Counts the lost spans, and logs their number.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let (result, lost) = self.queue.finish(|| self.inner.shutdown_with_timeout(timeout));
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
    queue: Queue,
}

impl<E: SpanExporter> SpanExporter for CountingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.queue.export(batch.len(), self.inner.export(batch)).await
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
