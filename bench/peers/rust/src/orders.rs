//! Placing an order in one transaction, with one round trip for each statement, and showing an order.
use std::collections::{BTreeSet, HashMap};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};
use sqlx::{PgPool, PgTransaction, types::Json as Jsonb};
use uuid::Uuid;

use crate::{
    audit,
    caller::Caller,
    problem::{FieldError, Problem},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basket {
    items: Vec<BasketItem>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BasketItem {
    product_id: Uuid,
    quantity: i32,
}

#[derive(Debug, Serialize)]
pub struct Order {
    id: Uuid,
    customer_id: Uuid,
    status: String,
    currency: String,
    total_amount: i64,
    items: Vec<OrderItem>,
    #[serde(serialize_with = "microseconds")]
    created_at: DateTime<Utc>,
    #[serde(serialize_with = "microseconds")]
    updated_at: DateTime<Utc>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OrderItem {
    product_id: Uuid,
    name: String,
    unit_amount: i64,
    quantity: i32,
    amount: i64,
}

fn microseconds<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

pub async fn place(
    State(pool): State<PgPool>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    if !caller.is_customer() {
        let denied = caller.event("authorization", "routes", "access", "denied", &[]);
        audit::record(&pool, &caller.origin, denied).await?;
        return Err(Problem::forbidden());
    }
    let key = idempotency_key(&headers)?;
    let fingerprint = fingerprint("POST", "/v1/orders", &body);
    let basket = parse_basket(&body)?;

    let mut transaction = pool.begin().await?;
    let id = Uuid::now_v7();
    if !claim(&mut transaction, &caller, key, &fingerprint, id).await? {
        transaction.rollback().await?;
        return replay(&pool, &caller, key, &fingerprint).await;
    }
    let order = price_order(&mut transaction, id, &caller, &basket).await?;
    insert(&mut transaction, &order).await?;
    let event = caller.event("data_change", "orders", "create", "success", &[id]);
    audit::record(&mut *transaction, &caller.origin, event).await?;
    let body = serde_json::to_string(&order)?;
    complete(&mut transaction, &caller, key, &body).await?;
    transaction.commit().await?;
    axum_prometheus::metrics::counter!("orders_created_total").increment(1);
    Ok(created_response(id, body).into_response())
}

fn created_response(id: Uuid, body: String) -> impl IntoResponse {
    let location = (header::LOCATION, format!("/v1/orders/{id}"));
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json".to_owned()), location], body)
}

fn idempotency_key(headers: &HeaderMap) -> Result<&str, Problem> {
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok());
    let key = key.map(|key| key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key));
    key.filter(|key| (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(Problem::missing_key)
}

fn fingerprint(method: &str, path: &str, body: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(method);
    digest.update([0]);
    digest.update(path);
    digest.update([0]);
    digest.update(body);
    digest.finalize().into()
}

fn parse_basket(body: &[u8]) -> Result<Basket, Problem> {
    let basket: Basket = serde_json::from_slice(body)
        .map_err(|error| if error.is_data() { Problem::invalid(Vec::new()) } else { Problem::malformed() })?;
    if !(1..=100).contains(&basket.items.len()) {
        let message = "must have 1 to 100 lines";
        return Err(Problem::invalid(vec![FieldError { pointer: "/items".to_owned(), message }]));
    }
    let invalid = basket.items.iter().enumerate().filter(|(_, item)| !(1..=1000).contains(&item.quantity));
    let errors: Vec<_> = invalid
        .map(|(line, _)| FieldError {
            pointer: format!("/items/{line}/quantity"),
            message: "must be between 1 and 1000",
        })
        .collect();
    if errors.is_empty() { Ok(basket) } else { Err(Problem::invalid(errors)) }
}

/// Claims the idempotency key. Returns false if another request has claimed the key.
#[tracing::instrument(name = "INSERT idempotency_keys", skip_all)]
async fn claim(
    transaction: &mut PgTransaction<'_>,
    caller: &Caller,
    key: &str,
    fingerprint: &[u8],
    order_id: Uuid,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        r#"
        insert into idempotency_keys (scope, key, fingerprint, resource_id)
        values ($1, $2, $3, $4)
        on conflict do nothing
        "#,
    )
    .bind(caller.user_id.to_string())
    .bind(key)
    .bind(fingerprint)
    .bind(order_id)
    .execute(&mut **transaction)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Returns the stored response of the idempotency key. Fails if the key belongs to another request, or has no response
/// yet.
async fn replay(pool: &PgPool, caller: &Caller, key: &str, fingerprint: &[u8]) -> Result<Response, Problem> {
    let (first, order_id, response_body): (Vec<u8>, Option<Uuid>, Option<String>) = sqlx::query_as(
        "select fingerprint, resource_id, response_body from idempotency_keys where scope = $1 and key = $2",
    )
    .bind(caller.user_id.to_string())
    .bind(key)
    .fetch_one(pool)
    .await?;
    if first != fingerprint {
        return Err(Problem::key_reused());
    }
    let (Some(id), Some(response_body)) = (order_id, response_body) else {
        return Err(Problem::in_progress());
    };
    Ok(([("idempotency-replayed", "true")], created_response(id, response_body)).into_response())
}

/// Returns the order at the current prices. Rejects unknown products, and products of several currencies.
#[tracing::instrument(name = "SELECT products", skip_all)]
async fn price_order(
    transaction: &mut PgTransaction<'_>,
    id: Uuid,
    caller: &Caller,
    basket: &Basket,
) -> Result<Order, Problem> {
    let product_ids: Vec<Uuid> = basket.items.iter().map(|item| item.product_id).collect();
    let rows: Vec<(Uuid, String, i64, String)> =
        sqlx::query_as("select id, name, unit_amount, currency from products where id = any($1) and active")
            .bind(&product_ids)
            .fetch_all(&mut **transaction)
            .await?;
    let products: HashMap<_, _> =
        rows.iter().map(|(id, name, unit_amount, currency)| (*id, (name, *unit_amount, currency))).collect();

    let (mut items, mut errors) = (Vec::with_capacity(product_ids.len()), Vec::new());
    for (line, item) in basket.items.iter().enumerate() {
        match products.get(&item.product_id) {
            Some((name, unit_amount, _)) => items.push(OrderItem {
                product_id: item.product_id,
                name: (*name).clone(),
                unit_amount: *unit_amount,
                quantity: item.quantity,
                amount: unit_amount * i64::from(item.quantity),
            }),
            None => errors.push(FieldError {
                pointer: format!("/items/{line}/product_id"),
                message: "is not a product that can be ordered",
            }),
        }
    }
    let currencies: BTreeSet<_> = products.values().map(|(_, _, currency)| currency.as_str()).collect();
    if errors.is_empty() && currencies.len() > 1 {
        let message = "must all have the same currency";
        errors.push(FieldError { pointer: "/items".to_owned(), message });
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let now = Utc::now().trunc_subsecs(6);
    Ok(Order {
        id,
        customer_id: caller.user_id,
        status: "pending_payment".to_owned(),
        currency: currencies.first().copied().unwrap_or_default().to_owned(),
        total_amount: items.iter().map(|item| item.amount).sum(),
        items,
        created_at: now,
        updated_at: now,
    })
}

/// Inserts an order with one statement, and all of its items with a second one. The second uses `unnest`, as sqlx's FAQ
/// recommends.
#[tracing::instrument(name = "INSERT orders", skip_all)]
async fn insert(transaction: &mut PgTransaction<'_>, order: &Order) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"
        insert into orders (id, customer_id, currency, total_amount, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6)
        "#,
    )
    .bind(order.id)
    .bind(order.customer_id)
    .bind(&order.currency)
    .bind(order.total_amount)
    .bind(order.created_at)
    .bind(order.updated_at)
    .execute(&mut **transaction)
    .await?;
    let items = &order.items;
    sqlx::query(
        r#"
        insert into order_items (order_id, line_number, product_id, name, unit_amount, quantity, amount)
        select $1, item.*
        from unnest($2::integer[], $3::uuid[], $4::text[], $5::bigint[], $6::integer[], $7::bigint[]) as item
        "#,
    )
    .bind(order.id)
    .bind((1..).take(items.len()).collect::<Vec<i32>>())
    .bind(items.iter().map(|item| item.product_id).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.unit_amount).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.quantity).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.amount).collect::<Vec<_>>())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Stores the response for retries.
#[tracing::instrument(name = "UPDATE idempotency_keys", skip_all)]
async fn complete(
    transaction: &mut PgTransaction<'_>,
    caller: &Caller,
    key: &str,
    body: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"
        update idempotency_keys
        set response_status = 201, response_body = $3, completed_at = now()
        where scope = $1 and key = $2
        "#,
    )
    .bind(caller.user_id.to_string())
    .bind(key)
    .bind(body)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

pub async fn show(
    State(pool): State<PgPool>,
    caller: Caller,
    id: Result<Path<Uuid>, axum::extract::rejection::PathRejection>,
) -> Result<Json<Order>, Problem> {
    if caller.role == "auditor" {
        let denied = caller.event("authorization", "routes", "access", "denied", &[]);
        audit::record(&pool, &caller.origin, denied).await?;
        return Err(Problem::forbidden());
    }
    let Ok(Path(id)) = id else { return Err(Problem::not_found()) };
    let order = find(&pool, id, caller.is_customer().then_some(caller.user_id)).await?;
    if order.is_none() || !caller.is_customer() {
        let event = match order {
            Some(_) => caller.event("data_access", "orders", "read", "success", &[id]),
            None => caller.event("authorization", "orders", "access", "denied", &[id]),
        };
        audit::record(&pool, &caller.origin, event).await?;
    }
    order.map(Json).ok_or_else(Problem::not_found)
}

/// Returns an order, or `None` if none has this id. With `owner`, the order must belong to this customer.
#[tracing::instrument(name = "SELECT orders", skip_all)]
async fn find(pool: &PgPool, id: Uuid, owner: Option<Uuid>) -> Result<Option<Order>, sqlx::Error> {
    type Row = (Uuid, Uuid, String, String, i64, Jsonb<Vec<OrderItem>>, DateTime<Utc>, DateTime<Utc>);
    let row: Option<Row> = sqlx::query_as(
        r#"
        select id, customer_id, status, currency, total_amount, items, created_at, updated_at
        from orders_with_items
        where id = $1 and ($2::uuid is null or customer_id = $2)
        "#,
    )
    .bind(id)
    .bind(owner)
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|(id, customer_id, status, currency, total_amount, items, created_at, updated_at)| Order {
        id,
        customer_id,
        status,
        currency,
        total_amount,
        items: items.0,
        created_at,
        updated_at,
    }))
}
