//! The gateway's responses, and the reasons for which an outcome stays unknown.
//!
//! The gateway's ids are stored, so [`GatewayId`] has a maximum length and accepts only visible characters. Parsing
//! therefore rejects a response with an id that PostgreSQL could not store.
use std::time::Duration;

use axum::http::StatusCode;
use platform::resilience::breaker::Permit;
use serde::Deserialize;

use crate::slices::payments::gateway_key::GatewayKey;

/// Maximum length of a gateway id in bytes.
const MAX_ID_BYTES: usize = 255;

/// An id that the gateway generated: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct GatewayId(String);

impl GatewayId {
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
    /// The gateway's id of the charge.
    pub id: GatewayId,
    /// The gateway key of the payment.
    pub reference: GatewayKey,
    /// The result of the charge.
    pub status: ChargeStatus,
    /// The reason of a decline.
    pub decline_code: Option<String>,
    /// Amount in minor units.
    pub amount: i64,
    /// ISO 4217 code of the currency.
    pub currency: String,
}

/// Result of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeStatus {
    /// The money was taken.
    Succeeded,
    /// The bank declined the charge.
    Declined,
}

impl ChargeStatus {
    /// Returns the name as written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Declined => "declined",
        }
    }
}

/// A refund as the gateway reports it.
#[derive(Debug, Clone, Deserialize)]
pub struct GatewayRefund {
    /// The gateway's id of the refund.
    pub id: GatewayId,
    /// The gateway key of the refund.
    pub reference: GatewayKey,
    /// The gateway's id of the refunded charge.
    pub charge_id: GatewayId,
    /// The result of the refund.
    pub status: GatewayRefundStatus,
    /// Amount in minor units.
    pub amount: i64,
}

/// Result of a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayRefundStatus {
    /// The money was refunded.
    Succeeded,
    /// The money was not refunded.
    Failed,
}

impl GatewayRefundStatus {
    /// Returns the name as written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// An object of the gateway that has not been compared with the request yet. [`Self::check`] compares it, and records
/// the call in the breaker as a success or a failure.
#[derive(Debug)]
#[must_use = "the response must be checked"]
pub struct GatewayResponse<T> {
    pub(super) object: T,
    pub(super) permit: Permit,
}

impl<T> GatewayResponse<T> {
    /// Compares the object with the request, and records the result in the breaker. An object that does not match the
    /// request counts as a failure of the gateway, like a missing response.
    pub fn check<C, E>(self, check: impl FnOnce(&T) -> Result<C, E>) -> (T, Result<C, E>) {
        let checked = check(&self.object);
        match &checked {
            Ok(_) => self.permit.succeeded(),
            Err(_) => self.permit.failed(),
        }
        (self.object, checked)
    }
}

/// Result of a request to the gateway.
#[derive(Debug)]
pub enum SendResult<T> {
    /// The gateway returned the object. The outcome is final if the object matches the request.
    Response(GatewayResponse<T>),
    /// The gateway rejected the request (4xx except 408, 409, 425 and 429). For a charge, the outcome is final only if
    /// no other attempt can have reached the gateway. For a refund, a rejection is never a final outcome.
    Rejected(StatusCode),
    /// The gateway has a different body under this key (409). The outcome is unknown. A 409 is not expected, because
    /// each resend has the stored body unchanged.
    Conflict,
    /// The outcome is unknown.
    Unknown(Unknown),
}

/// The reason for which an outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The response did not arrive in time.
    #[error("the gateway did not respond in time")]
    TimedOut,
    /// No connection was made, which proves that nothing was sent.
    #[error("failed to connect to the gateway: {0}")]
    NotConnected(#[source] reqwest::Error),
    /// The connection failed, before or after the request was sent.
    #[error("the connection to the gateway failed: {0}")]
    Connection(#[source] reqwest::Error),
    /// The gateway responded with a status that leaves the outcome unknown.
    #[error("the gateway responded with {status}")]
    Status {
        /// 5xx, 3xx, 408, 425 or 429; for a poll or a readiness check, any status other than 2xx.
        status: StatusCode,
        /// The pause that the gateway requests before a retry.
        retry_after: Option<Duration>,
    },
    /// The response is not JSON or is too long, or the listing's next page has the cursor of the requested page.
    #[error("the gateway's response is malformed: {0}")]
    Malformed(String),
    /// The response is JSON, but not the expected object. An operator must inspect an unreadable charge or refund at
    /// the gateway.
    #[error("the gateway's record is unreadable: {0}")]
    Unreadable(String),
    /// The breaker rejected the call, or no time was left. Nothing was sent.
    #[error("the gateway was not called")]
    NotCalled,
}

impl Unknown {
    /// Returns the pause that the gateway requests before a retry.
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

    /// Returns whether the call timed out.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::TimedOut => true,
            Self::NotConnected(error) => error.is_timeout(),
            _ => false,
        }
    }

    /// Returns whether the breaker counts the call as a failure of the gateway. A status below 500 does not count, for
    /// example the 429 of a rate limit.
    ///
    /// An unreadable record in the response to a poll does not count either. The gateway would return that record in
    /// every poll, and a few such records would keep the breaker open although other payments work.
    pub(super) fn is_outage(&self, is_poll: bool) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error(),
            Self::TimedOut | Self::NotConnected(_) | Self::Connection(_) | Self::Malformed(_) => true,
            Self::Unreadable(_) => !is_poll,
            Self::NotCalled => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16) -> Unknown {
        let status = StatusCode::from_u16(status).unwrap();
        Unknown::Status { status, retry_after: Some(Duration::from_secs(7)) }
    }

    #[test]
    fn only_failures_of_the_gateway_open_its_breaker() {
        let unreadable = || Unknown::Unreadable("no id".to_owned());
        for (unknown, is_outage, of_a_stored_record) in [
            (status(500), true, true),
            (status(503), true, true),
            (status(429), false, false),
            (status(302), false, false),
            (Unknown::TimedOut, true, true),
            (Unknown::Malformed("no JSON".to_owned()), true, true),
            (unreadable(), true, false),
            (Unknown::NotCalled, false, false),
        ] {
            assert_eq!(unknown.is_outage(false), is_outage, "{unknown}");
            assert_eq!(unknown.is_outage(true), of_a_stored_record, "{unknown}");
        }
    }

    #[test]
    fn only_a_call_that_was_not_made_has_sent_nothing() {
        assert!(Unknown::NotCalled.was_not_sent());
        for unknown in [Unknown::TimedOut, status(503), Unknown::Malformed("no JSON".to_owned())] {
            assert!(!unknown.was_not_sent(), "{unknown}");
        }
    }

    #[test]
    fn a_pause_is_requested_by_a_status_alone() {
        assert_eq!(status(429).retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(Unknown::TimedOut.retry_after(), None);
        assert!(Unknown::TimedOut.is_timeout());
        assert!(!status(504).is_timeout());
    }
}
