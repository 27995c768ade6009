//! The reasons why a request or a webhook is rejected, or a step of a payment or refund fails.
use platform::http::{idempotency::KeyError, problem::Problem};
use uuid::Uuid;

use super::gateway::SlotError;

/// A rejected request or webhook, or a failed step of a payment or refund.
#[derive(Debug, thiserror::Error)]
pub enum PaymentError {
    /// The customer has no such order.
    #[error("there is no order {0}, or it belongs to another customer")]
    OrderNotFound(Uuid),
    /// There is no such payment or refund.
    #[error("there is no such payment or refund")]
    NotFound,
    /// The order is cancelled.
    #[error("the order is cancelled")]
    OrderCancelled,
    /// The order is already paid.
    #[error("the order is already paid")]
    OrderPaid,
    /// Another payment of the order is in progress.
    #[error("another payment of the order is in progress")]
    OrderBeingPaid,
    /// A concurrent request paid or cancelled the order, or began a payment for it.
    #[error("a concurrent request claimed the order first")]
    OrderTaken,
    /// The payment cannot be refunded yet, because its outcome is unknown.
    #[error("the outcome of the payment is unknown")]
    NotSettled,
    /// The payment cannot be refunded, because nothing was charged.
    #[error("the payment charged nothing")]
    TookNoMoney,
    /// The amount to refund exceeds the payment.
    #[error("the amount exceeds the payment")]
    ExceedsPayment,
    /// The whole amount of the payment was refunded, or is reserved by refunds in progress.
    #[error("nothing of the payment is left to refund")]
    NothingLeft,
    /// The amount to refund exceeds the refundable amount. The field is the refundable amount, in minor units.
    #[error("only {0} minor units of the payment are left to refund")]
    ExceedsRefundable(i64),
    /// A concurrent refund reserved the refundable amount first.
    #[error("a concurrent refund reserved the refundable amount first")]
    RefundableTaken,
    /// No new charge is sent, because the breaker is open or too many requests wait for the gateway.
    #[error("no charge can begin: {0}")]
    CannotCharge(SlotError),
    /// No new refund is sent, because the breaker is open or too many requests wait for the gateway.
    #[error("no refund can begin: {0}")]
    CannotRefund(SlotError),
    /// At the request's deadline, it was not known whether the transaction that stores the payment or refund had
    /// committed. A background task continues, so this transaction may still commit.
    #[error("it is uncertain whether the payment or refund has begun")]
    BeginningUncertain,
    /// A concurrent transaction stored the gateway's charge or refund as the outcome of another payment or refund. A
    /// retry finds that payment or refund, and records a discrepancy.
    #[error("the gateway's charge or refund is already the outcome of another payment or refund")]
    SettledConcurrently,
    /// The payment's order is missing. No code of the service deletes orders.
    #[error("the order of the payment is missing")]
    OrderMissing,
    /// The signature of a webhook is missing, wrong, or too old.
    #[error("the signature of the event is invalid")]
    BadSignature,
    /// The body of a signed webhook is not an event.
    #[error("the event is malformed")]
    UnreadableEvent,
    /// The body of the request is invalid. Before this error is returned, the idempotency key is looked up, so that an
    /// accepted request is replayed even if the validation rules have changed.
    #[error("the body of the request is invalid")]
    InvalidBody(Problem),
    /// The idempotency key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A request to the gateway or a response to the client could not be serialized.
    #[error(transparent)]
    Serialization(#[from] serde_json::Error),
    /// The task that sends the payment or refund panicked.
    #[error("the task of the payment or refund panicked: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    /// A statement failed, or the database is unreachable.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl PaymentError {
    /// Returns whether the error is a failure of the service or the database, which the caller must log. A panic is not
    /// included, because the panic hook logs it.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::Database(_)
                | Self::Key(KeyError::Database(_))
                | Self::Serialization(_)
                | Self::OrderMissing
        )
    }
}
