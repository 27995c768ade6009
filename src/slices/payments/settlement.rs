//! Settlement: the one way by which a payment or a refund leaves `processing`.
//!
//! Whoever learns of an outcome calls [`settle`] or [`settle_refund`] within a transaction: the request that began
//! it, recovery, a webhook. The update is guarded by `status = 'processing'`, so one of them wins, and the rest
//! read what it wrote. A second answer that says otherwise changes nothing; it is recorded, and a person is called.
//!
//! The answer for the idempotency key is stored in the same transaction, by whoever settles.
use axum::http::StatusCode;
use platform::{
    audit::{self, Event, Recorded},
    database::observe,
    http::{
        idempotency::{self, Replayable},
        problem::Problem,
    },
    resilience::crash,
};
use sqlx::PgConnection;
use tracing::instrument;
use uuid::Uuid;

use super::{
    Payments,
    discrepancies::{self, Discrepancy},
    metrics::{PAYMENT_FAILURES, PAYMENTS},
    model::{Payment, PaymentStatus, Refund, RefundSettlement, RefundStatus, Settlement},
    store::{self, OpenRefund},
};

/// What settling came to. What follows from it (counting, mirroring, alerts) is done by [`Settled::committed`],
/// after the commit.
#[must_use = "call committed() after the commit"]
pub(super) struct Settled<T> {
    /// As it stands now.
    subject: T,
    how: How,
}

enum How {
    /// This call settled it.
    Now(Recorded),
    /// Somebody else had settled it: in the same way, or in another one that was told before.
    Elsewhere,
    /// Somebody else had settled it in another way, which nobody had written down yet. Nothing was changed.
    Contradiction(Recorded),
}

impl<T> Settled<T> {
    fn now(subject: T, recorded: Recorded) -> Self {
        Self { subject, how: How::Now(recorded) }
    }

    fn elsewhere(subject: T, contradiction: Option<Recorded>) -> Self {
        Self { subject, how: contradiction.map_or(How::Elsewhere, How::Contradiction) }
    }

    /// What was settled, as it stands; and whether this call did it.
    fn mirror(self, payments: &Payments, resource: &'static str, id: impl Fn(&T) -> Uuid) -> (T, bool) {
        match self.how {
            How::Elsewhere => (self.subject, false),
            How::Now(recorded) => {
                recorded.committed();
                (self.subject, true)
            }
            How::Contradiction(recorded) => {
                recorded.committed();
                payments.alert_discrepancy(resource, id(&self.subject), "contradiction");
                (self.subject, false)
            }
        }
    }
}

impl Settled<Payment> {
    /// To be called after the commit: the payment as it stands.
    pub(super) fn committed(self, payments: &Payments) -> Payment {
        let (payment, settled_now) = self.mirror(payments, "payments", |payment| payment.id);
        if settled_now {
            PAYMENTS.with_label_values(&[payment.status.as_str()]).inc();
            if let Some(reason) = &payment.failure_reason {
                PAYMENT_FAILURES.with_label_values(&[reason]).inc();
            }
        }
        payment
    }
}

impl Settled<Refund> {
    /// To be called after the commit: the refund as it stands.
    pub(super) fn committed(self, payments: &Payments) -> Refund {
        self.mirror(payments, "refunds", |refund| refund.id).0
    }
}

/// Settles a payment of an order, within a transaction.
///
/// # Errors
/// The statements'. Nothing is settled then.
#[instrument(name = "settle payment", skip_all, fields(%payment_id, outcome = settlement.status().as_str()))]
pub(super) async fn settle(
    connection: &mut PgConnection,
    payment_id: Uuid,
    order_id: Uuid,
    settlement: &Settlement,
) -> Result<Settled<Payment>, Problem> {
    let order_status = (settlement.status() == PaymentStatus::Succeeded).then_some("paid");
    let statement = sqlx::query!(
        r#"
        with locked as materialized (
          select lock_order($2) as order_locked
        ), settled as (
          update payments
          set
            status = $3, gateway_charge_id = $4, failure_reason = $5, settled_at = now(), updated_at = now(),
            lease_expires_at = null, parked_at = null
          from locked
          where id = $1 and status = 'processing' and order_locked
          returning id, amount, currency, created_at, updated_at
        )
        select
          amount as "amount!", currency as "currency!", created_at as "created_at!", updated_at as "updated_at!",
          settle_order($2, $6)
        from settled
        "#,
        payment_id,
        order_id,
        settlement.status().as_str(),
        settlement.charge_id(),
        settlement.reason().map(super::model::FailureReason::as_str),
        order_status,
    );
    let Some(row) = observe("payments.settle", statement.fetch_optional(&mut *connection)).await? else {
        return settled_elsewhere(connection, payment_id, settlement).await;
    };
    let payment = Payment {
        id: payment_id,
        order_id,
        status: settlement.status(),
        amount: row.amount,
        currency: row.currency,
        refunded_amount: 0,
        failure_reason: settlement.reason().map(|reason| reason.as_str().to_owned()),
        created_at: row.created_at,
        updated_at: row.updated_at,
    };
    idempotency::complete(connection, payment_id, &Replayable::new(StatusCode::CREATED, &payment)?).await?;
    let event = Event::change("payments", "settle")
        .records([payment_id])
        .with("order_id", order_id.to_string())
        .with("status", payment.status.as_str())
        .with("amount", payment.amount);
    let recorded = audit::record_with(connection, event).await?;
    Ok(Settled::now(payment, recorded))
}

