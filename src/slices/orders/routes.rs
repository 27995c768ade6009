//! Routes that place, show, list and cancel orders.
use axum::{Json as JsonBody, extract::State, http::StatusCode};
use platform::{
    database::Database,
    http::{
        extract::{Id, Query},
        idempotency::{self, Change, IdempotencyKey, IdempotentRequest, StoredResponse},
        pagination::{Page, PageQuery},
        problem::{FieldError, Problem, ProblemBody},
    },
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    model::{Basket, Order, OrderError, OrderStatus},
    store,
};
use crate::{
    accounts::{Customer, CustomerOrSupport, OwnerOrStaff},
    slices::Slices,
};

/// Returns the routes of orders.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new()
        .routes(routes!(place_order, list_orders))
        .routes(routes!(show_order))
        .routes(routes!(cancel_order))
}

/// Place an order
/// The order uses the current prices of the catalog.
#[utoipa::path(
    post, path = "/v1/orders", tag = "orders", request_body = Basket, security(("session" = ["customer"])),
    params(IdempotencyKey),
    responses(
        (status = 201, description = "The order", body = Order, headers(("location" = String, description = "The order"))),
        (status = 422, description = "Invalid request, a product cannot be ordered, the currencies differ, or the Idempotency-Key belongs to another request", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn place_order(
    Customer(caller): Customer,
    State(database): State<Database>,
    request: IdempotentRequest<Basket>,
) -> Result<StoredResponse, Problem> {
    idempotency::run(&database, caller.user_id, request, location, async |claim, basket| {
        let Some(placed) = store::place(&database, claim, caller.user_id, &basket).await? else {
            let orderable = store::orderable(&database, &basket).await?;
            return Ok(Change::Rejected(basket.why_not_placed(&orderable).into()));
        };
        Ok(Change::Made(placed.id, StoredResponse::from_json(StatusCode::CREATED, placed.body)))
    })
    .await
}

fn location(id: Uuid) -> String {
    format!("/v1/orders/{id}")
}

/// The filters and the page of a list of orders.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct OrderFilter {
    /// Status of the orders.
    #[param(inline)]
    status: Option<OrderStatus>,
    /// Customer of the orders. Customers see only their own orders in any case.
    customer_id: Option<Uuid>,
    /// Maximum number of items, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// `next_cursor` of the previous page.
    #[param(pattern = "^[A-Za-z0-9_-]{21}[AQgw]$")]
    cursor: Option<String>,
}

/// List orders
/// Customers get their own orders. Support and admins get the orders of all customers, and these reads are audited.
#[utoipa::path(
    get, path = "/v1/orders", tag = "orders", params(OrderFilter), security(("session" = ["customer", "support", "admin"])),
    responses((status = 200, description = "A page of orders, newest first", body = Page<Order>))
)]
async fn list_orders(
    reader: OwnerOrStaff,
    State(database): State<Database>,
    Query(filter): Query<OrderFilter>,
) -> Result<JsonBody<Page<Order>>, Problem> {
    let page = PageQuery::new(filter.limit, filter.cursor).parse()?;
    let customer_id = match (reader.owner_filter(), filter.customer_id) {
        (Some(owner), Some(requested)) if owner != requested => {
            return Ok(JsonBody(page.page(Vec::new(), |order: &Order| order.id)));
        }
        (owner, requested) => owner.or(requested),
    };
    let orders = store::list(&database, customer_id, filter.status, page).await?;
    let orders = page.page(orders, |order| order.id);
    reader.record_access(&database, "orders", orders.data.iter().map(|order| order.id)).await?;
    Ok(JsonBody(orders))
}

/// Show an order
#[utoipa::path(
    get, path = "/v1/orders/{id}", tag = "orders", params(("id" = Uuid, Path, description = "The order's id")),
    security(("session" = ["customer", "support", "admin"])), responses((status = 200, description = "The order", body = Order))
)]
async fn show_order(
    reader: OwnerOrStaff,
    State(database): State<Database>,
    Id(id): Id,
) -> Result<JsonBody<Order>, Problem> {
    let order = store::find(&database, id, reader.owner_filter()).await?.ok_or(OrderError::NotFound(id))?;
    reader.record_access(&database, "orders", [id]).await?;
    Ok(JsonBody(order))
}

/// Cancel an order
/// Rejected if the order is paid or already cancelled, or a payment is in progress.
#[utoipa::path(
    post, path = "/v1/orders/{id}/cancel", tag = "orders", params(("id" = Uuid, Path, description = "The order's id")),
    security(("session" = ["customer", "support"])),
    responses(
        (status = 200, description = "The cancelled order", body = Order),
        (status = 409, description = "The order is paid or cancelled, or a payment is in progress", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn cancel_order(
    caller: CustomerOrSupport,
    State(database): State<Database>,
    Id(id): Id,
) -> Result<JsonBody<Order>, Problem> {
    let owner = caller.owner_filter();
    let cancelled = store::cancel(&database, id, owner).await?;
    let order = store::find(&database, id, owner).await?.ok_or(OrderError::NotFound(id))?;
    if cancelled { Ok(JsonBody(order)) } else { Err(order.status.why_not_cancelled().into()) }
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::NotForSale(lines) => {
                let pointer = |line| format!("/items/{line}/product_id");
                let not_for_sale =
                    |line| FieldError::new(pointer(line), "is not a product that can be ordered");
                Self::invalid(lines.into_iter().map(not_for_sale).collect())
            }
            OrderError::SeveralCurrencies => {
                Self::invalid(vec![FieldError::new("/items", "must all have the same currency")])
            }
            OrderError::CatalogChanged => Self::unavailable(1),
            OrderError::NotFound(id) => Self::not_found_or_not_owned("orders", id),
            OrderError::PaymentInProgress => Self::conflict("A payment of this order is in progress."),
            OrderError::AlreadyCancelled => Self::conflict("The order is already cancelled."),
            OrderError::AlreadyPaid => Self::conflict("The order is paid."),
        }
    }
}
