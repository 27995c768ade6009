//! The orders table and its items.
use platform::{
    audit::Event,
    database::Database,
    http::{idempotency::Claim, pagination::PageRequest},
};
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    metrics::ORDERS_CREATED,
    model::{Basket, Order, OrderItem, OrderStatus},
};

/// The placed order: its id, and the JSON body as stored for idempotent replay.
pub(super) struct PlacedOrder {
    pub(super) id: Uuid,
    pub(super) body: String,
}

/// Places an order at the current prices: claims the idempotency key, looks up the prices, and stores the order with
/// its items, the response and the audit event. Returns `None`, and stores nothing, if the key is taken, a product
/// cannot be ordered, or the products have different currencies.
///
/// Placing an order is one statement, because each further round trip to the database costs about as much as all other
/// work on the request. A single statement is also its own transaction, so a cancelled request cannot leave a
/// transaction open. Two details of the statement guide the planner:
///
/// - `offset 0` makes the lookup of products an index lookup for each line. Without `offset 0`, the planner would scan
///   all products, because the planner does not know the length of the array.
/// - `materialized` makes each step run once, in this sequence.
pub(super) async fn place(
    database: &Database,
    claim: &Claim,
    customer_id: Uuid,
    basket: &Basket,
) -> Result<Option<PlacedOrder>, sqlx::Error> {
    let id = Uuid::now_v7();
    let products = basket.products();
    let quantities: Vec<i32> = basket.items.iter().map(|item| item.quantity).collect();
    let event = Event::change("orders", "create").records([id]).with("lines", products.len());
    let statement = sqlx::query!(
        r#"
        with line as materialized (
          select
            wanted.line_number, product.id as product_id, product.name, product.unit_amount, product.currency,
            wanted.quantity, product.unit_amount * wanted.quantity as amount,
            (
              select row_to_json(item)
              from (
                select
                  product.id as product_id, product.name, product.unit_amount, wanted.quantity,
                  product.unit_amount * wanted.quantity as amount
              ) as item
            ) as item
          from unnest($3::uuid[], $4::integer[]) with ordinality as wanted (product_id, quantity, line_number)
          cross join lateral (
            select id, name, unit_amount, currency
            from products
            where id = wanted.product_id and active
            offset 0
          ) as product
        ), basket as materialized (
          select
            sum(amount)::bigint as total_amount,
            min(currency) as currency,
            array_to_json(array_agg(item order by line_number)) as items
          from line
          having count(*) = cardinality($3::uuid[]) and min(currency) = max(currency)
        ), response as materialized (
          select
            total_amount,
            currency,
            (
              select row_to_json(placed)::text
              from (
                select
                  $1::uuid as id, $2::uuid as customer_id, 'pending_payment' as status, currency, total_amount, items,
                  to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at,
                  to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as updated_at
              ) as placed
            ) as body
          from basket
        ), claimed as materialized (
          select total_amount, currency, body
          from response
          where claim_idempotency_key($5, $6, $7, $1, null, 201, body)
        ), placed as (
          insert into orders (id, customer_id, currency, total_amount)
          select $1, $2, currency, total_amount
          from claimed
          returning id
        ), placed_items as (
          insert into order_items (order_id, line_number, product_id, name, unit_amount, quantity, amount)
          select placed.id, line_number, product_id, name, unit_amount, quantity, amount
          from placed, line
        )
        select body as "body!", record_audit_event($8)
        from claimed, placed
        "#,
        id,
        customer_id,
        &products,
        &quantities,
        claim.scope,
        claim.key,
        claim.fingerprint.as_bytes(),
        event.to_json(),
    );
    let placed =
        database.run("orders.insert", async |connection| statement.fetch_optional(connection).await).await?;
    Ok(placed.map(|row| {
        ORDERS_CREATED.inc();
        event.log_and_count();
        PlacedOrder { id, body: row.body }
    }))
}

/// Returns the products of the basket that can be ordered now, each with its currency. Handlers run this query only if
/// the order was not placed, to find the reason.
pub(super) async fn orderable(
    database: &Database,
    basket: &Basket,
) -> Result<Vec<(Uuid, String)>, sqlx::Error> {
    let products = basket.products();
    let statement =
        sqlx::query!("select id, currency from products where id = any($1) and active", &products);
    let rows =
        database.run("products.select", async |connection| statement.fetch_all(connection).await).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.currency)).collect())
}

struct Row {
    id: Uuid,
    customer_id: Uuid,
    status: String,
    currency: String,
    total_amount: i64,
    items: Json<Vec<OrderItem>>,
    created_at: chrono::DateTime<chrono::Utc>,
    updated_at: chrono::DateTime<chrono::Utc>,
}

