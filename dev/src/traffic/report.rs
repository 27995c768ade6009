//! Statistics of the traffic so far, for users and for tests.
use std::fmt;

use serde::Serialize;

use crate::example::traffic::memory::Counts;

/// Maximum number of stored samples of unexpected responses.
const MAX_SAMPLES: usize = 20;

/// Maximum number of stored characters of a body.
const MAX_BODY_CHARACTERS: usize = 400;

/// Statistics so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Requests that were sent.
    pub requests: u64,
    /// Successful registrations, including repeated registrations of a customer whose account was lost.
    pub customers: u64,
    /// Results of the customers' actions.
    pub counts: Counts,
    /// Correct replays of a request with the same idempotency key.
    pub replays: u64,
    /// Deliberately invalid requests that were rejected correctly.
    pub rejections: u64,
    /// Sessions that ended with a 401, after which the customer logs in again.
    pub logins_after_expiry: u64,
    /// Responses 429, 503 and 504 that the API contract allows. Their requests can be retried.
    pub busy: u64,
    /// Requests without a complete response.
    pub without_response: u64,
    /// Requests that were not sent because too many requests were in flight.
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
    /// The violated rule of the API contract.
    pub violation: String,
    /// The beginning of the body.
    pub body: String,
    /// Correlation id, for searching logs and traces.
    pub correlation_id: String,
}

impl fmt::Display for UnexpectedResponse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {} responded with {}; violated rule: {} ({}) {}",
            self.method, self.path, self.status, self.violation, self.correlation_id, self.body
        )
    }
}

impl Report {
    pub(super) fn unexpected(&mut self, mut unexpected: UnexpectedResponse) {
        self.unexpected += 1;
        if self.samples.len() < MAX_SAMPLES {
            unexpected.body = unexpected.body.chars().take(MAX_BODY_CHARACTERS).collect();
            self.samples.push(unexpected);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} requests by {} customers: {}; {} replays, {} expected rejections, {} rejected with 429, 503 or 504, {} without response, {} unexpected",
            self.requests,
            self.customers,
            self.counts,
            self.replays,
            self.rejections,
            self.busy,
            self.without_response,
            self.unexpected,
        )?;
        self.samples.first().map_or(Ok(()), |first| write!(formatter, "; the first: {first}"))
    }
}
