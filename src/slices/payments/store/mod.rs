//! The payments and refunds tables: beginning, asking, and reading. Settling stands in `settlement.rs`.
mod refunds;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

pub(super) use self::refunds::{
    BeginRefund, OpenRefund, begin_refund, count_refund_attempt, find_refund, lease_refunds, release_refund,
};
use super::model::{Payment, PaymentStatus};
use platform::{
    audit::Event,
    database::{Database, observe},
    http::idempotency::Claim,
};

/// A payment whose outcome is being asked for: what to send, and what is known about the sends so far.
#[derive(Debug, Clone)]
pub(super) struct OpenPayment {
    pub(super) id: Uuid,
    pub(super) order_id: Uuid,
    pub(super) amount: i64,
    pub(super) currency: String,
    /// Byte for byte what is sent.
    pub(super) gateway_request: String,
    pub(super) correlation_id: String,
    pub(super) trace_parent: Option<String>,
    /// Since the charge was first sent, on the database's clock.
    pub(super) age: Duration,
    pub(super) parked: bool,
}

/// A payment to begin.
pub(super) struct Begin<'a> {
    pub(super) id: Uuid,
    pub(super) order_id: Uuid,
    pub(super) amount: i64,
    pub(super) currency: &'a str,
    pub(super) gateway_request: &'a str,
    pub(super) correlation_id: &'a str,
    pub(super) trace_parent: Option<&'a str>,
    pub(super) claim: &'a Claim,
    pub(super) lease: Duration,
}

/// Transaction one of a payment, as one statement: locks the order if it can be paid, claims the key, stores the
/// payment with its first lease, points the order at it, and writes the audit event. `None` if the order cannot be
/// paid (any more) or the key is taken; then nothing was stored.
pub(super) async fn begin_payment(
    database: &Database,
    new: &Begin<'_>,
) -> Result<Option<Payment>, sqlx::Error> {
    let event = Event::change("payments", "create")
        .records([new.id])
        .with("order_id", new.order_id.to_string())
        .with("amount", new.amount)
        .with("currency", new.currency);
    let statement = sqlx::query!(
        r#"
        with claimed as materialized (
          -- `case` because nothing else promises that the lock comes before the claim.
          select
          where case when lock_payable_order($2) then claim_idempotency_key($8, $9, $10, $1, $11, null, null) else false end
        ), begun as (
          insert into payments (
            id, order_id, amount, currency, gateway_request, correlation_id, trace_parent, lease_expires_at
          )
          select $1, $2, $3, $4, $5, $6, $7, now() + $11::interval
          from claimed
          returning created_at, updated_at
        )
        select
          created_at as "created_at!", updated_at as "updated_at!",
          begin_order_payment($2, $1), record_audit_event($12)
        from begun
        "#,
        new.id,
        new.order_id,
        new.amount,
        new.currency,
        new.gateway_request,
        new.correlation_id,
        new.trace_parent,
        new.claim.scope,
        new.claim.key,
        new.claim.fingerprint.as_bytes(),
        interval(new.lease),
        event.to_json(),
    );
    let mut connection = database.acquire().await?;
    let begun = observe("payments.insert", statement.fetch_optional(&mut *connection)).await?;
    connection.release();
    Ok(begun.map(|row| {
        event.mirror();
        Payment {
            id: new.id,
            order_id: new.order_id,
            status: PaymentStatus::Processing,
            amount: new.amount,
            currency: new.currency.to_owned(),
            refunded_amount: 0,
            failure_reason: None,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }))
}

/// Counts another send of the charge, committed before it is made; the new count, or `None` if the payment was
/// settled meanwhile and must not be sent again.
pub(super) async fn count_attempt(database: &Database, payment_id: Uuid) -> Result<Option<i32>, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        "update payments set attempts = attempts + 1 where id = $1 and status = 'processing' returning attempts",
        payment_id,
    );
    let mut connection = database.acquire().await?;
    let attempts = observe("payments.update", statement.fetch_optional(&mut *connection)).await?;
    connection.release();
    Ok(attempts)
}