impl TryFrom<Row> for Order {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.id,
            customer_id: row.customer_id,
            status: status(&row.status)?,
            currency: row.currency,
            total_amount: row.total_amount,
            items: row.items.0,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// Parses a status. A check constraint limits the column to valid names, so a name that this release does not know was
/// added by a newer release.
fn status(text: &str) -> Result<OrderStatus, sqlx::Error> {
    OrderStatus::parse(text)
        .ok_or_else(|| sqlx::Error::Decode(format!("unknown order status {text:?}").into()))
}

/// Selects orders. `$rest` is the part of the statement after the `from` clause: the condition, the sort order and the
/// limit.
macro_rules! select_orders {
    ($rest:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"
        select
          id as "id!", customer_id as "customer_id!", status as "status!", currency as "currency!",
          total_amount as "total_amount!", items as "items!: Json<Vec<OrderItem>>",
          created_at as "created_at!", updated_at as "updated_at!"
        from orders_with_items
        "# + $rest,
            $($argument),+
        )
    };
}

/// Returns one order. With `owner`, returns the order only if this customer placed it.
pub(super) async fn find(
    database: &Database,
    id: Uuid,
    owner: Option<Uuid>,
) -> Result<Option<Order>, sqlx::Error> {
    let statement = select_orders!("where id = $1 and ($2::uuid is null or customer_id = $2)", id, owner);
    let row =
        database.run("orders.select", async |connection| statement.fetch_optional(connection).await).await?;
    row.map(Order::try_from).transpose()
}

/// Returns the orders of a page, newest first, and one more order if another page follows.
///
/// There are three statements, because the service's role uses `plan_cache_mode = force_generic_plan`, so a prepared
/// statement has one plan for all values. A single statement with an optional `customer_id` would scan the orders of
/// all customers to find those of one customer.
pub(super) async fn list(
    database: &Database,
    customer_id: Option<Uuid>,
    with_status: Option<OrderStatus>,
    page: PageRequest,
) -> Result<Vec<Order>, sqlx::Error> {
    let before = page.after.unwrap_or(Uuid::max());
    let with_status = with_status.map(OrderStatus::as_str);
    let rows = match (customer_id, with_status) {
        (Some(customer_id), with_status) => {
            let statement = select_orders!(
                "where customer_id = $1 and ($2::text is null or status = $2) and id < $3 order by id desc limit $4",
                customer_id,
                with_status,
                before,
                page.rows(),
            );
            database
                .run("orders.list_of_customer", async |connection| statement.fetch_all(connection).await)
                .await?
        }
        (None, Some(with_status)) => {
            let statement = select_orders!(
                "where status = $1 and id < $2 order by id desc limit $3",
                with_status,
                before,
                page.rows(),
            );
            database
                .run("orders.list_by_status", async |connection| statement.fetch_all(connection).await)
                .await?
        }
        (None, None) => {
            let statement = select_orders!("where id < $1 order by id desc limit $2", before, page.rows());
            database.run("orders.list", async |connection| statement.fetch_all(connection).await).await?
        }
    };
    rows.into_iter().map(Order::try_from).collect()
}

/// Cancels an order that is unpaid and has no payment in progress, and audits the cancellation. With `owner`, cancels
/// the order only if this customer placed it. Returns whether the order was cancelled.
pub(super) async fn cancel(database: &Database, id: Uuid, owner: Option<Uuid>) -> Result<bool, sqlx::Error> {
    let event = Event::change("orders", "cancel").records([id]);
    let statement = sqlx::query!(
        r#"
        with cancelled as (
          update orders
          set status = 'cancelled', updated_at = now()
          where
            id = $1 and status = 'pending_payment' and live_payment_id is null
            and ($2::uuid is null or customer_id = $2)
          returning id
        )
        select record_audit_event($3)
        from cancelled
        "#,
        id,
        owner,
        event.to_json(),
    );
    let cancelled =
        database.run("orders.update", async |connection| statement.fetch_optional(connection).await).await?;
    let cancelled = cancelled.is_some();
    if cancelled {
        event.log_and_count();
    }
    Ok(cancelled)
}

/// The part of an order that a payment depends on.
#[derive(Debug, Clone)]
pub struct PayableOrder {
    /// The order's status.
    pub status: OrderStatus,
    /// The amount to pay, in minor units.
    pub total_amount: i64,
    /// ISO 4217 code of the currency.
    pub currency: String,
    /// The id of the payment that is in progress or has succeeded.
    pub live_payment_id: Option<Uuid>,
}

/// Returns an order of this customer for a payment. The query does not reserve the order, so the statement that begins
/// the payment checks the order again.
pub async fn payable(
    database: &Database,
    id: Uuid,
    customer_id: Uuid,
) -> Result<Option<PayableOrder>, sqlx::Error> {
    let statement = sqlx::query!(
        "select status, total_amount, currency, live_payment_id from orders where id = $1 and customer_id = $2",
        id,
        customer_id,
    );
    let row =
        database.run("orders.select", async |connection| statement.fetch_optional(connection).await).await?;
    row.map(|row| {
        Ok(PayableOrder {
            status: status(&row.status)?,
            total_amount: row.total_amount,
            currency: row.currency,
            live_payment_id: row.live_payment_id,
        })
    })
    .transpose()
}
