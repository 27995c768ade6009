//! Settlement: the only code that changes the status `processing` of a payment or refund.
//!
//! The request that began the payment or refund, recovery, reconciliation, webhooks and operators all call [`settle`]
//! or [`settle_refund`] within a transaction.
//!
//! # Conditions of a settlement
//!
//! The settling statement checks these conditions in its `where` clause, because a check before the statement could be
//! outdated. If a condition does not hold, the statement changes nothing.
//!
//! - The record is `processing`. So one caller settles the record, and the others read the result. A different later
//!   outcome is recorded as a discrepancy.
//! - The order of the payment or refund exists, and the statement has locked its row.
//! - The charge or refund of the gateway has settled no other record.
//! - A rejection (4xx) settles a payment only if the rejected attempt is the only one that may have reached the gateway
//!   (`attempts = 1`). An earlier attempt without a response may have charged, and the rejection of a later attempt
//!   does not prove that the earlier attempt charged nothing.
//!
//! The same transaction stores the response under the idempotency key, and the audit event.
use platform::{
    audit::{Event, PendingEvent},
    http::idempotency,
    resilience::crash,
};
use sqlx::PgConnection;
use tracing::instrument;
use uuid::Uuid;

use super::{
    Payments,
    discrepancies::{self, Discrepancy, SECOND_CHARGE, SECOND_REFUND},
    errors::PaymentError,
    metrics::{PAYMENT_FAILURES, PAYMENTS},
    model::{Payment, Refund, RefundSettlement, RefundStatus, Settlement},
    responses,
    store::{
        By,
        payments::{self, PaymentRecord},
        refunds::{self, RefundRecord, RefundToSend},
        settling,
    },
};

/// The result of a call that settles. After the commit, [`SettleResult::committed`] counts the settlement of a payment,
/// logs the audit event, and sends the alert of a discrepancy.
#[must_use = "call committed() after the commit"]
pub(super) struct SettleResult<T> {
    /// The payment or refund in its current state. Its status can still be `processing` if a condition of the
    /// settlement did not hold.
    record: T,
    effect: SettleEffect,
}

enum SettleEffect {
    /// This call settled the payment or refund.
    Now(PendingEvent),
    /// This call changed nothing: a rejection did not prove the outcome, an earlier call settled the record with the
    /// same outcome, or the discrepancy was recorded before.
    Unchanged,
    /// This call changed nothing and recorded a discrepancy.
    Discrepancy(PendingEvent),
}

impl<T> SettleResult<T> {
    fn now(record: T, recorded: PendingEvent) -> Self {
        Self { record, effect: SettleEffect::Now(recorded) }
    }

    fn unchanged(record: T, discrepancy: Option<PendingEvent>) -> Self {
        Self { record, effect: discrepancy.map_or(SettleEffect::Unchanged, SettleEffect::Discrepancy) }
    }

    /// Logs the audit event, and sends the alert of a discrepancy. Returns the current state, and whether this call
    /// settled the payment or refund.
    fn log_and_alert(self, payments: &Payments) -> (T, bool) {
        match self.effect {
            SettleEffect::Unchanged => (self.record, false),
            SettleEffect::Now(recorded) => {
                recorded.committed();
                (self.record, true)
            }
            SettleEffect::Discrepancy(recorded) => {
                recorded.committed();
                payments.alert_discrepancies();
                (self.record, false)
            }
        }
    }

    /// Logs the audit event, and must be called after the commit. The command `payments end` calls this function
    /// instead of `committed`, because the command exports no metrics and sends no alerts.
    pub(super) fn committed_by_command(self) -> (T, bool) {
        let Self { record, effect } = self;
        let settled_now = matches!(effect, SettleEffect::Now(_));
        if let SettleEffect::Now(recorded) | SettleEffect::Discrepancy(recorded) = effect {
            recorded.committed();
        }
        (record, settled_now)
    }
}

impl SettleResult<Payment> {
    /// Counts and logs the settlement, or logs a discrepancy and sends its alert. Must be called after the commit.
    /// Returns the payment's current state.
    pub(super) fn committed(self, payments: &Payments) -> Payment {
        let (payment, settled_now) = self.log_and_alert(payments);
        if settled_now {
            PAYMENTS.with_label_values(&[payment.status.as_str()]).inc();
            if let Some(reason) = &payment.failure_reason {
                PAYMENT_FAILURES.with_label_values(&[reason]).inc();
            }
        }
        payment
    }
}

