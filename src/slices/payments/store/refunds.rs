//! The statements that begin, lease, release and read refunds, and count their sends. A refund reserves its amount in
//! the payment's row.
use std::time::Duration;

use chrono::{DateTime, Utc};
use platform::{
    audit::Event,
    database::{Database, instrument_query, violated_constraint},
    http::idempotency::Claim,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    super::{
        gateway_key::GatewayKey,
        model::{Refund, RefundStatus},
    },
    By, age, interval,
};

/// Queries refunds. The macro inserts the column list between the two given parts of the statement.
macro_rules! query_refunds {
    ($before:tt, $after:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            $before
                + r#"
          refunds.id, refunds.gateway_key, refunds.payment_id, payments.order_id, refunds.status, refunds.amount,
          payments.currency, payments.gateway_charge_id as "charge_id!", refunds.gateway_request,
          refunds.correlation_id, refunds.trace_parent, refunds.created_at, refunds.gateway_refund_id,
          extract(epoch from now() - refunds.first_sent_at)::float8 as "age_seconds!",
          refunds.parked_at is not null as "needs_review!"
        "#
                + $after,
            $($argument),+
        )
    };
}

super::declare_sends_and_leases!("refunds");

/// A refund, and its request to the gateway. The refund may be settled already. Callers resend the request only while
/// the outcome is unknown.
#[derive(Debug, Clone)]
pub struct RefundToSend {
    pub id: Uuid,
    pub gateway_key: GatewayKey,
    pub payment_id: Uuid,
    pub order_id: Uuid,
    pub amount: i64,
    pub currency: String,
    pub charge_id: String,
    pub gateway_request: String,
    pub correlation_id: String,
    pub trace_parent: Option<String>,
    pub age: Duration,
    pub needs_review: bool,
}

/// A refund to begin.
pub struct RefundDraft<'a> {
    pub id: Uuid,
    pub gateway_key: GatewayKey,
    pub payment_id: Uuid,
    pub amount: i64,
    pub currency: &'a str,
    pub reason: Option<&'a str>,
    pub gateway_request: &'a str,
    pub correlation_id: &'a str,
    pub trace_parent: Option<&'a str>,
    pub claim: &'a Claim,
    pub lease: Duration,
}

/// Runs the first transaction of a refund as one statement. The statement locks the payment if the amount is still
/// refundable, and claims the idempotency key. It then reserves the amount, stores the refund with its first lease, and
/// records the audit event. Returns `None`, and stores nothing, if the amount is no longer refundable, or the
/// idempotency key or the gateway key is taken.
pub async fn begin(database: &Database, new: &RefundDraft<'_>) -> Result<Option<Refund>, sqlx::Error> {
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
    let begun = match database
        .run("refunds.insert", async |connection| statement.fetch_optional(connection).await)
        .await
    {
        Err(error) if violated_constraint(&error) == Some("a_gateway_key_makes_one_refund") => None,
        begun => begun?,
    };
    Ok(begun.map(|row| {
        event.log_and_count();
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

/// Leases refunds that are due, so that no other replica polls the gateway for them at the same time.
pub async fn lease(
    database: &Database,
    lease: Duration,
    limit: i64,
) -> Result<Vec<RefundToSend>, sqlx::Error> {
    let statement = query_refunds!(
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
        returning"#,
        "",
        interval(lease),
        limit,
    );
    let rows =
        database.run("refunds.lease", async |connection| statement.fetch_all(connection).await).await?;
    Ok(rows.into_iter().map(RefundToSend::from).collect())
}

/// A refund, and columns that the API does not return.
#[derive(Debug, Clone)]
pub struct RefundRecord {
    pub refund: Refund,
    pub open: RefundToSend,
    pub gateway_refund_id: Option<String>,
}

/// Returns one refund.
pub async fn find(database: &Database, by: By) -> Result<Option<RefundRecord>, sqlx::Error> {
    database.run("refunds.select", async |connection| select(connection, by).await).await
}

/// Returns one refund, within a transaction.
pub async fn find_within(connection: &mut PgConnection, by: By) -> Result<Option<RefundRecord>, sqlx::Error> {
    instrument_query("refunds.select", select(connection, by)).await
}

async fn select(connection: &mut PgConnection, by: By) -> Result<Option<RefundRecord>, sqlx::Error> {
    let (id, gateway_key) = by.parameters();
    let statement = query_refunds!(
        r#"
        select"#,
        r#"from refunds
        join payments on payments.id = refunds.payment_id
        where refunds.id = coalesce($1, (select by_key.id from refunds as by_key where by_key.gateway_key = $2))
        "#,
        id,
        gateway_key,
    );
    statement.fetch_optional(connection).await?.map(RefundRecord::try_from).transpose()
}

struct Row {
    id: Uuid,
    gateway_key: Uuid,
    payment_id: Uuid,
    order_id: Uuid,
    status: String,
    amount: i64,
    currency: String,
    charge_id: String,
    gateway_request: String,
    correlation_id: String,
    trace_parent: Option<String>,
    created_at: DateTime<Utc>,
    gateway_refund_id: Option<String>,
    age_seconds: f64,
    needs_review: bool,
}

impl From<Row> for RefundToSend {
    fn from(row: Row) -> Self {
        Self {
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
            needs_review: row.needs_review,
        }
    }
}

impl TryFrom<Row> for RefundRecord {
    type Error = sqlx::Error;

    fn try_from(mut row: Row) -> Result<Self, sqlx::Error> {
        let refund = Refund {
            id: row.id,
            payment_id: row.payment_id,
            status: status(&row.status)?,
            amount: row.amount,
            currency: row.currency.clone(),
            created_at: row.created_at,
        };
        let gateway_refund_id = row.gateway_refund_id.take();
        Ok(Self { refund, open: row.into(), gateway_refund_id })
    }
}

/// Parses a status. A check constraint limits the column to valid names, so a name that this release does not know was
/// added by a newer release.
pub(super) fn status(text: &str) -> Result<RefundStatus, sqlx::Error> {
    RefundStatus::parse(text)
        .ok_or_else(|| sqlx::Error::Decode(format!("unknown refund status {text:?}").into()))
}
