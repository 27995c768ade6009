//! The problems of payments: their own kinds, and the response to each error.
use platform::http::problem::{FieldError, Problem};

use super::errors::PaymentError;

platform::problem_kinds! {
    /// The webhook's signature is missing, wrong, or older than five minutes.
    BAD_SIGNATURE = BAD_REQUEST "bad-signature" "Invalid signature";
}

impl From<PaymentError> for Problem {
    fn from(error: PaymentError) -> Self {
        match error {
            PaymentError::OrderNotFound(id) => Self::not_found_or_not_owned("orders", id),
            PaymentError::NotFound => Self::not_found(),
            PaymentError::OrderCancelled => Self::conflict("The order is cancelled."),
            PaymentError::OrderPaid => Self::conflict("The order is paid already."),
            PaymentError::OrderBeingPaid => Self::conflict("A payment of this order is under way."),
            PaymentError::OrderTaken => {
                Self::conflict("The order was paid, cancelled, or is being paid by another request.")
            }
            PaymentError::NotSettled => Self::conflict("The payment's outcome is not known yet."),
            PaymentError::TookNoMoney => Self::conflict("The payment took no money."),
            PaymentError::ExceedsPayment => {
                Self::invalid(vec![FieldError::new("/amount", "is more than was paid")])
            }
            PaymentError::NothingLeft => {
                Self::conflict("All of the payment was given back, or is being given back.")
            }
            PaymentError::ExceedsRefundable(left) => {
                Self::conflict(format!("Only {left} minor units of the payment are left to refund."))
            }
            PaymentError::RefundableTaken => Self::conflict("Another refund took what was left of the payment."),
            PaymentError::CannotCharge(error) => Self::unavailable(error.retry_after_seconds())
                .detail("The payment gateway is not available. Nothing was charged."),
            PaymentError::CannotRefund(error) => Self::unavailable(error.retry_after_seconds())
                .detail("The payment gateway is not available. Nothing was refunded."),
            PaymentError::BeginningUncertain => Self::unavailable(1)
                .detail("It is not certain whether the payment has begun. Send the same request again, with the same Idempotency-Key."),
            PaymentError::SettledConcurrently | PaymentError::OrderMissing => Self::unavailable(1),
            PaymentError::BadSignature => Self::new(BAD_SIGNATURE),
            PaymentError::UnreadableEvent => Self::malformed("The event cannot be read."),
            PaymentError::InvalidBody(problem) => problem,
            PaymentError::Key(error) => error.into(),
            PaymentError::Serialization(error) => Self::internal(&error),
            PaymentError::Panicked(error) => Self::internal(&error),
            PaymentError::Database(error) => error.into(),
        }
    }
}
