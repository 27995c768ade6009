//! The latest requests, events and deliveries, for inspection by tests.
//!
//! Each of the three lists is limited to [`MAX_ENTRIES`] entries and [`MAX_BYTES`]. The oldest entries are dropped
//! first.
use std::collections::VecDeque;

use chrono::{DateTime, Utc};

const MAX_ENTRIES: usize = 10_000;
const MAX_BYTES: usize = 1024 * 1024;

/// A received request, recorded before it is processed.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    pub at: DateTime<Utc>,
    pub method: String,
    /// The path with the query.
    pub path: String,
    pub idempotency_key: Option<String>,
    pub correlation_id: Option<String>,
    pub traceparent: Option<String>,
    pub baggage: Option<String>,
    /// A copy of the body, because a slice of `Bytes` would keep the whole read buffer of 8 KiB in memory.
    pub body: String,
}

impl MemorySize for RecordedRequest {
    fn bytes(&self) -> usize {
        let headers = [&self.idempotency_key, &self.correlation_id, &self.traceparent, &self.baggage];
        let headers: usize = headers.into_iter().flatten().map(String::len).sum();
        size_of::<Self>() + self.method.len() + self.path.len() + headers + self.body.len()
    }
}

/// A type with a known size in memory.
pub(super) trait MemorySize {
    fn bytes(&self) -> usize;
}

/// The latest entries of one kind.
pub(super) struct RecentEntries<T> {
    items: VecDeque<T>,
    bytes: usize,
}

impl<T> Default for RecentEntries<T> {
    fn default() -> Self {
        Self { items: VecDeque::new(), bytes: 0 }
    }
}

impl<T: Clone + MemorySize> RecentEntries<T> {
    pub(super) fn push(&mut self, item: T) {
        self.bytes += item.bytes();
        self.items.push_back(item);
        while self.items.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.items.pop_front() else { break };
            self.bytes -= oldest.bytes();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }

    pub(super) fn to_vec(&self) -> Vec<T> {
        self.items.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: usize, body: usize) -> RecordedRequest {
        RecordedRequest {
            at: Utc::now(),
            method: "POST".to_owned(),
            path: format!("/v1/charges?number={number}"),
            idempotency_key: None,
            correlation_id: None,
            traceparent: None,
            baggage: None,
            body: "x".repeat(body),
        }
    }

    #[test]
    fn memory_for_requests_is_bounded() {
        let mut recent = RecentEntries::default();
        for number in 0..3 * MAX_ENTRIES {
            recent.push(request(number, 10));
        }
        assert!(recent.items.len() <= MAX_ENTRIES && recent.bytes <= MAX_BYTES);
        let newest = recent.items.back().map(|request| request.path.clone());
        assert_eq!(newest, Some(format!("/v1/charges?number={}", 3 * MAX_ENTRIES - 1)));

        for number in 0..200 {
            recent.push(request(number, 64 * 1024));
        }
        assert!(recent.bytes <= MAX_BYTES && recent.items.len() <= 16, "{} bytes", recent.bytes);
        assert_eq!(recent.bytes, recent.items.iter().map(MemorySize::bytes).sum::<usize>());
    }
}