impl SettleResult<Refund> {
    /// Logs the settlement, or logs a discrepancy and sends its alert. Must be called after the commit. Returns the
    /// refund's current state.
    pub(super) fn committed(self, payments: &Payments) -> Refund {
        self.log_and_alert(payments).0
    }
}

/// Settles a payment within a transaction, if the conditions hold. A successful payment makes its order paid. A
/// declined or failed one lets its order be paid again. `operator_reason` is the reason of an operator who ends the
/// payment.
///
/// # Errors
/// If a statement fails, the payment or its order is missing, or a concurrent transaction settled another payment by
/// the same charge. Nothing is settled then.
#[instrument(name = "settle payment", skip_all, fields(%payment_id, outcome = settlement.status().as_str()))]
pub(super) async fn settle(
    connection: &mut PgConnection,
    payment_id: Uuid,
    order_id: Uuid,
    settlement: &Settlement,
    operator_reason: Option<&str>,
) -> Result<SettleResult<Payment>, PaymentError> {
    let settled = settling::settle_payment(&mut *connection, payment_id, order_id, settlement).await?;
    let Some(payment) = settled else {
        return not_settled(connection, payment_id, settlement).await;
    };
    let event = Event::change("payments", "settle")
        .records([payment_id])
        .with("order_id", order_id.to_string())
        .with("status", payment.status.as_str())
        .with("amount", payment.amount)
        .with("decided_by_operator", operator_reason);
    let response = responses::of_payment(&payment)?;
    idempotency::complete(connection, payment_id, &response, event.to_json()).await?;
    Ok(SettleResult::now(payment, PendingEvent::of(event)))
}

/// Returns the payment for which a condition of the settlement did not hold. Records a discrepancy if the payment has
/// another outcome or another charge, or if the settlement's charge has settled another payment.
async fn not_settled(
    connection: &mut PgConnection,
    payment_id: Uuid,
    settlement: &Settlement,
) -> Result<SettleResult<Payment>, PaymentError> {
    let found =
        payments::find_within(&mut *connection, By::Id(payment_id)).await?.ok_or(PaymentError::NotFound)?;
    let difference = match compare(settlement, &found) {
        Comparison::Agrees => None,
        Comparison::IsOpen { charge_id: None } => return Err(PaymentError::OrderMissing),
        Comparison::IsOpen { charge_id: Some(charge_id) } => {
            if !payments::has_settled_another_payment(&mut *connection, payment_id, charge_id).await? {
                return Err(PaymentError::SettledConcurrently);
            }
            Some(("charge of another payment", charge_id))
        }
        Comparison::Differs { what, gateway_says } => Some((what, gateway_says)),
    };
    let recorded = match difference {
        None => None,
        Some((what, gateway_says)) => {
            let (id, we_say) = (Some(payment_id), found.payment.status.as_str());
            let difference = Discrepancy { resource: "payments", id, what, gateway_says, we_say };
            discrepancies::record(connection, &difference).await?
        }
    };
    Ok(SettleResult::unchanged(found.payment, recorded))
}

/// The relation between the payment's state and a settlement that changed nothing.
#[derive(Debug, PartialEq, Eq)]
enum Comparison<'a> {
    /// The payment has the settlement's outcome, or the settlement does not prove an outcome.
    Agrees,
    /// The payment has no outcome, so a condition of the settlement did not hold. If the settlement has a charge, this
    /// charge may have settled another payment.
    IsOpen { charge_id: Option<&'a str> },
    /// The payment has another outcome, or the same outcome by another charge.
    Differs { what: &'static str, gateway_says: &'a str },
}

fn compare<'a>(settlement: &'a Settlement, found: &PaymentRecord) -> Comparison<'a> {
    // Another attempt may have charged, so the rejection of this attempt does not prove the outcome.
    if *settlement == Settlement::Rejected && found.attempts != 1 {
        return Comparison::Agrees;
    }
    let (status, charge_id) = (found.payment.status, settlement.charge_id());
    if status.may_become(settlement.status()) {
        return Comparison::IsOpen { charge_id };
    }
    let same_result = match settlement {
        Settlement::Succeeded { .. } => status.took_money(),
        Settlement::Declined { .. } | Settlement::Rejected | Settlement::Failed { .. } => {
            status == settlement.status()
        }
    };
    match charge_id {
        _ if !same_result => {
            Comparison::Differs { what: "contradiction", gateway_says: settlement.status().as_str() }
        }
        Some(other) if charge_id != found.charge_id.as_deref() => {
            Comparison::Differs { what: SECOND_CHARGE, gateway_says: other }
        }
        _ => Comparison::Agrees,
    }
}

