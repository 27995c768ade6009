//! The payments table: beginning, leasing and reading. `settlement.rs` has the statements that settle.
mod reconciliation;
mod refunds;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

pub(super) use self::reconciliation::{
    AgedRecord, ComparedPayment, ComparedRefund, IdRange, ListedObjects, RunLimits, advance_run, end_run,
    last_complete_run, lease_run, match_payments, match_refunds, unlisted_payments, unlisted_refunds,
};
pub(super) use self::refunds::{
    OpenRefund, RefundDraft, RefundRecord, begin_refund, count_refund_attempt, find_refund,
    find_refund_by_gateway_key, lease_refunds, release_refund, uncount_refund_attempt,
};
use super::{
    gateway_key::GatewayKey,
    model::{Payment, PaymentStatus},
};
use platform::{
    audit::Event,
    database::{Database, observe, violated_constraint},
    http::idempotency::Claim,
};

/// A payment without an outcome: the request to send, and the state of earlier sends.
#[derive(Debug, Clone)]
pub(super) struct OpenPayment {
    pub(super) id: Uuid,
    pub(super) order_id: Uuid,
    pub(super) gateway_key: GatewayKey,
    pub(super) amount: i64,
    pub(super) currency: String,
    /// The exact bytes that are sent.
    pub(super) gateway_request: String,
    pub(super) correlation_id: String,
    pub(super) trace_parent: Option<String>,
    /// Time since the charge was first sent, on the database's clock.
    pub(super) age: Duration,
    /// True if the payment needs review; an alert was recorded for it.
    pub(super) parked: bool,
}

/// A payment to begin.
pub(super) struct PaymentDraft<'a> {
    pub(super) id: Uuid,
    pub(super) order_id: Uuid,
    pub(super) gateway_key: GatewayKey,
    pub(super) amount: i64,
    pub(super) currency: &'a str,
    pub(super) gateway_request: &'a str,
    pub(super) correlation_id: &'a str,
    pub(super) trace_parent: Option<&'a str>,
    pub(super) claim: &'a Claim,
    pub(super) lease: Duration,
}

/// Runs the first transaction of a payment as one statement. It locks the order if it can be paid, claims the key, and
/// stores the payment with its first lease. It also links the order to the payment, and records the audit event.
/// Returns `None`, and stores nothing, if the order cannot be paid or one of the two keys is taken.
///
/// The lease begins after the wait for the order's lock, so that a long wait does not shorten it.
pub(super) async fn begin_payment(
    database: &Database,
    new: &PaymentDraft<'_>,
) -> Result<Option<Payment>, sqlx::Error> {
    let event = Event::change("payments", "create")
        .records([new.id])
        .with("order_id", new.order_id.to_string())
        .with("amount", new.amount)
        .with("currency", new.currency)
        .with("gateway_key", new.gateway_key.to_string());
    let statement = sqlx::query!(
        r#"
        with claimed as materialized (
          -- `case` because nothing else promises that the lock comes before the claim.
          select
          where case when lock_payable_order($2) then claim_idempotency_key($8, $9, $10, $1, $11, null, null) else false end
        ), begun as (
          insert into payments (
            id, order_id, amount, currency, gateway_request, correlation_id, trace_parent, lease_expires_at,
            gateway_key
          )
          select $1, $2, $3, $4, $5, $6, $7, clock_timestamp() + $11::interval, $13
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
        new.gateway_key.0,
    );
    let mut connection = database.acquire().await?;
    let begun = match observe("payments.insert", statement.fetch_optional(&mut *connection)).await {
        Err(error) if violated_constraint(&error) == Some("a_gateway_key_makes_one_payment") => None,
        begun => begun?,
    };
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

/// Counts another send of the charge, and commits before the send. Returns the new count, or `None` if the payment was
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

/// Subtracts an attempt that has certainly sent nothing.
pub(super) async fn uncount_attempt(database: &Database, payment_id: Uuid) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "update payments set attempts = attempts - 1 where id = $1 and status = 'processing' and attempts > 0",
        payment_id,
    );
    let mut connection = database.acquire().await?;
    observe("payments.update", statement.execute(&mut *connection)).await?;
    connection.release();
    Ok(())
}

/// Leases payments that are due, so that no other replica polls the gateway for them at the same time.
pub(super) async fn lease_payments(
    database: &Database,
    lease: Duration,
    most: i64,
) -> Result<Vec<OpenPayment>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update payments
        set lease_expires_at = clock_timestamp() + $1::interval
        where id in (
          select id
          from payments
          where status = 'processing' and (lease_expires_at is null or lease_expires_at <= now())
          order by lease_expires_at
          limit $2
          for update skip locked
        )
        returning
          id, order_id, gateway_key, amount, currency, gateway_request, correlation_id, trace_parent,
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
        gateway_key: GatewayKey(row.gateway_key),
        amount: row.amount,
        currency: row.currency,
        gateway_request: row.gateway_request,
        correlation_id: row.correlation_id,
        trace_parent: row.trace_parent,
        age: age(row.age_seconds),
        parked: row.parked,
    });
    Ok(open.collect())
}

