//! Routes that pay orders, show and refund payments, and receive the gateway's webhooks.
use axum::{
    Extension, Json as JsonBody,
    extract::{Request, State},
    http::StatusCode,
};
use platform::{
    database::Database,
    http::{
        extract::{Id, read_bytes},
        idempotency::{IdempotencyKey, IdempotentRequest, StoredResponse},
        limits::Deadline,
        problem::{Problem, ProblemBody},
    },
};
use tokio::time::Instant;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Payments,
    errors::PaymentError,
    model::{NewPayment, NewRefund, Payment, Refund},
    store::payments as store,
};
use crate::{
    accounts::{Customer, OwnerOrStaff, Staff},
    slices::Slices,
};

/// Time reserved for sending the response, so that it is sent before the request's deadline.
const RESPONSE_MARGIN: std::time::Duration = std::time::Duration::from_millis(250);

/// Returns the routes of payments.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new()
        .routes(routes!(pay_order))
        .routes(routes!(show_payment))
        .routes(routes!(refund_payment))
        .routes(routes!(receive_event))
}

/// Pay an order
/// The outcome of the attempt is in `status`. `processing` (202) means that the outcome at the gateway is not known
/// yet. Poll the payment, or repeat the request with the same key, which never charges twice.
#[utoipa::path(
    post, path = "/v1/orders/{id}/payments", tag = "payments", request_body = NewPayment, security(("session" = ["customer"])),
    params(
        ("id" = Uuid, Path, description = "The order's id"),
        IdempotencyKey,
    ),
    responses(
        (status = 201, description = "The settled payment: succeeded, declined or failed", body = Payment, headers(("location" = String, description = "The payment"))),
        (status = 202, description = "The payment, whose outcome is not known yet", body = Payment, headers(("location" = String, description = "The payment"))),
        (status = 409, description = "The order is paid or cancelled, or a payment or a request with this key is in progress", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Invalid request, or the Idempotency-Key belongs to another request", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn pay_order(
    Customer(caller): Customer,
    State(payments): State<Payments>,
    Extension(deadline): Extension<Deadline>,
    Id(order_id): Id,
    request: IdempotentRequest<NewPayment>,
) -> Result<StoredResponse, Problem> {
    limit_to_deadline(deadline, payments.pay(caller, order_id, request, respond_by(deadline))).await
}

/// Show a payment
#[utoipa::path(
    get, path = "/v1/payments/{id}", tag = "payments", params(("id" = Uuid, Path, description = "The payment's id")),
    security(("session" = ["customer", "support", "admin"])), responses((status = 200, description = "The payment", body = Payment))
)]
async fn show_payment(
    reader: OwnerOrStaff,
    State(database): State<Database>,
    Id(id): Id,
) -> Result<JsonBody<Payment>, Problem> {
    let found = store::find_of_owner(&database, id, reader.owner_filter())
        .await?
        .ok_or_else(|| Problem::not_found_or_not_owned("payments", id))?;
    reader.record_access(&database, "payments", [id]).await?;
    Ok(JsonBody(found))
}

/// Refund a payment
/// Refunds a part or all of the payment, never more than the paid amount.
#[utoipa::path(
    post, path = "/v1/payments/{id}/refunds", tag = "payments", request_body = NewRefund, security(("session" = ["support", "admin"])),
    params(
        ("id" = Uuid, Path, description = "The payment's id"),
        IdempotencyKey,
    ),
    responses(
        (status = 201, description = "The settled refund: succeeded or failed", body = Refund),
        (status = 202, description = "The refund, whose outcome is not known yet", body = Refund),
        (status = 409, description = "The refund exceeds the refundable amount, or a request with this key is in progress", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Invalid request, the amount exceeds the payment, or the Idempotency-Key belongs to another request", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn refund_payment(
    Staff(caller): Staff,
    State(payments): State<Payments>,
    Extension(deadline): Extension<Deadline>,
    Id(payment_id): Id,
    request: IdempotentRequest<NewRefund>,
) -> Result<StoredResponse, Problem> {
    limit_to_deadline(deadline, payments.refund(caller, payment_id, request, respond_by(deadline))).await
}

/// Receive an event of the payment gateway
/// The signature follows Standard Webhooks. Duplicates and events of unknown payments are acknowledged.
#[utoipa::path(
    post, path = "/v1/gateway/events", tag = "gateway",
    request_body(content = serde_json::Value, description = "The event: `type`, `timestamp` and `data`"),
    params(
        ("webhook-id" = String, Header, description = "The event's id", pattern = "^[!-~]{1,255}$"),
        ("webhook-timestamp" = String, Header, description = "Time at which the event was sent, in seconds since 1970", pattern = "^[0-9]{1,11}$"),
        ("webhook-signature" = String, Header, description = "One or more signatures, separated by spaces"),
    ),
    responses((status = 204, description = "The event was received"))
)]
async fn receive_event(State(payments): State<Payments>, request: Request) -> Result<StatusCode, Problem> {
    let headers = request.headers().clone();
    let body = read_bytes(request, &()).await?;
    payments.receive(&headers, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn respond_by(deadline: Deadline) -> Instant {
    deadline.0.checked_sub(RESPONSE_MARGIN).unwrap_or(deadline.0)
}

/// Limits the work, so that it ends shortly before the request's deadline. A payment or refund that has begun responds
/// earlier (see [`respond_by`]), so only work that has not begun can reach this limit. The response is then a 503 that
/// states that no money was moved. A 504 would leave that open.
async fn limit_to_deadline(
    deadline: Deadline,
    work: impl Future<Output = Result<StoredResponse, PaymentError>>,
) -> Result<StoredResponse, Problem> {
    let latest = deadline.0.checked_sub(RESPONSE_MARGIN / 2).unwrap_or(deadline.0);
    let timed_out = |_| {
        Problem::unavailable(1)
            .detail("The deadline passed before the work started. This request moved no money.")
    };
    Ok(tokio::time::timeout_at(latest, work).await.map_err(timed_out)??)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_has_not_begun_responds_before_the_deadline() {
        let beginning = Instant::now();
        let deadline = Deadline(beginning + Duration::from_secs(10));
        assert_eq!(respond_by(deadline) - beginning, Duration::from_millis(9750));
        assert!(limit_to_deadline(deadline, std::future::pending()).await.is_err());
        assert!((9870..=9880).contains(&beginning.elapsed().as_millis()), "{:?}", beginning.elapsed());
    }
}