/// Settles a refund within a transaction, if the conditions hold. A successful refund updates the refunded amount and
/// the status of its payment, and the status of the order. A failed one only releases the amount that it reserved in
/// the payment's row.
///
/// # Errors
/// If a statement fails, the refund is missing, or a concurrent transaction settled another refund by the same refund
/// of the gateway. Nothing is settled then.
#[instrument(name = "settle refund", skip_all, fields(refund_id = %open.id, succeeded = settlement.succeeded))]
pub(super) async fn settle_refund(
    connection: &mut PgConnection,
    open: &RefundToSend,
    settlement: &RefundSettlement,
    operator_reason: Option<&str>,
) -> Result<SettleResult<Refund>, PaymentError> {
    let settled = settling::settle_refund(&mut *connection, open, settlement).await?;
    let Some(refund) = settled else {
        return refund_not_settled(connection, open, settlement).await;
    };
    let event = Event::change("refunds", "settle")
        .records([open.id])
        .with("payment_id", open.payment_id.to_string())
        .with("status", refund.status.as_str())
        .with("amount", refund.amount)
        .with("decided_by_operator", operator_reason);
    let response = responses::of_refund(&refund)?;
    idempotency::complete(connection, open.id, &response, event.to_json()).await?;
    Ok(SettleResult::now(refund, PendingEvent::of(event)))
}

/// Mirrors [`not_settled`] for refunds. A refund that is still `processing` was not settled because the gateway's
/// refund has settled another record.
async fn refund_not_settled(
    connection: &mut PgConnection,
    open: &RefundToSend,
    settlement: &RefundSettlement,
) -> Result<SettleResult<Refund>, PaymentError> {
    let found =
        refunds::find_within(&mut *connection, By::Id(open.id)).await?.ok_or(PaymentError::NotFound)?;
    let RefundRecord { refund, gateway_refund_id, .. } = found;
    let difference = refund_difference(settlement, refund.status, gateway_refund_id.as_deref());
    let Some((what, gateway_says)) = difference else { return Ok(SettleResult::unchanged(refund, None)) };
    let we_say = refund.status.as_str();
    let difference = Discrepancy { resource: "refunds", id: Some(open.id), what, gateway_says, we_say };
    let recorded = discrepancies::record(connection, &difference).await?;
    Ok(SettleResult::unchanged(refund, recorded))
}

/// Returns the kind of the discrepancy between the refund and a settlement that changed nothing, and the gateway's
/// value. Returns `None` if the refund has the settlement's outcome, and the gateway's ids of the refund do not differ.
fn refund_difference<'a>(
    settlement: &'a RefundSettlement,
    status: RefundStatus,
    gateway_refund_id: Option<&str>,
) -> Option<(&'static str, &'a str)> {
    let reported = settlement.gateway_refund_id.as_deref();
    if status == RefundStatus::Processing {
        return Some(("refund of another record", reported.unwrap_or_default()));
    }
    if status != settlement.status() {
        return Some(("contradiction", settlement.status().as_str()));
    }
    // An operator who ends a refund records no id of a refund at the gateway.
    let (reported, known) = reported.zip(gateway_refund_id)?;
    (reported != known).then_some((SECOND_REFUND, reported))
}

impl Payments {
    /// Settles a payment in a separate transaction. Returns the payment's current state, which can still be
    /// `processing` if a condition of the settlement did not hold.
    pub(super) async fn settle(
        &self,
        payment_id: Uuid,
        order_id: Uuid,
        settlement: Settlement,
    ) -> Result<Payment, PaymentError> {
        let mut transaction = self.0.database.begin().await?;
        let settled = settle(&mut transaction, payment_id, order_id, &settlement, None).await?;
        crash::point("payment.settling");
        transaction.commit().await?;
        crash::point("payment.settled");
        Ok(settled.committed(self))
    }