/// Leases payments whose turn it is, so that no other replica asks for them meanwhile.
pub(super) async fn lease_payments(
    database: &Database,
    lease: Duration,
    most: i64,
) -> Result<Vec<OpenPayment>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update payments
        set lease_expires_at = now() + $1::interval
        where id in (
          select id
          from payments
          where status = 'processing' and (lease_expires_at is null or lease_expires_at <= now())
          order by lease_expires_at
          limit $2
          for update skip locked
        )
        returning
          id, order_id, amount, currency, gateway_request, correlation_id, trace_parent,
          extract(epoch from now() - first_sent_at)::float8 as "age_seconds!",
          parked_at is not null as "parked!"
        "#,
        interval(lease),
        most,
    );
    let mut connection = database.acquire().await?;
    let rows = observe("payments.lease", statement.fetch_all(&mut *connection)).await?;
    let open = rows.into_iter().map(|row| OpenPayment {
        id: row.id,
        order_id: row.order_id,
        amount: row.amount,
        currency: row.currency,
        gateway_request: row.gateway_request,
        correlation_id: row.correlation_id,
        trace_parent: row.trace_parent,
        age: Duration::from_secs_f64(row.age_seconds.max(0.0)),
        parked: row.parked,
    });
    Ok(open.collect())
}

/// Ends a lease early: nobody is asking any more, and recovery takes its turn after this pause.
pub(super) async fn release_payment(
    database: &Database,
    id: Uuid,
    pause: Duration,
    park: bool,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update payments
        set lease_expires_at = now() + $2::interval, parked_at = case when $3 then coalesce(parked_at, now()) else parked_at end
        where id = $1 and status = 'processing'
        "#,
        id,
        interval(pause),
        park,
    );
    let mut connection = database.acquire().await?;
    observe("payments.update", statement.execute(&mut *connection)).await?;
    Ok(())
}

/// Remembers a discrepancy; whether it is a new one.
pub(super) async fn remember_discrepancy(
    connection: &mut PgConnection,
    record_id: Uuid,
    digest: &[u8],
) -> Result<bool, sqlx::Error> {
    let statement = sqlx::query!(
        "insert into discrepancies (record_id, digest) values ($1, $2) on conflict do nothing",
        record_id,
        digest,
    );
    let inserted = observe("discrepancies.insert", statement.execute(connection)).await?;
    Ok(inserted.rows_affected() > 0)
}

/// A payment with what else its callers need to know.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) payment: Payment,
    pub(super) charge_id: Option<String>,
    /// What may still be given back.
    pub(super) refundable_amount: i64,
    /// The span that began it.
    pub(super) trace_parent: Option<String>,
}

/// One payment; only if its order is this customer's, where one is given.
pub(super) async fn find(
    connection: &mut PgConnection,
    id: Uuid,
    only_of: Option<Uuid>,
) -> Result<Option<Found>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select
          payments.id, payments.order_id, payments.status, payments.amount, payments.currency,
          payments.refunded_amount, payments.refund_reserved_amount, payments.failure_reason,
          payments.gateway_charge_id, payments.trace_parent, payments.created_at, payments.updated_at
        from payments
        where
          payments.id = $1
          and ($2::uuid is null or order_belongs_to(payments.order_id, $2))
        "#,
        id,
        only_of,
    );
    let row = observe("payments.select", statement.fetch_optional(connection)).await?;
    row.map(|row| {
        let payment = Payment {
            id: row.id,
            order_id: row.order_id,
            status: payment_status(&row.status)?,
            amount: row.amount,
            currency: row.currency,
            refunded_amount: row.refunded_amount,
            failure_reason: row.failure_reason,
            created_at: row.created_at,
            updated_at: row.updated_at,
        };
        let refundable_amount = row.amount - row.refund_reserved_amount;
        Ok(Found {
            payment,
            charge_id: row.gateway_charge_id,
            refundable_amount,
            trace_parent: row.trace_parent,
        })
    })
    .transpose()
}

/// How many outcomes are not known, in the whole database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unsettled {
    pub(super) count: i64,
    pub(super) parked: i64,
    pub(super) oldest: Option<DateTime<Utc>>,
}

/// Counts what is not settled.
pub(super) async fn unsettled(database: &Database) -> Result<Unsettled, sqlx::Error> {
    let statement = sqlx::query_as!(
        Unsettled,
        r#"
        select count(*) as "count!", count(parked_at) as "parked!", min(created_at) as oldest
        from (
          select parked_at, created_at from payments where status = 'processing'
          union all
          select parked_at, created_at from refunds where status = 'processing'
        ) as unsettled
        "#
    );
    let mut connection = database.acquire().await?;
    observe("payments.count", statement.fetch_one(&mut *connection)).await
}

/// A constraint keeps the column to these names; another one is a newer release's.
pub(super) fn payment_status(text: &str) -> Result<PaymentStatus, sqlx::Error> {
    PaymentStatus::parse(text)
        .ok_or_else(|| sqlx::Error::Decode(format!("unknown payment status {text:?}").into()))
}

fn interval(duration: Duration) -> sqlx::postgres::types::PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    sqlx::postgres::types::PgInterval { months: 0, days: 0, microseconds }
}
