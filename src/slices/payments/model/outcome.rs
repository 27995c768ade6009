//! What is certain about a payment or a refund, and what is not. No I/O.
use std::time::Duration;

use super::PaymentStatus;
use crate::slices::payments::{
    gateway::{Charge, ChargeStatus, GatewayRefund, GatewayRefundStatus},
    gateway_key::GatewayKey,
};

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
    /// The gateway rejected the request itself, or an operator has found that it never took money for it.
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
    /// The gateway rejected a request (4xx). Certain only if this is the only request that may have reached the
    /// gateway, which the settling statement checks.
    Rejected,
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
            Self::Rejected | Self::Failed { .. } => PaymentStatus::Failed,
        }
    }

    /// The gateway's charge, if there is one.
    pub fn charge_id(&self) -> Option<&str> {
        match self {
            Self::Succeeded { charge_id } | Self::Declined { charge_id, .. } => Some(charge_id),
            Self::Rejected | Self::Failed { .. } => None,
        }
    }

    /// Why no money was taken.
    pub fn reason(&self) -> Option<FailureReason> {
        match self {
            Self::Succeeded { .. } => None,
            Self::Rejected => Some(FailureReason::GatewayRejected),
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
pub fn judge_charge(
    key: GatewayKey,
    amount: i64,
    currency: &str,
    charge: &Charge,
) -> Result<Settlement, Mismatch> {
    if charge.reference != key {
        return Err(Mismatch("reference"));
    }
    if charge.amount != amount {
        return Err(Mismatch("amount"));
    }
    if charge.currency != currency {
        return Err(Mismatch("currency"));
    }
    let charge_id = charge.id.as_str().to_owned();
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
    /// The gateway's refund; none if an operator ends it.
    pub gateway_refund_id: Option<String>,
}

/// Judges a refund, like [`judge_charge`].
///
/// # Errors
/// When reference, amount or charge are another's.
pub fn judge_refund(
    key: GatewayKey,
    amount: i64,
    charge_id: &str,
    refund: &GatewayRefund,
) -> Result<RefundSettlement, Mismatch> {
    if refund.reference != key {
        return Err(Mismatch("reference"));
    }
    if refund.amount != amount {
        return Err(Mismatch("amount"));
    }
    if refund.charge_id.as_str() != charge_id {
        return Err(Mismatch("charge"));
    }
    let succeeded = refund.status == GatewayRefundStatus::Succeeded;
    Ok(RefundSettlement { succeeded, gateway_refund_id: Some(refund.id.as_str().to_owned()) })
}

/// The gateway forgets an idempotency key after 24 hours. Until an hour before that the same charge may be resent;
/// afterwards recovery only polls.
const RESEND_WITHIN: Duration = Duration::from_hours(23);
/// An hour after the gateway has forgotten the key, no request under it can be on its way any more.
const NEVER_CHARGED_AFTER: Duration = Duration::from_hours(25);

/// What to do about a payment for which the gateway knows no charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCharge {
    /// A first call may still be in flight: resend the same charge under the same key, and let its response decide.
    Resend,
    /// Too late to resend, too early to be sure.
    Poll,
    /// It was never charged, and never will be.
    NeverCharged,
}

impl NoCharge {
    /// By how long ago the charge was first sent, on the database's clock.
    pub fn after(since_first_sent: Duration) -> Self {
        if since_first_sent < RESEND_WITHIN {
            Self::Resend
        } else if since_first_sent < NEVER_CHARGED_AFTER {
            Self::Poll
        } else {
            Self::NeverCharged
        }
    }
}
