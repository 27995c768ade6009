//! The outcomes of payments and refunds: the settlement by a charge or refund of the gateway, and the next step if the
//! gateway has no charge. No I/O.
use std::time::Duration;

use super::{PaymentStatus, RefundStatus};
use crate::slices::payments::{
    gateway::{Charge, ChargeStatus, GatewayRefund, GatewayRefundStatus},
    gateway_key::GatewayKey,
};

/// Reason why a payment attempt charged nothing, or why its outcome is unknown. The reasons are label values of
/// `payment_failures_total`, so their number must be fixed. An arbitrary text of the gateway is therefore never a
/// reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    /// The bank declined because of insufficient funds.
    InsufficientFunds,
    /// The bank declined because the card has expired.
    CardExpired,
    /// The bank or the gateway suspects fraud.
    FraudSuspected,
    /// The bank declined for another reason.
    DeclinedOther,
    /// The gateway rejected the request, or an operator ended the payment because the gateway never took money for it.
    GatewayRejected,
    /// The gateway did not respond in time. A `failed` payment has this reason if the gateway had no charge 25 hours
    /// after the first send.
    GatewayTimeout,
    /// A call to the gateway failed without a timeout, or the response did not settle the payment. The outcome is
    /// unknown.
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

    /// Returns the name as written in SQL, JSON and metrics.
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

/// A final outcome of a payment, or a rejection, which may prove that nothing was charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The money was taken.
    Succeeded {
        /// The charge that took the money.
        charge_id: String,
    },
    /// The bank declined the charge.
    Declined {
        /// The declined charge.
        charge_id: String,
        /// The reason of the decline.
        reason: FailureReason,
    },
    /// The gateway rejected an attempt (4xx). If no other attempt can have reached the gateway, the rejection proves
    /// that nothing was charged. The settling statement checks this condition.
    Rejected,
    /// Nothing was charged, and nothing will be.
    Failed {
        /// The reason of the failure.
        reason: FailureReason,
    },
}

impl Settlement {
    /// Returns the payment's status after the settlement.
    pub fn status(&self) -> PaymentStatus {
        match self {
            Self::Succeeded { .. } => PaymentStatus::Succeeded,
            Self::Declined { .. } => PaymentStatus::Declined,
            Self::Rejected | Self::Failed { .. } => PaymentStatus::Failed,
        }
    }

    /// Returns the id of the gateway's charge, if there is a charge.
    pub fn charge_id(&self) -> Option<&str> {
        match self {
            Self::Succeeded { charge_id } | Self::Declined { charge_id, .. } => Some(charge_id),
            Self::Rejected | Self::Failed { .. } => None,
        }
    }

    /// Returns the reason why no money was taken.
    pub fn reason(&self) -> Option<FailureReason> {
        match self {
            Self::Succeeded { .. } => None,
            Self::Rejected => Some(FailureReason::GatewayRejected),
            Self::Declined { reason, .. } | Self::Failed { reason } => Some(*reason),
        }
    }
}

/// The field in which the gateway's object differs from the request. A differing object settles nothing, and an
/// operator must review it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the gateway's {0} differs from the requested one")]
pub struct Mismatch(pub &'static str);

/// Checks that a charge matches a payment, and returns the settlement of that payment.
///
/// # Errors
/// If the reference, the amount or the currency differs.
pub fn check_charge(
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

/// A final outcome of a refund, from a refund object of the gateway or from an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundSettlement {
    /// True if the money was refunded.
    pub succeeded: bool,
    /// The gateway's id of the refund; `None` if an operator ends the refund.
    pub gateway_refund_id: Option<String>,
}

impl RefundSettlement {
    /// Returns the refund's status after the settlement.
    pub fn status(&self) -> RefundStatus {
        if self.succeeded { RefundStatus::Succeeded } else { RefundStatus::Failed }
    }
}

/// Checks that a refund of the gateway matches a stored refund, and returns the settlement of the stored refund.
///
/// # Errors
/// If the reference, the amount or the charge differs.
pub fn check_refund(
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

/// Time since the first send within which recovery resends a charge or refund. The gateway deletes an idempotency key
/// after 24 hours, and a resend after that could charge twice. Resends therefore stop one hour earlier.
const RESEND_WITHIN: Duration = Duration::from_hours(23);
/// Time since the first send after which a payment without a charge counts as never charged. The last resend began
/// about two hours before that time, so no request under the payment's key can still be in flight.
const NEVER_CHARGED_AFTER: Duration = Duration::from_hours(25);

/// Next step for a payment for which the gateway has no charge. For a refund that the gateway does not have, recovery
/// acts only on [`Resend`](Self::Resend), and otherwise polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// An earlier call may still be in flight. Recovery resends the same charge under the same key, because the
    /// response to the resend can settle the payment.
    Resend,
    /// The charge can no longer be resent, but an earlier call may still charge. Recovery only polls.
    Poll,
    /// The payment was never charged, and never will be.
    NeverCharged,
}

impl NextStep {
    /// Returns the next step. `since_first_sent` is the time since the charge or refund was first sent, on the
    /// database's clock.
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