    /// Settles a refund in a separate transaction. Returns the refund's current state, which can still be `processing`
    /// if a condition of the settlement did not hold.
    pub(super) async fn settle_refund(
        &self,
        open: &RefundToSend,
        settlement: RefundSettlement,
    ) -> Result<Refund, PaymentError> {
        let mut transaction = self.0.database.begin().await?;
        let settled = settle_refund(&mut transaction, open, &settlement, None).await?;
        crash::point("refund.settling");
        transaction.commit().await?;
        crash::point("refund.settled");
        Ok(settled.committed(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::payments::model::{FailureReason, PaymentStatus};

    fn record(status: PaymentStatus, attempts: i32, charge_id: Option<&str>) -> PaymentRecord {
        let charge_id = charge_id.map(ToOwned::to_owned);
        PaymentRecord { charge_id, attempts, ..PaymentRecord::example(status) }
    }

    #[test]
    fn a_second_outcome_is_the_first_one_or_a_discrepancy() {
        use PaymentStatus::{Declined, Failed, PartiallyRefunded, Processing, Refunded, Succeeded};
        let charge = |id: &str| Settlement::Succeeded { charge_id: id.to_owned() };
        let decline =
            |id: &str| Settlement::Declined { charge_id: id.to_owned(), reason: FailureReason::CardExpired };
        let failure = Settlement::Failed { reason: FailureReason::GatewayTimeout };
        let second = |id| Comparison::Differs { what: SECOND_CHARGE, gateway_says: id };
        let contradiction = |status| Comparison::Differs { what: "contradiction", gateway_says: status };
        let open = |charge_id| Comparison::IsOpen { charge_id };
        for (settlement, status, expected) in [
            (charge("ch_1"), Processing, open(Some("ch_1"))),
            (charge("ch_1"), Succeeded, Comparison::Agrees),
            (charge("ch_1"), PartiallyRefunded, Comparison::Agrees),
            (charge("ch_1"), Refunded, Comparison::Agrees),
            (charge("ch_2"), Succeeded, second("ch_2")),
            (charge("ch_2"), Refunded, second("ch_2")),
            (charge("ch_1"), Declined, contradiction("succeeded")),
            (charge("ch_1"), Failed, contradiction("succeeded")),
            (decline("ch_1"), Processing, open(Some("ch_1"))),
            (decline("ch_1"), Declined, Comparison::Agrees),
            (decline("ch_2"), Declined, second("ch_2")),
            (decline("ch_1"), Succeeded, contradiction("declined")),
            (decline("ch_1"), Failed, contradiction("declined")),
            (Settlement::Rejected, Processing, open(None)),
            (Settlement::Rejected, Failed, Comparison::Agrees),
            (Settlement::Rejected, Succeeded, contradiction("failed")),
            (Settlement::Rejected, Declined, contradiction("failed")),
            (failure.clone(), Processing, open(None)),
            (failure.clone(), Failed, Comparison::Agrees),
            (failure, Succeeded, contradiction("failed")),
        ] {
            assert_eq!(compare(&settlement, &record(status, 1, Some("ch_1"))), expected, "{settlement:?}");
        }
        assert_eq!(compare(&charge("ch_1"), &record(Succeeded, 1, None)), second("ch_1"));
    }

    #[test]
    fn a_rejection_is_no_outcome_if_another_attempt_was_sent() {
        use PaymentStatus::{Declined, Processing, Succeeded};
        let rejection = Settlement::Rejected;
        for status in [Processing, Succeeded, Declined] {
            for attempts in [0, 2, 3] {
                assert_eq!(compare(&rejection, &record(status, attempts, None)), Comparison::Agrees);
            }
        }
        let charge = Settlement::Succeeded { charge_id: "ch_1".to_owned() };
        let found = compare(&charge, &record(Processing, 2, None));
        assert_eq!(found, Comparison::IsOpen { charge_id: Some("ch_1") });
    }

    #[test]
    fn a_second_outcome_of_a_refund_is_the_first_or_a_discrepancy() {
        use RefundStatus::{Failed, Processing, Succeeded};
        let difference = |succeeded, reported: Option<&str>, status, known| {
            let gateway_refund_id = reported.map(ToOwned::to_owned);
            let settlement = RefundSettlement { succeeded, gateway_refund_id };
            refund_difference(&settlement, status, known).map(|(what, says)| (what, says.to_owned()))
        };
        let found = |what, says: &str| Some((what, says.to_owned()));
        let (first, second) = (Some("re_1"), Some("re_2"));
        assert_eq!(difference(true, first, Succeeded, first), None);
        assert_eq!(difference(false, first, Failed, first), None);
        assert_eq!(difference(false, first, Failed, None), None);
        assert_eq!(difference(false, None, Failed, first), None);
        assert_eq!(difference(true, second, Succeeded, first), found(SECOND_REFUND, "re_2"));
        assert_eq!(difference(false, first, Succeeded, first), found("contradiction", "failed"));
        assert_eq!(difference(true, first, Failed, None), found("contradiction", "succeeded"));
        assert_eq!(difference(true, first, Processing, None), found("refund of another record", "re_1"));
    }
}
