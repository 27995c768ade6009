//! Payments and refunds, and the rules by which they are settled. No I/O.
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::gateway::{Charge, ChargeStatus, GatewayRefund, GatewayRefundStatus};
use crate::platform::http::{extract::Validate, problem::FieldError, timestamp};

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

    /// As it is written in SQL and JSON.
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

    /// Reads what [`Self::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether a payment may go from here to there. Its twin in SQL is the trigger `payment_status_moves_forward`.
    pub fn may_become(self, next: Self) -> bool {
        use PaymentStatus::{Declined, Failed, PartiallyRefunded, Processing, Refunded, Succeeded};
        matches!(
            (self, next),
            (Processing, Succeeded | Declined | Failed)
                | (Succeeded, PartiallyRefunded | Refunded)
                | (PartiallyRefunded, Refunded)
        )
    }

    /// Whether the gateway took the money, whatever was given back since.
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
    #[schema(example = "pm_card_ok", min_length = 1, max_length = 255)]
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
    /// As it is written in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    /// Reads what [`Self::as_str`] writes.
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
    #[schema(minimum = 1, example = 1290)]
    pub amount: Option<i64>,
    /// For the books: at most 500 characters.
    #[schema(max_length = 500, example = "The mug arrived broken")]
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

/// Why no money was taken, from a closed list: it is a label of `payment_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    /// The bank: not enough money.
    InsufficientFunds,
    /// The bank: the card is too old.
    CardExpired,
    /// The bank or the gateway: this looks like fraud.
    FraudSuspected,
    /// The bank: another reason.
    DeclinedOther,
    /// The gateway refused the request itself.
    GatewayRejected,
    /// The gateway did not answer in time; for a payment that failed of it: and has never charged.
    GatewayTimeout,
    /// The gateway answered with an error; the outcome is not known.
    GatewayError,
}

impl FailureReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::InsufficientFunds,
        Self::CardExpired,
        Self::FraudSuspected,
        Self::DeclinedOther,
        Self::GatewayRejected,
        Self::GatewayTimeout,
        Self::GatewayError,
    ];

    /// As it is written in SQL, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InsufficientFunds => "insufficient_funds",
            Self::CardExpired => "card_expired",
            Self::FraudSuspected => "fraud_suspected",
            Self::DeclinedOther => "declined_other",
            Self::GatewayRejected => "gateway_rejected",
            Self::GatewayTimeout => "gateway_timeout",
            Self::GatewayError => "gateway_error",
        }
    }

    fn of_decline(code: Option<&str>) -> Self {
        match code {
            Some("insufficient_funds") => Self::InsufficientFunds,
            Some("card_expired") => Self::CardExpired,
            Some("fraud_suspected") => Self::FraudSuspected,
            _ => Self::DeclinedOther,
        }
    }
}

/// What is certain about a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The money was taken.
    Succeeded {
        /// The charge that took it.
        charge_id: String,
    },
    /// The bank said no.
    Declined {
        /// The charge that was tried.
        charge_id: String,
        /// Why.
        reason: FailureReason,
    },
    /// Nothing was charged, and nothing will be.
    Failed {
        /// Why.
        reason: FailureReason,
    },
}

impl Settlement {
    /// The payment's status from now on.
    pub fn status(&self) -> PaymentStatus {
        match self {
            Self::Succeeded { .. } => PaymentStatus::Succeeded,
            Self::Declined { .. } => PaymentStatus::Declined,
            Self::Failed { .. } => PaymentStatus::Failed,
        }
    }

    /// The gateway's charge, if there is one.
    pub fn charge_id(&self) -> Option<&str> {
        match self {
            Self::Succeeded { charge_id } | Self::Declined { charge_id, .. } => Some(charge_id),
            Self::Failed { .. } => None,
        }
    }

    /// Why no money was taken.
    pub fn reason(&self) -> Option<FailureReason> {
        match self {
            Self::Succeeded { .. } => None,
            Self::Declined { reason, .. } | Self::Failed { reason } => Some(*reason),
        }
    }
}

/// What the gateway says does not fit what was asked of it. Nothing is settled by it, and a person must look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the gateway's {0} differs from what was asked for")]
pub struct Mismatch(pub &'static str);

/// Judges a charge: whether it is this payment's at all, and what it settles.
///
/// # Errors
/// When reference, amount or currency are another's.
pub fn judge_charge(id: Uuid, amount: i64, currency: &str, charge: &Charge) -> Result<Settlement, Mismatch> {
    if charge.reference != id {
        return Err(Mismatch("reference"));
    }
    if charge.amount != amount {
        return Err(Mismatch("amount"));
    }
    if charge.currency != currency {
        return Err(Mismatch("currency"));
    }
    let charge_id = charge.id.clone();
    Ok(match charge.status {
        ChargeStatus::Succeeded => Settlement::Succeeded { charge_id },
        ChargeStatus::Declined => Settlement::Declined {
            charge_id,
            reason: FailureReason::of_decline(charge.decline_code.as_deref()),
        },
    })
}

/// What is certain about a refund. Only the gateway's own word ends one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundSettlement {
    /// Whether the money was given back.
    pub succeeded: bool,
    /// The gateway's refund.
    pub gateway_refund_id: String,
}

