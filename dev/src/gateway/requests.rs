//! What came in and went out lately, for tests and people to look at.
use std::collections::VecDeque;

use axum::body::Bytes;
use chrono::{DateTime, Utc};

/// A request as it arrived, before anything was decided about it.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    pub at: DateTime<Utc>,
    pub method: String,
    /// With the query.
    pub path: String,
    pub idempotency_key: Option<String>,
    pub correlation_id: Option<String>,
    pub traceparent: Option<String>,
    pub baggage: Option<String>,
    pub body: Bytes,
}

/// The latest of something; the oldest makes room.
pub(super) struct Recent<T> {
    items: VecDeque<T>,
    limit: usize,
}

impl<T: Clone> Recent<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { items: VecDeque::new(), limit }
    }

    pub(super) fn push(&mut self, item: T) {
        if self.items.len() == self.limit {
            self.items.pop_front();
        }
        self.items.push_back(item);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }

    pub(super) fn to_vec(&self) -> Vec<T> {
        self.items.iter().cloned().collect()
    }
}