/// Ends a lease early: recovery polls the gateway after this pause. `park` marks the payment as needing review.
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

/// A payment with further data for its callers.
#[derive(Debug, Clone)]
pub(super) struct PaymentRecord {
    pub(super) payment: Payment,
    pub(super) charge_id: Option<String>,
    /// Number of sends of the charge that may have reached the gateway.
    pub(super) attempts: i32,
    /// Amount that may still be refunded.
    pub(super) refundable_amount: i64,
    /// The trace context of the request that began the payment.
    pub(super) trace_parent: Option<String>,
}

/// Returns one payment. With `owner`, returns it only if its order is this customer's.
pub(super) async fn find(
    connection: &mut PgConnection,
    id: Uuid,
    owner: Option<Uuid>,
) -> Result<Option<PaymentRecord>, sqlx::Error> {
    select(connection, Some(id), None, owner).await
}

/// Returns the payment that was begun under a gateway key.
pub(super) async fn find_by_gateway_key(
    connection: &mut PgConnection,
    key: GatewayKey,
) -> Result<Option<PaymentRecord>, sqlx::Error> {
    select(connection, None, Some(key), None).await
}

async fn select(
    connection: &mut PgConnection,
    id: Option<Uuid>,
    key: Option<GatewayKey>,
    owner: Option<Uuid>,
) -> Result<Option<PaymentRecord>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select
          payments.id, payments.order_id, payments.status, payments.amount, payments.currency,
          payments.refunded_amount, payments.refund_reserved_amount, payments.failure_reason,
          payments.gateway_charge_id, payments.attempts, payments.trace_parent, payments.created_at,
          payments.updated_at
        from payments
        where
          payments.id = coalesce($1, (select by_key.id from payments as by_key where by_key.gateway_key = $3))
          and ($2::uuid is null or order_belongs_to(payments.order_id, $2))
        "#,
        id,
        owner,
        key.map(|key| key.0),
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
        Ok(PaymentRecord {
            payment,
            charge_id: row.gateway_charge_id,
            attempts: row.attempts,
            refundable_amount,
            trace_parent: row.trace_parent,
        })
    })
    .transpose()
}

/// Numbers of unknown outcomes and of open discrepancies in the whole database.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnsettledCounts {
    pub(super) count: i64,
    pub(super) parked: i64,
    pub(super) oldest: Option<DateTime<Utc>>,
    /// Excludes discrepancies for an unknown outcome, which [`parked`](Self::parked) counts.
    pub(super) discrepancies: i64,
}

/// Counts unsettled payments and refunds, and open discrepancies.
pub(super) async fn unsettled(database: &Database) -> Result<UnsettledCounts, sqlx::Error> {
    let statement = sqlx::query_as!(
        UnsettledCounts,
        r#"
        select
          count(*) as "count!", count(parked_at) as "parked!", min(created_at) as oldest,
          (
            select count(*) from discrepancies where closed_at is null and what <> 'outcome unknown'
          ) as "discrepancies!"
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

/// Parses a status. A constraint limits the column to these names; an unknown name comes from a newer release.
pub(super) fn payment_status(text: &str) -> Result<PaymentStatus, sqlx::Error> {
    PaymentStatus::parse(text)
        .ok_or_else(|| sqlx::Error::Decode(format!("unknown payment status {text:?}").into()))
}

/// Converts an age from the database. It is negative if the database's clock was set back, and then counts as zero.
fn age(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Returns whether this charge of the gateway has settled another payment.
pub(super) async fn charge_is_taken(
    connection: &mut PgConnection,
    payment_id: Uuid,
    charge_id: &str,
) -> Result<bool, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"select exists (select from payments where gateway_charge_id = $2 and id <> $1) as "taken!""#,
        payment_id,
        charge_id,
    );
    observe("payments.select", statement.fetch_one(connection)).await
}

/// Returns whether a payment or refund is parked or has an open discrepancy.
pub(super) async fn needs_review(connection: &mut PgConnection, id: Uuid) -> Result<bool, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select exists (
          select from payments where id = $1 and parked_at is not null
          union all
          select from refunds where id = $1 and parked_at is not null
          union all
          select from discrepancies where record_id = $1 and closed_at is null
        ) as "needs_review!"
        "#,
        id,
    );
    observe("payments.select", statement.fetch_one(connection)).await
}

pub(super) fn interval(duration: Duration) -> sqlx::postgres::types::PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    sqlx::postgres::types::PgInterval { months: 0, days: 0, microseconds }
}
