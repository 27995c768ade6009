//! Snapshots of the service's tables, and the invariants within the tables.
//!
//! Many of these invariants are also database constraints. The check repeats them, because a missing or wrong
//! constraint causes no error.
use std::ops::RangeInclusive;

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection, FromRow, PgConnection, PgTransaction};
use uuid::Uuid;

use super::{Violation, Violations};

const SNAPSHOT: &str = "begin isolation level repeatable read read only";

/// The fields of a payment that are compared with the gateway.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Payment {
    pub(super) id: Uuid,
    /// Idempotency key and reference at the gateway.
    pub(super) gateway_key: Uuid,
    pub(super) status: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) gateway_charge_id: Option<String>,
}

impl Payment {
    pub(super) fn is_in_flight(&self) -> bool {
        self.status == "processing"
    }

    /// Returns whether money was taken, even if some of it has been refunded since.
    pub(super) fn has_taken_money(&self) -> bool {
        ["succeeded", "partially_refunded", "refunded"].contains(&self.status.as_str())
    }
}

/// The fields of a refund that are compared with the gateway.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Refund {
    pub(super) id: Uuid,
    /// Idempotency key and reference at the gateway.
    pub(super) gateway_key: Uuid,
    pub(super) status: String,
    pub(super) amount: i64,
    pub(super) gateway_charge_id: Option<String>,
}

impl Refund {
    pub(super) fn is_in_flight(&self) -> bool {
        self.status == "processing"
    }
}

/// A snapshot of the payments and refunds with gateway keys in one range.
#[derive(Debug, Clone, Default)]
pub(super) struct Page {
    pub(super) payments: Vec<Payment>,
    pub(super) refunds: Vec<Refund>,
}

impl Page {
    pub(super) async fn read(
        connection: &mut PgConnection,
        keys: &RangeInclusive<Uuid>,
    ) -> Result<Self, sqlx::Error> {
        let mut snapshot = connection.begin_with(SNAPSHOT).await?;
        let payments = sqlx::query_as(
            "
            select id, gateway_key, status, amount, currency, gateway_charge_id
            from payments
            where gateway_key between $1 and $2
            order by gateway_key
            ",
        )
        .bind(keys.start())
        .bind(keys.end())
        .fetch_all(&mut *snapshot)
        .await?;
        let refunds = sqlx::query_as(
            "
            select refunds.id, refunds.gateway_key, refunds.status, refunds.amount, payments.gateway_charge_id
            from refunds
            left join payments on payments.id = refunds.payment_id
            where refunds.gateway_key between $1 and $2
            order by refunds.gateway_key
            ",
        )
        .bind(keys.start())
        .bind(keys.end())
        .fetch_all(&mut *snapshot)
        .await?;
        snapshot.rollback().await?;
        Ok(Self { payments, refunds })
    }
}

/// Returns the last gateway key of a page that begins with `from` and has at most `size` payments and refunds. The last
/// page ends with the maximum key, so that it includes rows created during the comparison.
pub(super) async fn end_of_page(
    connection: &mut PgConnection,
    from: Uuid,
    size: i64,
) -> Result<Uuid, sqlx::Error> {
    let last = sqlx::query_scalar(
        "
        select gateway_key
        from (
          select gateway_key from payments where gateway_key >= $1
          union all select gateway_key from refunds where gateway_key >= $1
        ) keys
        order by gateway_key
        offset $2
        limit 1
        ",
    )
    .bind(from)
    .bind(size - 1)
    .fetch_optional(connection)
    .await?;
    Ok(last.unwrap_or(Uuid::max()))
}

/// Counts and violations within the service's tables, from one snapshot.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables {
    pub(super) orders: i64,
    pub(super) idempotency_keys: i64,
    pub(super) violations: Violations,
}

