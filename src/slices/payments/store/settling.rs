//! The statements that settle a payment or a refund. Only `settlement.rs` runs these statements, and documents the
//! conditions in their `where` clauses.
use platform::database::{instrument_query, violated_constraint};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    super::{
        errors::PaymentError,
        model::{FailureReason, Payment, PaymentStatus, Refund, RefundSettlement, Settlement},
    },
    refunds::RefundToSend,
};

/// Settles a payment and updates its order: a success makes the order paid, any other outcome lets the order be paid
/// again. Returns `None`, and changes nothing, if a condition of the settlement does not hold.
pub async fn settle_payment(
    connection: &mut PgConnection,
    payment_id: Uuid,
    order_id: Uuid,
    settlement: &Settlement,
) -> Result<Option<Payment>, PaymentError> {
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
          where
            id = $1 and status = 'processing' and order_locked
            and (not $7 or attempts = 1)
            and not exists (
              select from payments as other where other.gateway_charge_id = $4 and other.id <> $1
            )
          returning id, amount, currency, created_at, updated_at
        ), closed as (
          update discrepancies
          set closed_at = now(), closed_reason = 'settled', alert_due_at = null
          from settled
          where record_id = settled.id and what = 'outcome unknown' and closed_at is null
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
        settlement.reason().map(FailureReason::as_str),
        order_status,
        *settlement == Settlement::Rejected,
    );
    let settled = instrument_query("payments.settle", statement.fetch_optional(connection)).await;
    Ok(settled.map_err(settling_error)?.map(|row| Payment {
        id: payment_id,
        order_id,
        status: settlement.status(),
        amount: row.amount,
        currency: row.currency,
        refunded_amount: 0,
        failure_reason: settlement.reason().map(|reason| reason.as_str().to_owned()),
        created_at: row.created_at,
        updated_at: row.updated_at,
    }))
}

/// Settles a refund and updates its payment. A success adds to the refunded amount, and changes the status of the
/// payment and of the order. A failure only releases the reserved amount. Returns `None`, and changes nothing, if a
/// condition of the settlement does not hold.
pub async fn settle_refund(
    connection: &mut PgConnection,
    open: &RefundToSend,
    settlement: &RefundSettlement,
) -> Result<Option<Refund>, PaymentError> {
    let status = settlement.status();
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
          where
            refunds.id = $1 and refunds.payment_id = payment_locked.id and status = 'processing'
            and not exists (
              select from refunds as other where other.gateway_refund_id = $5 and other.id <> $1
            )
          returning refunds.id, refunds.payment_id, amount, created_at
        ), closed as (
          update discrepancies
          set closed_at = now(), closed_reason = 'settled', alert_due_at = null
          from settled
          where record_id = settled.id and what = 'outcome unknown' and closed_at is null
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
    let settled = instrument_query("refunds.settle", statement.fetch_optional(connection)).await;
    Ok(settled.map_err(settling_error)?.map(|row| Refund {
        id: open.id,
        payment_id: open.payment_id,
        status,
        amount: row.amount,
        currency: open.currency.clone(),
        created_at: row.created_at,
    }))
}

/// Converts an error of a settling statement. If a concurrent transaction settled another record by the same charge or
/// refund of the gateway, a unique constraint rejects this statement. A retry finds the other record, and records a
/// discrepancy.
fn settling_error(error: sqlx::Error) -> PaymentError {
    match violated_constraint(&error) {
        Some("a_charge_settles_one_payment" | "a_gateway_refund_settles_one_refund") => {
            PaymentError::SettledConcurrently
        }
        _ => error.into(),
    }
}
