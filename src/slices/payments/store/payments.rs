//! The statements that begin, lease, release and read payments, and count their sends.
use std::time::Duration;

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
        model::{Payment, PaymentStatus},
    },
    By, age, interval,
};

super::declare_sends_and_leases!("payments");

/// A payment without an outcome: the request to send, and the state of earlier sends.
#[derive(Debug, Clone)]
pub struct OpenPayment {
    pub id: Uuid,
    pub order_id: Uuid,
    pub gateway_key: GatewayKey,
    pub amount: i64,
    pub currency: String,
    /// The exact bytes of the request's body.
    pub gateway_request: String,
    pub correlation_id: String,
    pub trace_parent: Option<String>,
    /// Time since the charge was first sent, on the database's clock.
    pub age: Duration,
    /// True if the payment is marked for review. Its discrepancy, with an alert, is recorded already.
    pub needs_review: bool,
}

/// A payment to begin.
pub struct PaymentDraft<'a> {
    pub id: Uuid,
    pub order_id: Uuid,
    pub gateway_key: GatewayKey,
    pub amount: i64,
    pub currency: &'a str,
    pub gateway_request: &'a str,
    pub correlation_id: &'a str,
    pub trace_parent: Option<&'a str>,
    pub claim: &'a Claim,
    pub lease: Duration,
}

/// Runs the first transaction of a payment as one statement. The statement locks the order if the order can be paid,
/// and claims the idempotency key. It then stores the payment with its first lease, links the order to the payment, and
/// records the audit event. Returns `None`, and stores nothing, if the order cannot be paid, or the idempotency key or
/// the gateway key is taken.
///
/// The lease begins after the wait for the order's lock, so that a long wait does not shorten the lease.
pub async fn begin(database: &Database, new: &PaymentDraft<'_>) -> Result<Option<Payment>, sqlx::Error> {
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
    let begun = match database
        .run("payments.insert", async |connection| statement.fetch_optional(connection).await)
        .await
    {
        Err(error) if violated_constraint(&error) == Some("a_gateway_key_makes_one_payment") => None,
        begun => begun?,
    };
    Ok(begun.map(|row| {
        event.log_and_count();
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

/// Leases payments that are due, so that no other replica polls the gateway for them at the same time.
pub async fn lease(
    database: &Database,
    lease: Duration,
    limit: i64,
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
          parked_at is not null as "needs_review!"
        "#,
        interval(lease),
        limit,
    );
    let rows =
        database.run("payments.lease", async |connection| statement.fetch_all(connection).await).await?;
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
        needs_review: row.needs_review,
    });
    Ok(open.collect())
}

/// A payment, and columns that the API does not return.
#[derive(Debug, Clone)]
pub struct PaymentRecord {
    pub payment: Payment,
    pub charge_id: Option<String>,
    /// Number of attempts that may have reached the gateway.
    pub attempts: i32,
    /// Amount that is still refundable, in minor units.
    pub refundable_amount: i64,
    /// The trace context of the request that began the payment.
    pub trace_parent: Option<String>,
}

#[cfg(test)]
impl PaymentRecord {
    /// Returns a payment of 100 minor units, with the charge `ch_1` and one attempt.
    pub fn example(status: PaymentStatus) -> Self {
        let now = chrono::Utc::now();
        let payment = Payment {
            id: Uuid::from_u128(1),
            order_id: Uuid::from_u128(2),
            status,
            amount: 100,
            currency: "EUR".to_owned(),
            refunded_amount: 0,
            failure_reason: None,
            created_at: now,
            updated_at: now,
        };
        let charge_id = Some("ch_1".to_owned());
        Self { payment, charge_id, attempts: 1, refundable_amount: 100, trace_parent: None }
    }
}

/// Returns one payment.
pub async fn find(database: &Database, by: By) -> Result<Option<PaymentRecord>, sqlx::Error> {
    database.run("payments.select", async |connection| select(connection, by, None).await).await
}

/// Returns one payment, within a transaction.
pub async fn find_within(
    connection: &mut PgConnection,
    by: By,
) -> Result<Option<PaymentRecord>, sqlx::Error> {
    instrument_query("payments.select", select(connection, by, None)).await
}

/// Returns one payment. With `owner`, returns the payment only if this customer placed its order.
pub async fn find_of_owner(
    database: &Database,
    id: Uuid,
    owner: Option<Uuid>,
) -> Result<Option<Payment>, sqlx::Error> {
    let found = database
        .run("payments.select", async |connection| select(connection, By::Id(id), owner).await)
        .await?;
    Ok(found.map(|found| found.payment))
}

async fn select(
    connection: &mut PgConnection,
    by: By,
    owner: Option<Uuid>,
) -> Result<Option<PaymentRecord>, sqlx::Error> {
    let (id, gateway_key) = by.parameters();
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
        gateway_key,
    );
    statement
        .fetch_optional(connection)
        .await?
        .map(|row| {
            let payment = Payment {
                id: row.id,
                order_id: row.order_id,
                status: status(&row.status)?,
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

/// Parses a status. A check constraint limits the column to valid names, so a name that this release does not know was
/// added by a newer release.
pub(super) fn status(text: &str) -> Result<PaymentStatus, sqlx::Error> {
    PaymentStatus::parse(text)
        .ok_or_else(|| sqlx::Error::Decode(format!("unknown payment status {text:?}").into()))
}

/// Returns whether this charge of the gateway has settled another payment.
pub async fn has_settled_another_payment(
    connection: &mut PgConnection,
    payment_id: Uuid,
    charge_id: &str,
) -> Result<bool, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"select exists (select from payments where gateway_charge_id = $2 and id <> $1) as "taken!""#,
        payment_id,
        charge_id,
    );
    instrument_query("payments.select", statement.fetch_one(connection)).await
}
