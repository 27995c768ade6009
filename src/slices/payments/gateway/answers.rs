//! The gateway's responses, and what a response leaves open.
//!
//! A text of the gateway that is stored has a bounded type, so that a response that PostgreSQL would refuse is found
//! where it is parsed.
use std::time::Duration;

use axum::http::StatusCode;
use platform::resilience::breaker::Permit;
use serde::Deserialize;

use crate::slices::payments::gateway_key::GatewayKey;

/// The longest id of the gateway, in bytes.
const MAX_ID_BYTES: usize = 255;

/// An id that the gateway made: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct GatewayId(String);

impl GatewayId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GatewayId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if visible && (1..=MAX_ID_BYTES).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err("an id must be 1 to 255 visible ASCII characters")
        }
    }
}

/// A charge as the gateway reports it.
#[derive(Debug, Clone, Deserialize)]
pub struct Charge {
    /// The gateway's id.
    pub id: GatewayId,
    /// Our payment's gateway key.
    pub reference: GatewayKey,
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

/// A refund as the gateway reports it.
#[derive(Debug, Clone, Deserialize)]
pub struct GatewayRefund {
    /// The gateway's id.
    pub id: GatewayId,
    /// Our refund's gateway key.
    pub reference: GatewayKey,
    /// The charge that it refunds.
    pub charge_id: GatewayId,
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
    /// There was no response in time.
    #[error("the gateway did not respond in time")]
    TimedOut,
    /// No connection was made, which proves that nothing was sent.
    #[error("failed to connect to the gateway: {0}")]
    NotConnected(#[source] reqwest::Error),
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
    /// The response is not JSON, or too long.
    #[error("the gateway's response is malformed: {0}")]
    Malformed(String),
    /// The response is JSON, and not the object that it should be: a person must look at the gateway's record.
    #[error("the gateway's record is unreadable: {0}")]
    Unreadable(String),
    /// The breaker is open, or no time is left: nothing was sent.
    #[error("the gateway was not called")]
    NotCalled,
}

impl Unknown {
    /// When the gateway wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns whether it is certain that nothing was sent.
    pub fn was_not_sent(&self) -> bool {
        matches!(self, Self::NotConnected(_) | Self::NotCalled)
    }

    /// Returns whether the call failed by its duration.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::TimedOut => true,
            Self::NotConnected(error) => error.is_timeout(),
            _ => false,
        }
    }

    /// Returns whether the breaker counts it as a failure of the gateway. A request that the gateway rejects or
    /// limits is none.
    ///
    /// An unreadable record of a payment that was begun earlier is none either: the gateway would return it for ever,
    /// and a few such records would keep the breaker open although every other payment works.
    pub(super) fn is_outage(&self, of_a_stored_record: bool) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error(),
            Self::TimedOut | Self::NotConnected(_) | Self::Connection(_) | Self::Malformed(_) => true,
            Self::Unreadable(_) => !of_a_stored_record,
            Self::NotCalled => false,
        }
    }
}
