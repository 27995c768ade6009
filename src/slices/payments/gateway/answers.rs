//! What the gateway can answer, and what an answer leaves open.
use std::time::Duration;

use axum::http::StatusCode;
use platform::resilience::breaker::Permit;
use serde::Deserialize;
use uuid::Uuid;

/// A charge, in the gateway's words.
#[derive(Debug, Clone, Deserialize)]
pub struct Charge {
    /// The gateway's id.
    pub id: String,
    /// Our payment's.
    pub reference: Uuid,
    /// How it ended.
    pub status: ChargeStatus,
    /// Why the bank said no.
    pub decline_code: Option<String>,
    /// In minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
}

/// How a charge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeStatus {
    /// The money was taken.
    Succeeded,
    /// The bank said no.
    Declined,
}

/// A refund, in the gateway's words.
#[derive(Debug, Clone, Deserialize)]
pub struct GatewayRefund {
    /// The gateway's id.
    pub id: String,
    /// Our refund's.
    pub reference: Uuid,
    /// What it gives back.
    pub charge_id: String,
    /// How it ended.
    pub status: GatewayRefundStatus,
    /// In minor units.
    pub amount: i64,
}

/// How a refund ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayRefundStatus {
    /// The money was given back.
    Succeeded,
    /// It was not.
    Failed,
}

/// An object of the gateway that was not yet held against what was asked for. Until then, the breaker does not know
/// whether the gateway did its part either.
#[derive(Debug)]
#[must_use = "the answer must be judged"]
pub struct Answer<T> {
    pub(super) object: T,
    pub(super) permit: Permit,
}

impl<T> Answer<T> {
    /// Judges the object, and tells the breaker: an answer to something else than was asked is a failure, like none.
    pub fn judge<J, E>(self, judge: impl FnOnce(&T) -> Result<J, E>) -> (T, Result<J, E>) {
        let judged = judge(&self.object);
        match &judged {
            Ok(_) => self.permit.succeeded(),
            Err(_) => self.permit.failed(),
        }
        (self.object, judged)
    }
}

/// What sending something to the gateway came to.
#[derive(Debug)]
pub enum Sent<T> {
    /// It answered with the object. What it says is certain, if it is what was asked for.
    Made(Answer<T>),
    /// It refused the request (4xx). Certain only if no earlier attempt went unanswered.
    Refused(StatusCode),
    /// It knows the key with another body (409). That must never happen, and says nothing about the outcome.
    Conflict,
    /// Nobody knows what happened.
    Unknown(Unknown),
}

/// Why nobody knows what happened.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// There was no answer in time.
    #[error("the gateway did not answer in time")]
    TimedOut,
    /// The connection failed, before or after the request was sent.
    #[error("the connection to the gateway failed: {0}")]
    Connection(#[source] reqwest::Error),
    /// It answered with a status that promises nothing.
    #[error("the gateway answered {status}")]
    Status {
        /// 5xx or 429.
        status: StatusCode,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// It answered with something that is not what it should be.
    #[error("the gateway's answer cannot be read: {0}")]
    Malformed(String),
    /// The breaker is open: it was not asked.
    #[error("the gateway is not being asked at the moment")]
    NotAsked,
}

impl Unknown {
    /// When the gateway wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether it is the gateway's trouble, for the breaker: what it refuses or limits is not.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error(),
            Self::TimedOut | Self::Connection(_) | Self::Malformed(_) => true,
            Self::NotAsked => false,
        }
    }
}
