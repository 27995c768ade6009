//! Payments and refunds, and the rules by which they are settled. No I/O.
mod outcome;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::outcome::{
    FailureReason, Mismatch, NoCharge, RefundSettlement, Settlement, judge_charge, judge_refund,
};
use platform::http::{extract::Validate, problem::FieldError, timestamp};

/// Where a payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    /// The gateway's answer is not known yet.
    Processing,
    /// The money was taken.
    Succeeded,
    /// The card's bank said no.
    Declined,
    /// Nothing was charged, for another reason.
    Failed,
    /// Some of the money was given back.
    PartiallyRefunded,
    /// All of the money was given back.
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

    /// Returns whether a payment may change from this status to `next`. Mirrors the SQL trigger
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

    /// Returns whether the gateway took the money, regardless of later refunds.
    pub fn took_money(self) -> bool {
        matches!(self, Self::Succeeded | Self::PartiallyRefunded | Self::Refunded)
    }
}

/// A payment, as it is shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Payment {
    /// The payment's id.
    pub id: Uuid,
    /// What is paid.
    pub order_id: Uuid,
    /// Where it stands.
    pub status: PaymentStatus,
    /// In minor units.
    #[schema(example = 2580)]
    pub amount: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
    /// What was given back, in minor units.
    #[schema(example = 0)]
    pub refunded_amount: i64,
    /// Why no money was taken.
    #[schema(example = "insufficient_funds")]
    pub failure_reason: Option<String>,
    /// When it began.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    #[serde(serialize_with = "timestamp::serialize")]
    pub updated_at: DateTime<Utc>,
}

/// How to pay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPayment {
    /// A payment method that the gateway knows.
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

/// Where a refund stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefundStatus {
    /// The gateway's answer is not known yet.
    Processing,
    /// The money was given back.
    Succeeded,
    /// It was not.
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

/// A refund, as it is shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Refund {
    /// The refund's id.
    pub id: Uuid,
    /// What is given back.
    pub payment_id: Uuid,
    /// Where it stands.
    pub status: RefundStatus,
    /// In minor units.
    #[schema(example = 1290)]
    pub amount: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
    /// When it began.
    #[serde(serialize_with = "timestamp::serialize")]
    pub created_at: DateTime<Utc>,
}

/// What to give back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRefund {
    /// In minor units; what is left of the payment if omitted.
    #[schema(minimum = 1, maximum = 9_223_372_036_854_775_807_i64, example = 1290)]
    pub amount: Option<i64>,
    /// For the books: at most 500 characters.
    #[schema(max_length = 500, pattern = r"^[^\x00]*$", example = "The mug arrived broken")]
    pub reason: Option<String>,
}

impl Validate for NewRefund {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.amount.is_some_and(|amount| amount < 1) {
            errors.push(FieldError::new("/amount", "must be 1 minor unit or more"));
        }
        let long = |reason: &String| reason.chars().count() > 500 || reason.contains('\0');
        if self.reason.as_ref().is_some_and(long) {
            errors.push(FieldError::new("/reason", "must have at most 500 characters"));
        }
        errors
    }
}

#[cfg(test)]
mod tests;
