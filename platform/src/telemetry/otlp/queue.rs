//! Counts of the items (spans or log records) that wait for their export, and of lost items.
//!
//! The SDK drops items when its queue is full and when an export fails, and does not expose the number of items that a
//! full queue drops. So the service's own processors, which wrap the SDK's, admit only as many items as the SDK's queue
//! holds, and count the items that they drop. The SDK's queue then never overflows.
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use opentelemetry_sdk::error::OTelSdkResult;
use prometheus::IntCounter;

use super::environment::queue_size;

/// The counts of a batch processor's queue, which the processor and its exporter share.
#[derive(Debug, Clone)]
pub(in crate::telemetry) struct Queue {
    counts: Arc<Counts>,
    capacity: usize,
    lost: IntCounter,
}

#[derive(Debug, Default)]
struct Counts {
    /// Number of items that the exporter has not taken yet.
    queued: AtomicUsize,
    /// Number of items in the batch that is being exported.
    exporting: AtomicUsize,
    /// Set before the last export. Later items are not passed to the SDK, which would log a warning for each of them.
    is_closed: AtomicBool,
}

impl Queue {
    /// Creates a queue whose size the environment variable `variable` sets. Lost items are counted in `lost`.
    pub(in crate::telemetry) fn new(variable: &str, lost: IntCounter) -> Self {
        Self { counts: Arc::default(), capacity: queue_size(variable), lost }
    }

    /// Returns the maximum number of queued items.
    pub(in crate::telemetry) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds an item if the queue is open and has fewer than `limit` items, and otherwise counts it as lost. Returns
    /// whether the item was added.
    pub(in crate::telemetry) fn try_add(&self, limit: usize) -> bool {
        let fits = self.counts.queued.fetch_add(1, Ordering::Relaxed) < limit
            && !self.counts.is_closed.load(Ordering::Relaxed);
        if !fits {
            self.counts.queued.fetch_sub(1, Ordering::Relaxed);
            self.lost.inc();
        }
        fits
    }

    /// Exports a batch of queued items, and counts them as lost if the export fails.
    pub(in crate::telemetry) async fn export(
        &self,
        items: usize,
        export: impl Future<Output = OTelSdkResult>,
    ) -> OTelSdkResult {
        self.counts.exporting.store(items, Ordering::Relaxed);
        self.counts.queued.fetch_sub(items, Ordering::Relaxed);
        let result = export.await;
        // If the queue was closed meanwhile, `finish` has already counted the batch as lost.
        let uncounted = self.counts.exporting.swap(0, Ordering::Relaxed);
        if result.is_err() {
            self.lost.inc_by(uncounted.try_into().unwrap_or(u64::MAX));
        }
        result
    }

    /// Closes the queue and runs the last export. Returns the result of this export, and the number of items that were
    /// lost after the queue was closed.
    pub(in crate::telemetry) fn finish(
        &self,
        export: impl FnOnce() -> OTelSdkResult,
    ) -> (OTelSdkResult, u64) {
        self.counts.is_closed.store(true, Ordering::Relaxed);
        let before = self.lost.get();
        let result = export();
        let unfinished =
            self.counts.queued.load(Ordering::Relaxed) + self.counts.exporting.swap(0, Ordering::Relaxed);
        self.lost.inc_by(unfinished.try_into().unwrap_or(u64::MAX));
        (result, self.lost.get().saturating_sub(before))
    }
}
