//! The statements of reconciliation: the progress of its runs, and the records to compare.
use std::time::Duration;

use chrono::{DateTime, Utc};
use platform::database::Database;
use uuid::Uuid;

use super::{
    super::{
        gateway_key::GatewayKey,
        model::{PaymentStatus, RefundStatus},
    },
    age, interval, payments, refunds,
};

/// A run in progress, leased to this replica.
#[derive(Debug)]
pub struct LeasedRun {
    /// Time at which the run began, on the database's clock.
    pub started_at: DateTime<Utc>,
    /// Beginning of the period whose records the run compares.
    pub since: DateTime<Utc>,
    pub step: String,
    pub position: Option<String>,
    /// Number of leases of this run so far, including this lease. Each lease is for one page, which can be a repeated
    /// one.
    pub pages: i32,
}

/// The lengths of a lease and of the compared period.
#[derive(Debug, Clone, Copy)]
pub struct RunLimits {
    pub lease: Duration,
    /// Duration from the beginning of the compared period to the beginning of the latest complete run.
    pub lookback: Duration,
    /// Maximum length of the compared period.
    pub max_lookback: Duration,
}

/// Leases the next page of a scope's run, and begins a run if one is due and none is in progress. Each scope, such as
/// `recent`, has its own runs. Returns `None` if no run is due, or another replica has the lease.
pub async fn lease_run(
    database: &Database,
    scope: &str,
    replica: Uuid,
    limits: RunLimits,
) -> Result<Option<LeasedRun>, sqlx::Error> {
    let statement = sqlx::query_as!(
        LeasedRun,
        r#"
        update reconciliations
        set
          lease_holder = $2,
          lease_expires_at = now() + $3::interval,
          started_at = coalesce(started_at, now()),
          since = coalesce(
            since,
            greatest(now() - $5::interval, least(now(), coalesce(completed_through, now())) - $4::interval)
          ),
          step = coalesce(step, 'charges'),
          pages = pages + 1
        where
          scope = $1 and due_at <= now()
          and (lease_holder is null or lease_holder = $2 or lease_expires_at <= now())
        returning started_at as "started_at!", since as "since!", step as "step!", position, pages
        "#,
        scope,
        replica,
        interval(limits.lease),
        interval(limits.lookback),
        interval(limits.max_lookback),
    );
    database.run("reconciliations.lease", async |connection| statement.fetch_optional(connection).await).await
}

/// Stores the position of the next page, unless another replica has taken the run over.
pub async fn advance_run(
    database: &Database,
    scope: &str,
    replica: Uuid,
    step: &str,
    position: Option<&str>,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "update reconciliations set step = $3, position = $4 where scope = $1 and lease_holder = $2",
        scope,
        replica,
        step,
        position,
    );
    database.run("reconciliations.update", async |connection| statement.execute(connection).await).await?;
    Ok(())
}

/// Ends a run, unless another replica has taken the run over. The next run is due after the pause. `complete` records
/// that everything until the beginning of this run was compared.
pub async fn end_run(
    database: &Database,
    scope: &str,
    replica: Uuid,
    complete: bool,
    pause: Duration,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update reconciliations
        set
          completed_through = case when $3 then started_at else completed_through end,
          due_at = now() + $4::interval,
          lease_holder = null, lease_expires_at = null,
          started_at = null, since = null, step = null, position = null, pages = 0
        where scope = $1 and lease_holder = $2
        "#,
        scope,
        replica,
        complete,
        interval(pause),
    );
    database.run("reconciliations.update", async |connection| statement.execute(connection).await).await?;
    Ok(())
}

/// Returns when the latest complete run of a scope began, in seconds since 1970, or 0 if no run was complete.
pub async fn last_complete_run(database: &Database, scope: &str) -> Result<f64, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select coalesce(extract(epoch from completed_through), 0)::float8 as "completed!"
        from reconciliations
        where scope = $1
        "#,
        scope,
    );
    database.run("reconciliations.select", async |connection| statement.fetch_one(connection).await).await
}

/// Objects that the gateway listed: the reference and the id of each.
#[derive(Debug, Default)]
pub struct ListedObjects {
    references: Vec<Uuid>,
    ids: Vec<String>,
}

impl ListedObjects {
    /// Adds an object. The id of an unreadable object is empty, so its payment or refund is found by the reference but
    /// not marked as listed.
    pub fn add(&mut self, reference: GatewayKey, id: &str) {
        self.references.push(reference.0);
        self.ids.push(id.to_owned());
    }
}

/// A payment to compare with a charge.
#[derive(Debug, Clone)]
pub struct ComparedPayment {
    pub id: Uuid,
    pub order_id: Uuid,
    pub gateway_key: GatewayKey,
    pub status: PaymentStatus,
    pub amount: i64,
    pub currency: String,
    pub charge_id: Option<String>,
    pub correlation_id: String,
    /// Time since the charge was first sent.
    pub age: Duration,
}

