//! Payments and refunds, and the rules for their status and for requests. No I/O.
mod outcome;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::outcome::{
    FailureReason, Mismatch, NextStep, RefundSettlement, Settlement, check_charge, check_refund,
};
use platform::http::{extract::Validate, problem::FieldError, timestamp};

/// The status of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    /// The gateway's outcome is not known yet.
    Processing,
    /// The gateway charged the payment.
    Succeeded,
    /// The bank of the card declined the charge.
    Declined,
    /// Nothing was charged, and the bank did not decline.
    Failed,
    /// Partially refunded.
    PartiallyRefunded,
    /// Completely refunded.
    Refunded,
}

impl PaymentStatus {
    /// Every status.
    pub const ALL: [Self; 6] = [
        Self::Processing,
        Self::Succeeded,
        Self::Declined,
        Self::Failed,
        Self::PartiallyRefunded,
        Self::Refunded,
    ];

    /// Returns the name as written in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Succeeded => "succeeded",
            Self::Declined => "declined",
            Self::Failed => "failed",
            Self::PartiallyRefunded => "partially_refunded",
            Self::Refunded => "refunded",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Returns whether a payment with this status can get the status `next`. Mirrors the SQL trigger
    /// `payment_status_moves_forward`.
    pub fn may_become(self, next: Self) -> bool {
        use PaymentStatus::{Declined, Failed, PartiallyRefunded, Processing, Refunded, Succeeded};
        matches!(
            (self, next),
            (Processing, Succeeded | Declined | Failed)
                | (Succeeded, PartiallyRefunded | Refunded)
                | (PartiallyRefunded, Refunded)
        )
    }

    /// Returns whether the gateway charged the payment, regardless of later refunds.
    pub fn took_money(self) -> bool {
        matches!(self, Self::Succeeded | Self::PartiallyRefunded | Self::Refunded)
    }
}

/// A payment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Payment {
    /// The payment's id.
    pub id: Uuid,
    /// The paid order.
    pub order_id: Uuid,
    /// Status of the payment.
    pub status: PaymentStatus,
    /// Amount in minor units.
    #[schema(example = 2580)]
    pub amount: i64,
    /// ISO 4217 code of the currency.
    #[schema(example = "EUR")]
    pub currency: String,
    /// Sum of the successful refunds, in minor units.
    #[schema(example = 0)]
    pub refunded_amount: i64,
    /// Reason why nothing was charged.
    #[schema(example = "insufficient_funds")]
    pub failure_reason: Option<String>,
    /// Time of creation.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
    /// Time of the last change.
    #[serde(serialize_with = "timestamp::serialize")]
    pub updated_at: DateTime<Utc>,
}

/// A request to pay an order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPayment {
    /// A payment method of the gateway.
    #[schema(example = "pm_card_ok", min_length = 1, max_length = 255, pattern = "^[!-~]{1,255}$")]
    pub payment_method: String,
}

impl Validate for NewPayment {
    fn validate(&self) -> Vec<FieldError> {
        let visible = self.payment_method.bytes().all(|byte| byte.is_ascii_graphic());
        if visible && (1..=255).contains(&self.payment_method.len()) {
            return Vec::new();
        }
        vec![FieldError::new("/payment_method", "must be 1 to 255 visible ASCII characters")]
    }
}

/// The status of a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefundStatus {
    /// The gateway's outcome is not known yet.
    Processing,
    /// The gateway refunded the amount.
    Succeeded,
    /// The gateway refunded nothing.
    Failed,
}

impl RefundStatus {
    /// Returns the name as written in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Processing, Self::Succeeded, Self::Failed].into_iter().find(|status| status.as_str() == text)
    }
}

/// A refund.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Refund {
    /// The refund's id.
    pub id: Uuid,
    /// The refunded payment.
    pub payment_id: Uuid,
    /// Status of the refund.
    pub status: RefundStatus,
    /// Amount in minor units.
    #[schema(example = 1290)]
    pub amount: i64,
    /// ISO 4217 code of the currency.
    #[schema(example = "EUR")]
    pub currency: String,
    /// Time of creation.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
}

/// The requested refund.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRefund {
    /// Amount in minor units. Omitted: the whole refundable amount.
    #[schema(minimum = 1, maximum = 9_223_372_036_854_775_807_i64, example = 1290)]
    pub amount: Option<i64>,
    /// Reason of the refund, at most 500 characters. The reason is stored, and not sent to the gateway.
    #[schema(max_length = 500, pattern = r"^[^\x00]*$", example = "The mug arrived broken")]
    pub reason: Option<String>,
}

impl Validate for NewRefund {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.amount.is_some_and(|amount| amount < 1) {
            errors.push(FieldError::new("/amount", "must be 1 minor unit or more"));
        }
        let is_invalid = |reason: &String| reason.chars().count() > 500 || reason.contains('\0');
        if self.reason.as_ref().is_some_and(is_invalid) {
            errors.push(FieldError::new("/reason", "must have at most 500 characters and no NUL"));
        }
        errors
    }
}

#[cfg(test)]
mod tests;