async fn settled_elsewhere(
    connection: &mut PgConnection,
    payment_id: Uuid,
    settlement: &Settlement,
) -> Result<Settled<Payment>, Problem> {
    let found = store::find(&mut *connection, payment_id, None).await?.ok_or_else(Problem::not_found)?;
    if found.payment.status.may_become(settlement.status()) {
        // Nobody had settled it: the order's row is gone, which nothing here does.
        return Err(Problem::unavailable(1));
    }
    let agrees = match settlement {
        Settlement::Succeeded { charge_id } => {
            found.payment.status.took_money() && found.charge_id.as_deref() == Some(charge_id)
        }
        Settlement::Declined { charge_id, .. } => {
            found.payment.status == PaymentStatus::Declined && found.charge_id.as_deref() == Some(charge_id)
        }
        Settlement::Failed { .. } => found.payment.status == PaymentStatus::Failed,
    };
    let contradiction = if agrees {
        None
    } else {
        let stands = found.payment.status.as_str();
        let found = Discrepancy {
            resource: "payments",
            id: payment_id,
            what: "contradiction",
            gateway_says: settlement.status().as_str(),
            we_say: stands,
        };
        discrepancies::record(connection, &found).await?
    };
    Ok(Settled::elsewhere(found.payment, contradiction))
}

/// Settles a refund, and with it what its payment and its order say, within a transaction.
///
/// # Errors
/// The statements'. Nothing is settled then.
#[instrument(name = "settle refund", skip_all, fields(refund_id = %open.id, succeeded = settlement.succeeded))]
pub(super) async fn settle_refund(
    connection: &mut PgConnection,
    open: &OpenRefund,
    settlement: &RefundSettlement,
) -> Result<Settled<Refund>, Problem> {
    let status = if settlement.succeeded { RefundStatus::Succeeded } else { RefundStatus::Failed };
    let failure_reason = (!settlement.succeeded).then_some("gateway_refused");
    let statement = sqlx::query!(
        r#"
        with order_locked as materialized (
          select lock_order($3) as done
        ), payment_locked as materialized (
          select payments.id
          from order_locked, payments
          where order_locked.done and payments.id = $2
          for update of payments
        ), settled as (
          update refunds
          set
            status = $4, gateway_refund_id = $5, failure_reason = $6, settled_at = now(), updated_at = now(),
            lease_expires_at = null, parked_at = null
          from payment_locked
          where refunds.id = $1 and refunds.payment_id = payment_locked.id and status = 'processing'
          returning refunds.id, refunds.payment_id, amount, created_at
        ), payment as (
          update payments
          set
            refunded_amount = refunded_amount + case when $7 then settled.amount else 0 end,
            refund_reserved_amount = refund_reserved_amount - case when $7 then 0 else settled.amount end,
            status = case
              when not $7 then status
              when refunded_amount + settled.amount = payments.amount then 'refunded'
              else 'partially_refunded'
            end,
            updated_at = now()
          from settled
          where payments.id = settled.payment_id
          returning case when $7 then status end as order_status
        )
        select
          amount as "amount!", created_at as "created_at!",
          case when order_status is not null then settle_order($3, order_status) end
        from settled, payment
        "#,
        open.id,
        open.payment_id,
        open.order_id,
        status.as_str(),
        settlement.gateway_refund_id,
        failure_reason,
        settlement.succeeded,
    );
    let Some(row) = observe("refunds.settle", statement.fetch_optional(&mut *connection)).await? else {
        let (refund, _) =
            store::find_refund(&mut *connection, open.id).await?.ok_or_else(Problem::not_found)?;
        let contradiction = if refund.status == status {
            None
        } else {
            let found = Discrepancy {
                resource: "refunds",
                id: open.id,
                what: "contradiction",
                gateway_says: status.as_str(),
                we_say: refund.status.as_str(),
            };
            discrepancies::record(connection, &found).await?
        };
        return Ok(Settled::elsewhere(refund, contradiction));
    };
    let refund = Refund {
        id: open.id,
        payment_id: open.payment_id,
        status,
        amount: row.amount,
        currency: open.currency.clone(),
        created_at: row.created_at,
    };
    idempotency::complete(connection, open.id, &Replayable::new(StatusCode::CREATED, &refund)?).await?;
    let event = Event::change("refunds", "settle")
        .records([open.id])
        .with("payment_id", open.payment_id.to_string())
        .with("status", status.as_str())
        .with("amount", refund.amount);
    let recorded = audit::record_with(connection, event).await?;
    Ok(Settled::now(refund, recorded))
}

impl Payments {
    /// Settles a payment in a transaction of its own, and tells how it stands.
    pub(super) async fn settle(
        &self,
        payment_id: Uuid,
        order_id: Uuid,
        settlement: Settlement,
    ) -> Result<Payment, Problem> {
        let mut transaction = self.0.database.begin().await?;
        let settled = settle(&mut transaction, payment_id, order_id, &settlement).await?;
        crash::point("payment.settling");
        transaction.commit().await?;
        crash::point("payment.settled");
        Ok(settled.committed(self))
    }

    /// Settles a refund in a transaction of its own, and tells how it stands.
    pub(super) async fn settle_refund(
        &self,
        open: &OpenRefund,
        settlement: RefundSettlement,
    ) -> Result<Refund, Problem> {
        let mut transaction = self.0.database.begin().await?;
        let settled = settle_refund(&mut transaction, open, &settlement).await?;
        crash::point("refund.settling");
        transaction.commit().await?;
        crash::point("refund.settled");
        Ok(settled.committed(self))
    }
}
