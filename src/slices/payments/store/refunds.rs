//! The refunds table: beginning, leasing and reading. A refund reserves its amount in the payment's row.
use std::time::Duration;

use platform::{
    audit::Event,
    database::{Database, observe, violated_constraint},
    http::idempotency::Claim,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    super::{
        gateway_key::GatewayKey,
        model::{Refund, RefundStatus},
    },
    age, interval,
};

/// A refund without an outcome: the request to send.
#[derive(Debug, Clone)]
pub(in crate::slices::payments) struct OpenRefund {
    pub(in crate::slices::payments) id: Uuid,
    pub(in crate::slices::payments) gateway_key: GatewayKey,
    pub(in crate::slices::payments) payment_id: Uuid,
    pub(in crate::slices::payments) order_id: Uuid,
    pub(in crate::slices::payments) amount: i64,
    pub(in crate::slices::payments) currency: String,
    pub(in crate::slices::payments) charge_id: String,
    pub(in crate::slices::payments) gateway_request: String,
    pub(in crate::slices::payments) correlation_id: String,
    pub(in crate::slices::payments) trace_parent: Option<String>,
    pub(in crate::slices::payments) age: Duration,
    pub(in crate::slices::payments) parked: bool,
}

/// A refund to begin.
pub(in crate::slices::payments) struct RefundDraft<'a> {
    pub(in crate::slices::payments) id: Uuid,
    pub(in crate::slices::payments) gateway_key: GatewayKey,
    pub(in crate::slices::payments) payment_id: Uuid,
    pub(in crate::slices::payments) amount: i64,
    pub(in crate::slices::payments) currency: &'a str,
    pub(in crate::slices::payments) reason: Option<&'a str>,
    pub(in crate::slices::payments) gateway_request: &'a str,
    pub(in crate::slices::payments) correlation_id: &'a str,
    pub(in crate::slices::payments) trace_parent: Option<&'a str>,
    pub(in crate::slices::payments) claim: &'a Claim,
    pub(in crate::slices::payments) lease: Duration,
}

/// Runs the first transaction of a refund as one statement. It locks the payment if the amount is still refundable,
/// claims the key, and reserves the amount. It also stores the refund with its first lease, and records the audit
/// event. Returns `None`, and stores nothing, if the amount is no longer refundable or one of the two keys is taken.
pub(in crate::slices::payments) async fn begin_refund(
    database: &Database,
    new: &RefundDraft<'_>,
) -> Result<Option<Refund>, sqlx::Error> {
    let event = Event::change("refunds", "create")
        .records([new.id])
        .with("payment_id", new.payment_id.to_string())
        .with("amount", new.amount)
        .with("gateway_key", new.gateway_key.to_string());
    let statement = sqlx::query!(
        r#"
        with refundable as materialized (
          select id
          from payments
          where
            id = $2 and status in ('succeeded', 'partially_refunded')
            and refund_reserved_amount + $3 <= amount
          for update
        ), claimed as materialized (
          select id
          from refundable
          where claim_idempotency_key($8, $9, $10, $1, $11, null, null)
        ), reserved as (
          update payments
          set refund_reserved_amount = refund_reserved_amount + $3
          from claimed
          where payments.id = claimed.id
          returning payments.id
        ), begun as (
          insert into refunds (
            id, payment_id, amount, reason, gateway_request, correlation_id, trace_parent, lease_expires_at,
            gateway_key
          )
          select $1, reserved.id, $3, $4, $5, $6, $7, clock_timestamp() + $11::interval, $13
          from reserved
          returning created_at
        )
        select created_at as "created_at!", record_audit_event($12)
        from begun
        "#,
        new.id,
        new.payment_id,
        new.amount,
        new.reason,
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
    let begun = match observe("refunds.insert", statement.fetch_optional(&mut *connection)).await {
        Err(error) if violated_constraint(&error) == Some("a_gateway_key_makes_one_refund") => None,
        begun => begun?,
    };
    Ok(begun.map(|row| {
        event.mirror();
        Refund {
            id: new.id,
            payment_id: new.payment_id,
            status: RefundStatus::Processing,
            amount: new.amount,
            currency: new.currency.to_owned(),
            created_at: row.created_at,
        }
    }))
}

/// Like [`super::count_attempt`], for a refund.
pub(in crate::slices::payments) async fn count_refund_attempt(
    database: &Database,
    refund_id: Uuid,
) -> Result<Option<i32>, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        "update refunds set attempts = attempts + 1 where id = $1 and status = 'processing' returning attempts",
        refund_id,
    );
    let mut connection = database.acquire().await?;
    observe("refunds.update", statement.fetch_optional(&mut *connection)).await
}

/// Like [`super::uncount_attempt`], for a refund.
pub(in crate::slices::payments) async fn uncount_refund_attempt(
    database: &Database,
    refund_id: Uuid,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "update refunds set attempts = attempts - 1 where id = $1 and status = 'processing' and attempts > 0",
        refund_id,
    );
    let mut connection = database.acquire().await?;
    observe("refunds.update", statement.execute(&mut *connection)).await?;
    connection.release();
    Ok(())
}

