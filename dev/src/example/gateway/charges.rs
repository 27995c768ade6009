//! Charges and refunds in the format of the gateway's API, and the behaviour of each test payment method.
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The body of `POST /v1/charges`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChargeRequest {
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) payment_method: PaymentMethod,
    pub(super) reference: Uuid,
}

impl ChargeRequest {
    /// Returns the validation error, if any.
    pub(super) fn validation_error(&self) -> Option<&'static str> {
        if self.amount <= 0 {
            return Some("amount must be a positive number of minor units");
        }
        let is_valid =
            self.currency.len() == 3 && self.currency.bytes().all(|byte| byte.is_ascii_uppercase());
        (!is_valid).then_some("currency must be three capital letters")
    }
}

/// The body of `POST /v1/charges/{id}/refunds`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RefundRequest {
    pub(super) amount: i64,
    pub(super) reference: Uuid,
}

impl RefundRequest {
    /// Returns the validation error, if any.
    pub(super) fn validation_error(&self) -> Option<&'static str> {
        (self.amount <= 0).then_some("amount must be a positive number of minor units")
    }
}

/// A completed attempt to take money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// `ch_` and a `UUIDv7`.
    pub id: String,
    /// The reference from the request. The service sends the payment's `gateway_key` as the reference and as the
    /// idempotency key.
    pub reference: Uuid,
    pub status: ChargeStatus,
    /// The reason of a decline.
    pub decline_code: Option<DeclineCode>,
    /// Amount in minor units.
    pub amount: i64,
    /// ISO 4217 code.
    pub currency: String,
}

impl Charge {
    pub(super) fn new(request: &ChargeRequest, decline_code: Option<DeclineCode>) -> Self {
        Self {
            id: format!("ch_{}", Uuid::now_v7().simple()),
            reference: request.reference,
            status: if decline_code.is_some() { ChargeStatus::Declined } else { ChargeStatus::Succeeded },
            decline_code,
            amount: request.amount,
            currency: request.currency.clone(),
        }
    }
}

/// The outcome of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeStatus {
    Succeeded,
    Declined,
}

/// The reason of a decline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclineCode {
    InsufficientFunds,
    CardExpired,
    FraudSuspected,
    /// A code for which the service has no reason of its own. The service stores `declined_other`.
    DoNotHonor,
}

/// A completed attempt to refund money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refund {
    /// `re_` and a `UUIDv7`.
    pub id: String,
    /// The reference from the request. The service sends the refund's `gateway_key` as the reference and as the
    /// idempotency key.
    pub reference: Uuid,
    pub charge_id: String,
    pub status: RefundStatus,
    /// Amount in minor units of the charge's currency.
    pub amount: i64,
}

impl Refund {
    pub(super) fn new(request: &RefundRequest, charge_id: &str, status: RefundStatus) -> Self {
        Self {
            id: format!("re_{}", Uuid::now_v7().simple()),
            reference: request.reference,
            charge_id: charge_id.to_owned(),
            status,
            amount: request.amount,
        }
    }
}

/// The outcome of a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundStatus {
    Succeeded,
    Failed,
}

/// The payment methods that the simulator accepts. A retry is a request with the idempotency key of the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PaymentMethod {
    #[serde(rename = "pm_card_ok")]
    Ok,
    #[serde(rename = "pm_card_declined")]
    Declined,
    #[serde(rename = "pm_card_expired")]
    Expired,
    #[serde(rename = "pm_card_fraud")]
    Fraud,
    /// Charges immediately, and responds after [`super::Timings::slow_response`].
    #[serde(rename = "pm_card_slow")]
    Slow,
    /// Charges once, and never responds to the first request or a retry.
    #[serde(rename = "pm_card_timeout")]
    Timeout,
    /// Responds with 500 to the first request and two retries, without charging. The third retry charges.
    #[serde(rename = "pm_card_error")]
    Error,
    /// Charges once, and responds with 500 to the first request and every retry.
    #[serde(rename = "pm_card_error_after_charge")]
    ErrorAfterCharge,
    /// Responds with 503 to the first, third, fifth … request with the same idempotency key. The second request
    /// charges.
    #[serde(rename = "pm_card_flaky")]
    Flaky,
}

impl PaymentMethod {
    /// Returns the status if the method rejects the `nth` request with the same idempotency key before any effect.
    /// `nth` starts at 1.
    pub(super) fn rejection_status(self, nth: u32) -> Option<u16> {
        match self {
            Self::Error if nth <= 3 => Some(500),
            Self::Flaky if nth % 2 == 1 => Some(503),
            _ => None,
        }
    }

    pub(super) fn decline_code(self) -> Option<DeclineCode> {
        match self {
            Self::Declined => Some(DeclineCode::InsufficientFunds),
            Self::Expired => Some(DeclineCode::CardExpired),
            Self::Fraud => Some(DeclineCode::FraudSuspected),
            _ => None,
        }
    }
}