impl Tables {
    pub(super) async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let mut snapshot = connection.begin_with(SNAPSHOT).await?;
        let orders = sqlx::query_scalar("select count(*) from orders").fetch_one(&mut *snapshot).await?;
        let idempotency_keys =
            sqlx::query_scalar("select count(*) from idempotency_keys").fetch_one(&mut *snapshot).await?;
        let violations = violations(&mut snapshot).await?;
        snapshot.rollback().await?;
        Ok(Self { orders, idempotency_keys, violations })
    }
}

/// Counts the payments and refunds without an outcome.
pub(super) async fn in_flight(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "
        select (select count(*) from payments where status = 'processing')
          + (select count(*) from refunds where status = 'processing')
        ",
    )
    .fetch_one(connection)
    .await
}

/// Invariants, each with a query that returns one line of text per violation.
const RULES: [(&str, &str); 5] = [
    (
        "an order's total is the sum of its items",
        "
        select format('order %s has a total of %s and items of %s', orders.id, orders.total_amount, items.amount)
        from orders
        cross join lateral (
          select coalesce(sum(amount), 0) as amount from order_items where order_id = orders.id
        ) items
        where orders.total_amount <> items.amount
        ",
    ),
    (
        "an order has at most one payment in progress or charged",
        "
        select format('order %s has %s', order_id, count(*))
        from payments
        where status not in ('declined', 'failed')
        group by order_id
        having count(*) > 1
        ",
    ),
    (
        "a payment has the amount and currency of its order",
        "
        select format('payment %s of order %s', payments.id, orders.id)
        from payments
        left join orders on orders.id = payments.order_id
        where (payments.amount, payments.currency) is distinct from (orders.total_amount, orders.currency)
        ",
    ),
    (
        "an order has the status of its payment",
        "
        select format(
          'order %s is %s and names payment %s, its payment is %s, %s',
          orders.id, orders.status, coalesce(orders.live_payment_id::text, 'none'),
          coalesce(live.id::text, 'none'), coalesce(live.status, 'none')
        )
        from orders
        left join payments live on live.order_id = orders.id and live.status not in ('declined', 'failed')
        where live.id is distinct from orders.live_payment_id
          or orders.status <> all (case coalesce(live.status, 'none')
            when 'none' then array['pending_payment', 'cancelled']
            when 'processing' then array['pending_payment']
            when 'succeeded' then array['paid']
            else array[live.status]
          end)
        ",
    ),
    (
        "a payment's refunded and reserved amounts are the sums of its refunds",
        "
        select format(
          'payment %s has refunded %s and reserved %s, its refunds have %s and %s',
          payments.id, payments.refunded_amount, payments.refund_reserved_amount, sums.refunded, sums.reserved
        )
        from payments
        cross join lateral (
          select
            coalesce(sum(amount) filter (where status = 'succeeded'), 0) as refunded,
            coalesce(sum(amount) filter (where status in ('processing', 'succeeded')), 0) as reserved
          from refunds
          where payment_id = payments.id
        ) sums
        where (payments.refunded_amount, payments.refund_reserved_amount) <> (sums.refunded, sums.reserved)
        ",
    ),
];

/// A table whose rows get an audit event on creation. Rows that are settled later get a second audit event at the
/// settlement.
struct Effect {
    table: &'static str,
    /// The condition under which a row is settled; `None` if a row is complete on creation.
    settled: Option<&'static str>,
}

/// The tables in which every row must have its audit events. In [`other_tables`], only rows to which completed
/// idempotency keys refer are checked. The check assumes that these rows are complete on creation.
const EFFECTS: [Effect; 3] = [
    Effect { table: "orders", settled: None },
    Effect { table: "payments", settled: Some("status <> 'processing'") },
    Effect { table: "refunds", settled: Some("status <> 'processing'") },
];

