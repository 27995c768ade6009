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
    model::{Basket, Order, OrderStatus},
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
///
/// At the current prices, which come from the catalog.
#[utoipa::path(
    post, path = "/v1/orders", tag = "orders", request_body = Basket, security(("session" = ["customer"])),
    params(IdempotencyKey),
    responses(
        (status = 201, description = "The order", body = Order, headers(("location" = String, description = "The order"))),
        (status = 422, description = "The request is not valid, a product cannot be ordered, the currencies differ, or the Idempotency-Key belongs to another request", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn place_order(
    Customer(caller): Customer,
    State(database): State<Database>,
    request: IdempotentRequest<Basket>,
) -> Result<StoredResponse, Problem> {
    idempotency::run(&database, caller.user_id, request, location, async |claim, basket| {
        let Some(placed) = store::place(&database, claim, caller.user_id, &basket).await? else {
            return Ok(Change::Refused(refusal(&database, &basket).await?));
        };
        Ok(Change::Made(placed.id, StoredResponse::from_json(StatusCode::CREATED, placed.body)))
    })
    .await
}

fn location(id: Uuid) -> String {
    format!("/v1/orders/{id}")
}

/// Returns the reason why a basket was not ordered. Most requests never need this query.
async fn refusal(database: &Database, basket: &Basket) -> Result<Problem, Problem> {
    let wanted: Vec<Uuid> = basket.items.iter().map(|item| item.product_id).collect();
    let mut connection = database.acquire().await?;
    let orderable = store::orderable(&mut connection, &wanted).await?;
    connection.release();
    let missing: Vec<_> = (0..)
        .zip(&wanted)
        .filter(|(_, wanted)| !orderable.iter().any(|(id, _)| id == *wanted))
        .map(|(line, _): (usize, _)| {
            FieldError::new(format!("/items/{line}/product_id"), "is not a product that can be ordered")
        })
        .collect();
    let currencies =
        orderable.iter().map(|(_, currency)| currency).collect::<std::collections::BTreeSet<_>>();
    Ok(if !missing.is_empty() {
        Problem::invalid(missing)
    } else if currencies.len() > 1 {
        Problem::invalid(vec![FieldError::new("/items", "must all have the same currency")])
    } else {
        // The catalog has changed in between: the basket could be ordered now.
        Problem::unavailable(1)
    })
}

/// Which orders are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct OrderFilter {
    /// Only those that stand here.
    #[param(inline)]
    status: Option<OrderStatus>,
    /// Only this customer's; a customer sees their own in any case.
    customer_id: Option<Uuid>,
    /// At most so many, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    #[param(pattern = "^[A-Za-z0-9_-]{21}[AQgw]$")]
    cursor: Option<String>,
}

/// List orders
///
/// Customers see their own; support and admins see everybody's, which is audited.
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
        (Some(own), Some(other)) if own != other => {
            return Ok(JsonBody(page.page(Vec::new(), |order: &Order| order.id)));
        }
        (own, other) => own.or(other),
    };
    let orders = store::list(&database, customer_id, filter.status, page).await?;
    let orders = page.page(orders, |order| order.id);
    if reader.owner_filter().is_none() {
        store::record_access(&database, orders.data.iter().map(|order| order.id)).await?;
    }
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
    let order = store::find(&database, id, reader.owner_filter())
        .await?
        .ok_or_else(|| Problem::not_found_or_not_owned("orders", id))?;
    if reader.owner_filter().is_none() {
        store::record_access(&database, [id]).await?;
    }
    Ok(JsonBody(order))
}

/// Cancel an order
///
/// Only while nobody has paid it or is paying it.
#[utoipa::path(
    post, path = "/v1/orders/{id}/cancel", tag = "orders", params(("id" = Uuid, Path, description = "The order's id")),
    security(("session" = ["customer", "support"])),
    responses(
        (status = 200, description = "The order, cancelled", body = Order),
        (status = 409, description = "It is paid, being paid, or cancelled", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn cancel_order(
    caller: CustomerOrSupport,
    State(database): State<Database>,
    Id(id): Id,
) -> Result<JsonBody<Order>, Problem> {
    let owner = caller.owner_filter();
    let cancelled = store::cancel(&database, id, owner).await?;
    let order = store::find(&database, id, owner)
        .await?
        .ok_or_else(|| Problem::not_found_or_not_owned("orders", id))?;
    if cancelled {
        return Ok(JsonBody(order));
    }
    Err(Problem::conflict(match order.status {
        OrderStatus::PendingPayment => "A payment of this order is under way.",
        OrderStatus::Cancelled => "The order is cancelled already.",
        OrderStatus::Paid | OrderStatus::PartiallyRefunded | OrderStatus::Refunded => "The order is paid.",
    }))
}
