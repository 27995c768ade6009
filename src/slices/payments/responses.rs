//! The responses for payments and refunds. The HTTP status is 202 while the outcome is unknown, and 201 after the
//! settlement, even if nothing was charged or refunded. The response of a settled payment or refund is stored for
//! replays.
use axum::http::StatusCode;
use platform::http::idempotency::StoredResponse;
use uuid::Uuid;

use super::model::{Payment, PaymentStatus, Refund, RefundStatus};

/// Returns the response for a payment.
pub fn of_payment(payment: &Payment) -> Result<StoredResponse, serde_json::Error> {
    let status = status(payment.status == PaymentStatus::Processing);
    Ok(StoredResponse::new(status, payment)?.at(payment_location(payment.id)))
}

/// Returns the path of a payment, for the `Location` header.
pub fn payment_location(id: Uuid) -> String {
    format!("/v1/payments/{id}")
}

/// Returns the response for a refund.
pub fn of_refund(refund: &Refund) -> Result<StoredResponse, serde_json::Error> {
    StoredResponse::new(status(refund.status == RefundStatus::Processing), refund)
}

fn status(processing: bool) -> StatusCode {
    if processing { StatusCode::ACCEPTED } else { StatusCode::CREATED }
}