/// Returns the tables with a primary key `id` of type UUID, except [`EFFECTS`]. Idempotency keys can refer to rows of
/// these tables, so a table that a new feature adds is checked without an entry in [`EFFECTS`].
async fn other_tables(snapshot: &mut PgTransaction<'_>) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "
        select conrelid::regclass::text
        from pg_constraint
        join pg_attribute on attrelid = conrelid and array[attnum] = conkey
        where contype = 'p' and attname = 'id' and atttypid = 'uuid'::regtype
          and connamespace = current_schema()::regnamespace and conrelid::regclass::text <> all ($1)
        ",
    )
    .bind(EFFECTS.map(|effect| effect.table))
    .fetch_all(&mut **snapshot)
    .await
}

/// Joins one `select` per table.
fn union(selects: impl Iterator<Item = String>) -> String {
    selects.collect::<Vec<_>>().join(" union all ")
}

/// Returns further invariants in the form of [`RULES`]. These invariants apply to [`EFFECTS`], and to the rows of
/// `others` to which completed idempotency keys refer.
fn rules_of_effects(others: &[String]) -> [(&'static str, String); 3] {
    let complete = EFFECTS.iter().map(|Effect { table, settled, .. }| {
        format!("select id from {table} where id = resource_id and {}", settled.unwrap_or("true"))
    });
    let complete_others = others.iter().map(|table| format!("select id from {table} where id = resource_id"));
    let complete = union(complete.chain(complete_others));
    let settled = union(EFFECTS.iter().filter_map(|Effect { table, settled, .. }| {
        Some(format!("select id from {table} where {}", (*settled)?))
    }));
    let audited = EFFECTS.iter().map(|Effect { table, settled, .. }| {
        format!(
            "select '{table}' as resource, id, ({})::int as settled from {table}",
            settled.unwrap_or("false")
        )
    });
    let audited_others = others.iter().map(|table| {
        format!(
            "select '{table}', id, 0 from {table} where id in (
              select resource_id from idempotency_keys where completed_at is not null
            )"
        )
    });
    let audited = union(audited.chain(audited_others));
    [
        (
            "a completed idempotency key has exactly one effect, and refers to it",
            format!(
                "
                select format(
                  'key %s of %s made %s, and %s tables have such a row',
                  key, scope, resource_id, effects.count
                )
                from idempotency_keys
                cross join lateral (select count(*) as count from ({complete}) effect) effects
                where completed_at is not null
                  and scope <> 'gateway'
                  and (effects.count <> 1 or response_body::jsonb ->> 'id' is distinct from resource_id::text)
                "
            ),
        ),
        (
            "a completed effect has a completed idempotency key",
            format!(
                "
                select format('key %s of %s has no response, and %s is settled', key, scope, resource_id)
                from idempotency_keys
                where completed_at is null and scope <> 'gateway' and resource_id in ({settled})
                "
            ),
        ),
        (
            "each start and each settlement has exactly one audit event",
            format!(
                "
                select format(
                  '%s %s has %s audit events of its start and %s of its settlement',
                  things.resource, things.id, coalesce(reported.begun, 0), coalesce(reported.settled, 0)
                )
                from ({audited}) things
                left join (
                  select
                    resource, (metadata -> 'record_ids' ->> 0)::uuid as id,
                    count(*) filter (where action = 'create') as begun,
                    count(*) filter (where action = 'settle') as settled
                  from audit_events
                  where event_type = 'data_change' and result = 'success' and action in ('create', 'settle')
                  group by 1, 2
                ) reported using (resource, id)
                where coalesce(reported.begun, 0) <> 1 or coalesce(reported.settled, 0) <> things.settled
                "
            ),
        ),
    ]
}

async fn violations(snapshot: &mut PgTransaction<'_>) -> Result<Violations, sqlx::Error> {
    let rules = RULES.map(|(rule, query)| (rule, query.to_owned()));
    let others = other_tables(snapshot).await?;
    let mut violations = Violations::default();
    for (rule, query) in rules.into_iter().chain(rules_of_effects(&others)) {
        let mut details = sqlx::query_scalar(AssertSqlSafe(query)).fetch(&mut **snapshot);
        while let Some(detail) = details.try_next().await? {
            violations.add(Violation { rule, detail });
        }
    }
    Ok(violations)
}
