//! Routes that pay orders, refund payments, and receive the gateway's webhooks.
use axum::{
    Extension, Json as JsonBody,
    extract::{Request, State},
    http::StatusCode,
};
use platform::http::{
    extract::{Id, read_bytes},
    idempotency::{IdempotencyKey, IdempotentRequest, StoredResponse},
    limits::Deadline,
    problem::{Problem, ProblemBody},
};
use tokio::time::Instant;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Payments,
    model::{NewPayment, NewRefund, Payment, Refund},
    store,
};
use crate::{
    accounts::{Customer, OwnerOrStaff, Staff},
    slices::Slices,
};

/// Time reserved for sending the response, so that it is sent before the request's deadline.
const TO_ANSWER: std::time::Duration = std::time::Duration::from_millis(250);

/// Returns the routes of payments.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new()
        .routes(routes!(pay_order))
        .routes(routes!(show_payment))
        .routes(routes!(refund_payment))
        .routes(routes!(receive_event))
}

/// Pay an order
///
/// The outcome of the attempt is in `status`. `processing` (202) means that the gateway's answer is not known yet:
/// look at the payment again, or repeat the request with the same key; it never charges twice.
#[utoipa::path(
    post, path = "/v1/orders/{id}/payments", tag = "payments", request_body = NewPayment, security(("session" = ["customer"])),
    params(
        ("id" = Uuid, Path, description = "The order's id"),
        IdempotencyKey,
    ),
    responses(
        (status = 201, description = "The payment, settled: it succeeded, or it did not", body = Payment, headers(("location" = String, description = "The payment"))),
        (status = 202, description = "The payment; its outcome is not known yet", body = Payment, headers(("location" = String, description = "The payment"))),
        (status = 409, description = "The order is paid, cancelled or being paid, or a request with this key is under way", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "The request is not valid, or the Idempotency-Key belongs to another request", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn pay_order(
    Customer(caller): Customer,
    State(payments): State<Payments>,
    Extension(deadline): Extension<Deadline>,
    Id(order_id): Id,
    request: IdempotentRequest<NewPayment>,
) -> Result<StoredResponse, Problem> {
    in_time(deadline, payments.pay(caller, order_id, request, answer_by(deadline))).await
}

/// Show a payment
#[utoipa::path(
    get, path = "/v1/payments/{id}", tag = "payments", params(("id" = Uuid, Path, description = "The payment's id")),
    security(("session" = ["customer", "support", "admin"])), responses((status = 200, description = "The payment", body = Payment))
)]
async fn show_payment(
    reader: OwnerOrStaff,
    State(payments): State<Payments>,
    Id(id): Id,
) -> Result<JsonBody<Payment>, Problem> {
    let found = payments
        .find(id, reader.owner_filter())
        .await?
        .ok_or_else(|| Problem::not_found_or_not_owned("payments", id))?;
    if reader.owner_filter().is_none() {
        payments.record_access(id).await?;
    }
    Ok(JsonBody(found))
}

/// Refund a payment
///
/// In part or in full; never more than was paid.
#[utoipa::path(
    post, path = "/v1/payments/{id}/refunds", tag = "payments", request_body = NewRefund, security(("session" = ["support", "admin"])),
    params(
        ("id" = Uuid, Path, description = "The payment's id"),
        IdempotencyKey,
    ),
    responses(
        (status = 201, description = "The refund, settled: it succeeded, or it failed", body = Refund),
        (status = 202, description = "The refund; its outcome is not known yet", body = Refund),
        (status = 409, description = "Not so much is left to refund, or a request with this key is under way", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "The request is not valid, the amount exceeds the payment, or the Idempotency-Key belongs to another request", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn refund_payment(
    Staff(caller): Staff,
    State(payments): State<Payments>,
    Extension(deadline): Extension<Deadline>,
    Id(payment_id): Id,
    request: IdempotentRequest<NewRefund>,
) -> Result<StoredResponse, Problem> {
    in_time(deadline, payments.refund(caller, payment_id, request, answer_by(deadline))).await
}

/// Receive an event of the payment gateway
///
/// Signed as Standard Webhooks says. Duplicates and events of unknown payments are acknowledged.
#[utoipa::path(
    post, path = "/v1/gateway/events", tag = "gateway",
    request_body(content = serde_json::Value, description = "The event: `type`, `timestamp` and `data`"),
    params(
        ("webhook-id" = String, Header, description = "The event's id", pattern = "^[!-~]{1,255}$"),
        ("webhook-timestamp" = String, Header, description = "When it was sent, in seconds since 1970", pattern = "^[0-9]{1,11}$"),
        ("webhook-signature" = String, Header, description = "One or more signatures, separated by spaces"),
    ),
    responses((status = 204, description = "The event is received"))
)]
async fn receive_event(State(payments): State<Payments>, request: Request) -> Result<StatusCode, Problem> {
    let headers = request.headers().clone();
    let body = read_bytes(request, &()).await?;
    payments.receive(&headers, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn answer_by(deadline: Deadline) -> Instant {
    deadline.0.checked_sub(TO_ANSWER).unwrap_or(deadline.0)
}

/// Limits the work to the request's deadline. Work that has begun responds earlier (see [`answer_by`]), so only work
/// that has not begun is late. Its response is a 503, because the 504 of the deadline would leave the result unknown.
async fn in_time(
    deadline: Deadline,
    work: impl Future<Output = Result<StoredResponse, Problem>>,
) -> Result<StoredResponse, Problem> {
    let latest = deadline.0.checked_sub(TO_ANSWER / 2).unwrap_or(deadline.0);
    let too_late =
        |_| Problem::unavailable(1).detail("There was no time to begin: this request has moved no money.");
    tokio::time::timeout_at(latest, work).await.map_err(too_late)?
}

impl Payments {
    async fn find(&self, id: Uuid, owner: Option<Uuid>) -> Result<Option<Payment>, sqlx::Error> {
        let mut connection = self.0.database.acquire().await?;
        let found = store::find(&mut connection, id, owner).await?;
        connection.release();
        Ok(found.map(|found| found.payment))
    }

    /// Records that staff has read a customer's payment. If the event cannot be recorded, the payment is not shown.
    async fn record_access(&self, id: Uuid) -> Result<(), sqlx::Error> {
        use platform::audit::{Event, EventResult, EventType, record};
        let event = Event::new(EventType::DataAccess, "payments", "read", EventResult::Success).records([id]);
        record(&self.0.database, event).await
    }
}
