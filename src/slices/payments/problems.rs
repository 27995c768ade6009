//! The problems of payments: one problem kind in addition to those of the platform, and the problem for each error.
use platform::http::problem::{FieldError, Problem};

use super::errors::PaymentError;

platform::problem_kinds! {
    /// The webhook's id, timestamp or signature is missing or invalid, or the timestamp is off by more than five
    /// minutes.
    BAD_SIGNATURE = BAD_REQUEST "bad-signature" "Invalid signature";
}

impl From<PaymentError> for Problem {
    fn from(error: PaymentError) -> Self {
        match error {
            PaymentError::OrderNotFound(id) => Self::not_found_or_not_owned("orders", id),
            PaymentError::NotFound => Self::not_found(),
            PaymentError::OrderCancelled => Self::conflict("The order is cancelled."),
            PaymentError::OrderPaid => Self::conflict("The order is already paid."),
            PaymentError::OrderBeingPaid => Self::conflict("A payment of this order is in progress."),
            PaymentError::OrderTaken => {
                Self::conflict("A concurrent request paid or cancelled the order, or began a payment for it.")
            }
            PaymentError::NotSettled => Self::conflict("The payment's outcome is not known yet."),
            PaymentError::TookNoMoney => Self::conflict("The payment charged nothing."),
            PaymentError::ExceedsPayment => {
                Self::invalid(vec![FieldError::new("/amount", "exceeds the paid amount")])
            }
            PaymentError::NothingLeft => {
                Self::conflict("The payment is completely refunded, including refunds in progress.")
            }
            PaymentError::ExceedsRefundable(left) => {
                Self::conflict(format!("The refund exceeds the refundable amount of {left} minor units."))
            }
            PaymentError::RefundableTaken => Self::conflict("A concurrent refund used the refundable amount."),
            PaymentError::CannotCharge(error) => Self::unavailable(error.retry_after_seconds())
                .detail("The payment gateway is unavailable. Nothing was charged."),
            PaymentError::CannotRefund(error) => Self::unavailable(error.retry_after_seconds())
                .detail("The payment gateway is unavailable. Nothing was refunded."),
            PaymentError::BeginningUncertain => Self::unavailable(1)
                .detail("It is unknown whether the payment or refund has started. Send the same request again with the same Idempotency-Key."),
            PaymentError::SettledConcurrently | PaymentError::OrderMissing => Self::unavailable(1),
            PaymentError::BadSignature => Self::new(BAD_SIGNATURE),
            PaymentError::UnreadableEvent => Self::malformed("The event is malformed."),
            PaymentError::InvalidBody(problem) => problem,
            PaymentError::Key(error) => error.into(),
            PaymentError::Serialization(error) => Self::internal(&error),
            PaymentError::Panicked(error) => Self::internal(&error),
            PaymentError::Database(error) => error.into(),
        }
    }
}
