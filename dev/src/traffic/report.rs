//! Statistics of the traffic so far, for users and for tests.
use std::fmt;

use serde::Serialize;

use crate::example::traffic::memory::Counts;

/// Maximum number of stored samples of unexpected responses.
const SAMPLES: usize = 20;

/// Maximum number of stored characters of a body.
const EXCERPT: usize = 400;

/// Statistics so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Requests that were sent.
    pub requests: u64,
    /// Registered customers.
    pub customers: u64,
    /// Results of the customers' actions.
    pub counts: Counts,
    /// Correct replays under the same key.
    pub replays: u64,
    /// Deliberately invalid requests that were rejected correctly.
    pub rejections: u64,
    /// Expired sessions that were replaced by a new login.
    pub sessions_renewed: u64,
    /// Responses 429, 503 and 504 of a busy service.
    pub turned_away: u64,
    /// Requests without a response, for lack of a connection or because of a timeout.
    pub unanswered: u64,
    /// Requests that were not sent because too many were in flight.
    pub not_sent: u64,
    /// Responses that violate the API contract.
    pub unexpected: u64,
    /// The first unexpected responses.
    pub samples: Vec<UnexpectedResponse>,
}

/// A response that violates the API contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnexpectedResponse {
    pub method: String,
    pub path: String,
    pub status: u16,
    /// The expectation.
    pub why: String,
    /// The beginning of the body.
    pub body: String,
    /// Correlation id, for searching logs and traces.
    pub correlation_id: String,
}

impl fmt::Display for UnexpectedResponse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {} responded with {}: {} ({}) {}",
            self.method, self.path, self.status, self.why, self.correlation_id, self.body
        )
    }
}

impl Report {
    pub(super) fn unexpected(&mut self, mut unexpected: UnexpectedResponse) {
        self.unexpected += 1;
        if self.samples.len() < SAMPLES {
            unexpected.body = unexpected.body.chars().take(EXCERPT).collect();
            self.samples.push(unexpected);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} requests by {} customers: {}; {} replays, {} expected rejections, {} rejected with 429 or 503, {} without response, {} unexpected",
            self.requests,
            self.customers,
            self.counts,
            self.replays,
            self.rejections,
            self.turned_away,
            self.unanswered,
            self.unexpected,
        )?;
        self.samples.first().map_or(Ok(()), |first| write!(formatter, "; the first: {first}"))
    }
}