/// Like [`super::lease_payments`], for refunds.
pub(in crate::slices::payments) async fn lease_refunds(
    database: &Database,
    lease: Duration,
    most: i64,
) -> Result<Vec<OpenRefund>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update refunds
        set lease_expires_at = clock_timestamp() + $1::interval
        from payments
        where
          payments.id = refunds.payment_id
          and refunds.id in (
            select id
            from refunds
            where status = 'processing' and (lease_expires_at is null or lease_expires_at <= now())
            order by lease_expires_at
            limit $2
            for update skip locked
          )
        returning
          refunds.id, refunds.gateway_key, refunds.payment_id, payments.order_id, refunds.amount, payments.currency,
          payments.gateway_charge_id as "charge_id!", refunds.gateway_request, refunds.correlation_id,
          refunds.trace_parent,
          extract(epoch from now() - refunds.first_sent_at)::float8 as "age_seconds!",
          refunds.parked_at is not null as "parked!"
        "#,
        interval(lease),
        most,
    );
    let mut connection = database.acquire().await?;
    let rows = observe("refunds.lease", statement.fetch_all(&mut *connection)).await?;
    let open = rows.into_iter().map(|row| OpenRefund {
        id: row.id,
        gateway_key: GatewayKey(row.gateway_key),
        payment_id: row.payment_id,
        order_id: row.order_id,
        amount: row.amount,
        currency: row.currency,
        charge_id: row.charge_id,
        gateway_request: row.gateway_request,
        correlation_id: row.correlation_id,
        trace_parent: row.trace_parent,
        age: age(row.age_seconds),
        parked: row.parked,
    });
    Ok(open.collect())
}

/// Like [`super::release_payment`], for a refund.
pub(in crate::slices::payments) async fn release_refund(
    database: &Database,
    id: Uuid,
    pause: Duration,
    park: bool,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update refunds
        set lease_expires_at = now() + $2::interval, parked_at = case when $3 then coalesce(parked_at, now()) else parked_at end
        where id = $1 and status = 'processing'
        "#,
        id,
        interval(pause),
        park,
    );
    let mut connection = database.acquire().await?;
    observe("refunds.update", statement.execute(&mut *connection)).await?;
    Ok(())
}

/// A refund with further data for its callers.
#[derive(Debug, Clone)]
pub(in crate::slices::payments) struct RefundRecord {
    pub(in crate::slices::payments) refund: Refund,
    pub(in crate::slices::payments) open: OpenRefund,
    pub(in crate::slices::payments) gateway_refund_id: Option<String>,
}

/// Returns one refund.
pub(in crate::slices::payments) async fn find_refund(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<RefundRecord>, sqlx::Error> {
    select(connection, Some(id), None).await
}

/// Returns the refund that was begun under a gateway key.
pub(in crate::slices::payments) async fn find_refund_by_gateway_key(
    connection: &mut PgConnection,
    key: GatewayKey,
) -> Result<Option<RefundRecord>, sqlx::Error> {
    select(connection, None, Some(key)).await
}

async fn select(
    connection: &mut PgConnection,
    id: Option<Uuid>,
    key: Option<GatewayKey>,
) -> Result<Option<RefundRecord>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select
          refunds.id, refunds.gateway_key, refunds.payment_id, payments.order_id, refunds.status, refunds.amount,
          payments.currency, payments.gateway_charge_id as "charge_id!", refunds.gateway_request,
          refunds.correlation_id, refunds.trace_parent, refunds.created_at, refunds.gateway_refund_id,
          extract(epoch from now() - refunds.first_sent_at)::float8 as "age_seconds!",
          refunds.parked_at is not null as "parked!"
        from refunds
        join payments on payments.id = refunds.payment_id
        where refunds.id = coalesce($1, (select by_key.id from refunds as by_key where by_key.gateway_key = $2))
        "#,
        id,
        key.map(|key| key.0),
    );
    let row = observe("refunds.select", statement.fetch_optional(connection)).await?;
    row.map(|row| {
        let refund = Refund {
            id: row.id,
            payment_id: row.payment_id,
            status: refund_status(&row.status)?,
            amount: row.amount,
            currency: row.currency.clone(),
            created_at: row.created_at,
        };
        let open = OpenRefund {
            id: row.id,
            gateway_key: GatewayKey(row.gateway_key),
            payment_id: row.payment_id,
            order_id: row.order_id,
            amount: row.amount,
            currency: row.currency,
            charge_id: row.charge_id,
            gateway_request: row.gateway_request,
            correlation_id: row.correlation_id,
            trace_parent: row.trace_parent,
            age: age(row.age_seconds),
            parked: row.parked,
        };
        Ok(RefundRecord { refund, open, gateway_refund_id: row.gateway_refund_id })
    })
    .transpose()
}

/// Like [`super::payment_status`].
pub(super) fn refund_status(text: &str) -> Result<RefundStatus, sqlx::Error> {
    RefundStatus::parse(text)
        .ok_or_else(|| sqlx::Error::Decode(format!("unknown refund status {text:?}").into()))
}
