//! The command `payments end`: an operator marks a payment or refund of unknown outcome as failed, because no money was
//! moved.
//!
//! The service never guesses an outcome. The operator needs the gateway's own confirmation that no money was moved, and
//! gives a reason, which the audit log records. A failed payment's order can be paid again, and the amount of a failed
//! refund can be refunded again. If the gateway reports moved money afterwards, the status stays, and the contradiction
//! is recorded as a discrepancy.
use platform::database::Database;
use uuid::Uuid;

use super::{
    errors::PaymentError,
    model::{FailureReason, PaymentStatus, RefundSettlement, RefundStatus, Settlement},
    settlement,
    store::{
        self, By, payments,
        refunds::{self, RefundRecord},
    },
};

/// The result of ending a payment or refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndResult {
    /// The payment now has the status `failed`.
    Payment,
    /// The refund now has the status `failed`.
    Refund,
    /// The payment or refund was settled before, with this status.
    Settled(&'static str),
    /// Nothing was changed: the record is not marked for review and has no open discrepancy, so recovery may still find
    /// the outcome.
    NeedsNoReview,
    /// No payment and no refund has this id.
    NotFound,
}

/// Marks a payment or refund as failed, if its outcome is unknown and it needs review.
///
/// # Errors
/// If a statement fails, or the order of the payment is missing. Nothing is ended then.
pub async fn end_without_money(
    database: &Database,
    id: Uuid,
    reason: &str,
) -> Result<EndResult, PaymentError> {
    let mut transaction = database.begin().await?;
    if let Some(found) = payments::find_within(&mut transaction, By::Id(id)).await? {
        let settlement = Settlement::Failed { reason: FailureReason::GatewayRejected };
        if found.payment.status != PaymentStatus::Processing {
            return Ok(EndResult::Settled(found.payment.status.as_str()));
        }
        if !store::needs_review(&mut transaction, id).await? {
            return Ok(EndResult::NeedsNoReview);
        }
        let order_id = found.payment.order_id;
        let settled = settlement::settle(&mut transaction, id, order_id, &settlement, Some(reason)).await?;
        transaction.commit().await?;
        let (payment, ended) = settled.committed_by_command();
        return Ok(if ended { EndResult::Payment } else { EndResult::Settled(payment.status.as_str()) });
    }
    let Some(RefundRecord { refund, open, .. }) = refunds::find_within(&mut transaction, By::Id(id)).await?
    else {
        return Ok(EndResult::NotFound);
    };
    if refund.status != RefundStatus::Processing {
        return Ok(EndResult::Settled(refund.status.as_str()));
    }
    if !store::needs_review(&mut transaction, id).await? {
        return Ok(EndResult::NeedsNoReview);
    }
    let settlement = RefundSettlement { succeeded: false, gateway_refund_id: None };
    let settled = settlement::settle_refund(&mut transaction, &open, &settlement, Some(reason)).await?;
    transaction.commit().await?;
    let (refund, ended) = settled.committed_by_command();
    Ok(if ended { EndResult::Refund } else { EndResult::Settled(refund.status.as_str()) })
}