/// Judges a refund, like [`judge_charge`].
///
/// # Errors
/// When reference, amount or charge are another's.
pub fn judge_refund(
    id: Uuid,
    amount: i64,
    charge_id: &str,
    refund: &GatewayRefund,
) -> Result<RefundSettlement, Mismatch> {
    if refund.reference != id {
        return Err(Mismatch("reference"));
    }
    if refund.amount != amount {
        return Err(Mismatch("amount"));
    }
    if refund.charge_id != charge_id {
        return Err(Mismatch("charge"));
    }
    let succeeded = refund.status == GatewayRefundStatus::Succeeded;
    Ok(RefundSettlement { succeeded, gateway_refund_id: refund.id.clone() })
}

/// The gateway forgets an idempotency key after 24 hours. Until an hour before that the same charge may be sent
/// again; afterwards one may only ask.
const RESEND_WITHIN: Duration = Duration::from_hours(23);
/// An hour after the gateway has forgotten the key, no request under it can be on its way any more.
const NEVER_CHARGED_AFTER: Duration = Duration::from_hours(25);

/// What to do about a payment for which the gateway knows no charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCharge {
    /// A first call may still be on its way: send the same charge again under the same key, and let its answer decide.
    SendAgain,
    /// Too late to send again, too early to be sure.
    AskAgain,
    /// It was never charged, and never will be.
    NeverCharged,
}

impl NoCharge {
    /// By how long ago the charge was first sent, on the database's clock.
    pub fn after(since_first_sent: Duration) -> Self {
        if since_first_sent < RESEND_WITHIN {
            Self::SendAgain
        } else if since_first_sent < NEVER_CHARGED_AFTER {
            Self::AskAgain
        } else {
            Self::NeverCharged
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn charge(id: Uuid, amount: i64, currency: &str, status: ChargeStatus) -> Charge {
        Charge {
            id: "ch_1".into(),
            reference: id,
            status,
            decline_code: None,
            amount,
            currency: currency.into(),
        }
    }

    #[test]
    fn a_charge_of_another_payment_amount_or_currency_settles_nothing() {
        let id = Uuid::now_v7();
        let judge = |charge: &Charge| judge_charge(id, 100, "EUR", charge);
        assert!(judge(&charge(id, 100, "EUR", ChargeStatus::Succeeded)).is_ok());
        assert_eq!(
            judge(&charge(Uuid::now_v7(), 100, "EUR", ChargeStatus::Succeeded)),
            Err(Mismatch("reference"))
        );
        assert_eq!(judge(&charge(id, 101, "EUR", ChargeStatus::Succeeded)), Err(Mismatch("amount")));
        assert_eq!(judge(&charge(id, 100, "USD", ChargeStatus::Succeeded)), Err(Mismatch("currency")));
    }

    #[test]
    fn an_unknown_decline_code_is_a_decline_all_the_same() {
        let id = Uuid::now_v7();
        let mut declined = charge(id, 100, "EUR", ChargeStatus::Declined);
        declined.decline_code = Some("moon_phase".into());
        let settlement = judge_charge(id, 100, "EUR", &declined).unwrap();
        assert_eq!(settlement.reason(), Some(FailureReason::DeclinedOther));
    }

    #[test]
    fn an_empty_answer_is_proof_only_after_the_gateway_has_forgotten_the_key() {
        let hours = |hours| NoCharge::after(Duration::from_hours(hours));
        assert_eq!(hours(0), NoCharge::SendAgain);
        assert_eq!(hours(22), NoCharge::SendAgain);
        assert_eq!(hours(23), NoCharge::AskAgain);
        assert_eq!(hours(24), NoCharge::AskAgain);
        assert_eq!(hours(25), NoCharge::NeverCharged);
    }

    proptest! {
        #[test]
        fn a_payment_never_takes_money_after_it_was_refused(
            path in prop::collection::vec(prop::sample::select(PaymentStatus::ALL.to_vec()), 1..10)
        ) {
            let mut status = PaymentStatus::Processing;
            let mut refused = false;
            for next in path {
                if status.may_become(next) {
                    refused |= matches!(next, PaymentStatus::Declined | PaymentStatus::Failed);
                    status = next;
                }
                prop_assert!(!(refused && status.took_money()));
            }
        }

        #[test]
        fn a_settlement_is_always_allowed_from_processing_and_never_twice(amount in 1..i64::MAX, declined: bool) {
            let id = Uuid::now_v7();
            let status = if declined { ChargeStatus::Declined } else { ChargeStatus::Succeeded };
            let settled = judge_charge(id, amount, "EUR", &charge(id, amount, "EUR", status)).unwrap().status();
            prop_assert!(PaymentStatus::Processing.may_become(settled));
            prop_assert!(!settled.may_become(PaymentStatus::Succeeded));
            prop_assert!(!settled.may_become(PaymentStatus::Declined));
        }
    }
}
