//! What has happened so far, for a person to read and for a test to judge.
use std::fmt;

use serde::Serialize;

use crate::example::traffic::memory::Counts;

/// Samples of unexpected answers that are kept.
const SAMPLES: usize = 20;

/// How many characters of a body are kept.
const EXCERPT: usize = 400;

/// What has happened so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Requests that were sent.
    pub requests: u64,
    /// Customers that have registered.
    pub customers: u64,
    /// What they have achieved.
    pub counts: Counts,
    /// Answers seen again under the same key, as promised.
    pub replays: u64,
    /// Requests that were wrong on purpose, and refused as promised.
    pub refusals: u64,
    /// Sessions that had ended and were begun anew.
    pub sessions_renewed: u64,
    /// 429, 503 and 504: the service was busy and said so.
    pub turned_away: u64,
    /// Requests without an answer: no connection, or none in time.
    pub unanswered: u64,
    /// Requests that were not sent because too many were under way.
    pub not_sent: u64,
    /// Answers that the contract does not promise.
    pub unexpected: u64,
    /// The first of them.
    pub samples: Vec<Unexpected>,
}

/// An answer that the contract does not promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unexpected {
    pub method: String,
    pub path: String,
    pub status: u16,
    /// What was expected instead.
    pub why: String,
    /// The beginning of the answer.
    pub body: String,
    /// To find it in logs and traces.
    pub correlation_id: String,
}

impl fmt::Display for Unexpected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {} answered {}: {} ({}) {}",
            self.method, self.path, self.status, self.why, self.correlation_id, self.body
        )
    }
}

impl Report {
    pub(super) fn unexpected(&mut self, mut unexpected: Unexpected) {
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
            "{} requests by {} customers: {}; {} replays, {} refusals as promised; {} turned away, {} unanswered, \
             {} unexpected",
            self.requests,
            self.customers,
            self.counts,
            self.replays,
            self.refusals,
            self.turned_away,
            self.unanswered,
            self.unexpected,
        )?;
        self.samples.first().map_or(Ok(()), |first| write!(formatter, "; the first: {first}"))
    }
}