/// Returns the payments with these references. Sets `listed_at` of each payment whose charge is listed for the first
/// time.
///
/// A row that another transaction has locked is skipped, and marked by a later run. This statement therefore waits for
/// no row lock, and no deadlock is possible.
pub async fn match_payments(
    database: &Database,
    listed: &ListedObjects,
) -> Result<Vec<ComparedPayment>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        with listed as (
          select * from unnest($1::uuid[], $2::text[]) as listed (reference, charge_id)
        ), found as (
          select payments.id
          from payments
          join listed on payments.gateway_key = listed.reference and payments.gateway_charge_id = listed.charge_id
          where payments.listed_at is null
          for no key update of payments skip locked
        ), marked as (
          update payments set listed_at = now() from found where payments.id = found.id
        )
        select
          id, order_id, gateway_key, status, amount, currency, gateway_charge_id, correlation_id,
          extract(epoch from now() - first_sent_at)::float8 as "age_seconds!"
        from payments
        where gateway_key = any($1)
        "#,
        &listed.references,
        &listed.ids,
    );
    let rows =
        database.run("payments.match", async |connection| statement.fetch_all(connection).await).await?;
    let found = rows.into_iter().map(|row| {
        Ok(ComparedPayment {
            id: row.id,
            order_id: row.order_id,
            gateway_key: GatewayKey(row.gateway_key),
            status: payments::status(&row.status)?,
            amount: row.amount,
            currency: row.currency,
            charge_id: row.gateway_charge_id,
            correlation_id: row.correlation_id,
            age: age(row.age_seconds),
        })
    });
    found.collect()
}

/// A refund to compare with a refund of the gateway.
#[derive(Debug, Clone)]
pub struct ComparedRefund {
    pub id: Uuid,
    pub gateway_key: GatewayKey,
    pub status: RefundStatus,
    pub amount: i64,
    /// The gateway's id of the refunded payment's charge.
    pub charge_id: String,
    pub gateway_refund_id: Option<String>,
    pub correlation_id: String,
    /// Time since the refund was first sent.
    pub age: Duration,
}

/// Mirrors [`match_payments`] for refunds.
pub async fn match_refunds(
    database: &Database,
    listed: &ListedObjects,
) -> Result<Vec<ComparedRefund>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        with listed as (
          select * from unnest($1::uuid[], $2::text[]) as listed (reference, refund_id)
        ), found as (
          select refunds.id
          from refunds
          join listed on refunds.gateway_key = listed.reference and refunds.gateway_refund_id = listed.refund_id
          where refunds.listed_at is null
          for no key update of refunds skip locked
        ), marked as (
          update refunds set listed_at = now() from found where refunds.id = found.id
        )
        select
          refunds.id, refunds.gateway_key, refunds.status, refunds.amount,
          payments.gateway_charge_id as "charge_id!", refunds.gateway_refund_id, refunds.correlation_id,
          extract(epoch from now() - refunds.first_sent_at)::float8 as "age_seconds!"
        from refunds
        join payments on payments.id = refunds.payment_id
        where refunds.gateway_key = any($1)
        "#,
        &listed.references,
        &listed.ids,
    );
    let rows =
        database.run("refunds.match", async |connection| statement.fetch_all(connection).await).await?;
    let found = rows.into_iter().map(|row| {
        Ok(ComparedRefund {
            id: row.id,
            gateway_key: GatewayKey(row.gateway_key),
            status: refunds::status(&row.status)?,
            amount: row.amount,
            charge_id: row.charge_id,
            gateway_refund_id: row.gateway_refund_id,
            correlation_id: row.correlation_id,
            age: age(row.age_seconds),
        })
    });
    found.collect()
}

/// A payment or refund of the compared period, and whether the gateway has listed its charge or refund.
#[derive(Debug)]
pub struct AgedRecord {
    pub id: Uuid,
    pub gateway_key: Uuid,
    /// True if the payment or refund moved money, and no listing of the gateway had its charge or refund yet.
    pub unlisted: bool,
}

/// A range of ids that excludes both ends, and the maximum number of records to return.
#[derive(Debug, Clone, Copy)]
pub struct IdRange {
    pub after: Uuid,
    pub before: Uuid,
    pub limit: i64,
}

/// Returns the payments in a range, in the order of their ids. Without `includes_recorded`, a payment for which this
/// discrepancy is recorded does not count as unlisted.
pub async fn payments_in_range(
    database: &Database,
    range: IdRange,
    includes_recorded: bool,
    discrepancy: &str,
) -> Result<Vec<AgedRecord>, sqlx::Error> {
    let statement = sqlx::query_as!(
        AgedRecord,
        r#"
        select
          id, gateway_key,
          (
            listed_at is null and status in ('succeeded', 'partially_refunded', 'refunded')
            and ($4 or not exists (
              select from discrepancies where record_id = payments.id and what = $5
            ))
          ) as "unlisted!"
        from payments
        where id > $1 and id < $2
        order by id
        limit $3
        "#,
        range.after,
        range.before,
        range.limit,
        includes_recorded,
        discrepancy,
    );
    database.run("payments.list_unlisted", async |connection| statement.fetch_all(connection).await).await
}

/// Mirrors [`payments_in_range`] for refunds.
pub async fn refunds_in_range(
    database: &Database,
    range: IdRange,
    includes_recorded: bool,
    discrepancy: &str,
) -> Result<Vec<AgedRecord>, sqlx::Error> {
    let statement = sqlx::query_as!(
        AgedRecord,
        r#"
        select
          id, gateway_key,
          (
            listed_at is null and status = 'succeeded'
            and ($4 or not exists (
              select from discrepancies
              where record_id = refunds.id and what = $5
            ))
          ) as "unlisted!"
        from refunds
        where id > $1 and id < $2
        order by id
        limit $3
        "#,
        range.after,
        range.before,
        range.limit,
        includes_recorded,
        discrepancy,
    );
    database.run("refunds.list_unlisted", async |connection| statement.fetch_all(connection).await).await
}
