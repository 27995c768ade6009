//! Recovery: polls the gateway for every unknown outcome until it is known.
//!
//! Any number of replicas may run recovery. A lease, taken by a committed update, keeps two replicas from polling for
//! the same payment at the same time. The lease only distributes the work. The gateway's idempotency key and the guard
//! of the settlement ensure that a payment is charged once.
use std::time::Duration;

use platform::{
    resilience::crash,
    telemetry::{
        correlation::{Context, CorrelationId},
        traces,
    },
    workers::Progress,
};
use tokio::{task::JoinSet, time::Instant};
use tracing::{Span, instrument};
use uuid::Uuid;

use super::{
    Payments,
    discrepancies::{Discrepancy, OUTCOME_UNKNOWN},
    errors::PaymentError,
    gateway::{Charge, GatewayRefund, SendResult, Unknown},
    metrics::{DISCREPANCIES_OPEN, OLDEST_PROCESSING, PAYMENTS_PARKED, PAYMENTS_PROCESSING},
    model::{
        FailureReason, Mismatch, NoCharge, PaymentStatus, RefundStatus, Settlement, judge_charge,
        judge_refund,
    },
    store::{
        self,
        payments::{self, OpenPayment},
        refunds::{self, OpenRefund},
    },
};

/// Maximum number of payments, and also of refunds, that one replica leases at once. Each call has a timeout, so that
/// all calls end before their lease does.
const BATCH: i64 = 16;

/// The longest pause between two polls for a payment, with or without a need for review, unless the recovery interval is longer. Once the
/// gateway works again, every unknown payment should be settled within a minute.
const MAX_PAUSE: Duration = Duration::from_secs(20);

/// Result of polling for one payment or refund.
enum PollResult {
    /// The payment or refund is settled.
    Settled,
    /// The outcome is still unknown.
    Unknown,
    /// The gateway's record contradicts the stored one: only an operator can decide.
    NeedsReview,
}

/// Runs recovery once: polls for due payments and refunds, sends alerts that no receiver has accepted, refreshes
/// gauges.
///
/// # Errors
/// If a statement of the run itself fails. Failed polls are not errors, because a later run repeats them.
pub async fn recover(payments: Payments) -> Result<Progress, sqlx::Error> {
    let database = &payments.0.database;
    let lease = payments.0.lease;
    // Concurrently, so that neither lease loses time while the other is awaited.
    let (due, due_refunds) =
        tokio::try_join!(payments::lease(database, lease, BATCH), refunds::lease(database, lease, BATCH))?;
    let full = [due.len(), due_refunds.len()]
        .iter()
        .any(|count| i64::try_from(*count).is_ok_and(|count| count == BATCH));
    let mut polling = JoinSet::new();
    for payment in due {
        let context = context_of(&payment.correlation_id);
        polling.spawn(context.scope(payments.clone().recover_payment(payment)));
    }
    for refund in due_refunds {
        let context = context_of(&refund.correlation_id);
        polling.spawn(context.scope(payments.clone().recover_refund(refund)));
    }
    payments.alert_discrepancies();
    while let Some(polled) = polling.join_next().await {
        if let Err(died) = polled {
            // The panic's own log line has the correlation id of the payment.
            tracing::error!(
                error = &died as &dyn std::error::Error,
                "recovery of a payment or refund panicked"
            );
        }
    }
    let unsettled = store::unsettled(database).await?;
    PAYMENTS_PROCESSING.set(unsettled.count);
    PAYMENTS_PARKED.set(unsettled.parked);
    DISCREPANCIES_OPEN.set(unsettled.discrepancies);
    let age = unsettled.oldest.map_or(0, |oldest| (chrono::Utc::now() - oldest).num_seconds().max(0));
    OLDEST_PROCESSING.set(age);
    Ok(if full { Progress::More } else { Progress::Idle })
}

/// Returns the context of the request that began the payment or refund, with its correlation id.
pub(super) fn context_of(correlation_id: &str) -> Context {
    Context::for_work(CorrelationId::parse(correlation_id).unwrap_or_else(CorrelationId::generate))
}

impl Payments {
    async fn recover_payment(self, payment: OpenPayment) {
        let result = self.poll_payment(&payment).await;
        let Some(park) = self.needs_review("payments", payment.id, payment.age, payment.parked, result).await
        else {
            return;
        };
        let pause = pause_at(payment.age, self.0.recovery_interval);
        if let Err(error) = payments::release(&self.0.database, payment.id, pause, park).await {
            // The lease expires by itself.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, payment_id = %payment.id, "failed to release a lease");
        }
    }

    /// Returns whether a payment or refund needs review, or `None` if it is settled.
    ///
    /// A failed poll counts as unknown, so that a permanent error cannot keep the record from being marked for review.
    async fn needs_review(
        &self,
        resource: &'static str,
        id: Uuid,
        age: Duration,
        parked: bool,
        result: Result<PollResult, PaymentError>,
    ) -> Option<bool> {
        match result {
            Ok(PollResult::Settled) => return None,
            Ok(PollResult::NeedsReview) => return Some(true),
            Ok(PollResult::Unknown) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(resource, %id, error, "recovery failed; the next run retries it");
            }
        }
        if age < self.0.park_after {
            return Some(false);
        }
        if !parked {
            let unknown = Discrepancy {
                resource,
                id: Some(id),
                what: OUTCOME_UNKNOWN,
                gateway_says: "",
                we_say: "processing",
            };
            if let Err(error) = self.discrepancy(&unknown).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(resource, %id, error, "failed to record a discrepancy; the next run retries it");
                // That run also marks the payment or refund for review.
                return Some(false);
            }
        }
        Some(true)
    }

    /// Polls for a payment's outcome. If the gateway has no charge and the key is still valid, resends the charge.
    #[instrument(name = "recover payment", skip_all, fields(payment_id = %payment.id))]
    async fn poll_payment(&self, payment: &OpenPayment) -> Result<PollResult, PaymentError> {
        traces::link(&Span::current(), payment.trace_parent.as_deref());
        crash::point("recovery.leased");
        let until = Instant::now() + self.0.gateway.timeout();
        let charges = match self.0.gateway.charges(payment.gateway_key, until).await {
            Ok(charges) => charges,
            Err(Unknown::Unreadable(why)) => {
                self.mismatch("payments", payment.id, "unreadable charge", &why).await?;
                return Ok(PollResult::NeedsReview);
            }
            Err(_unknown) => return Ok(PollResult::Unknown),
        };
        crash::point("recovery.answered");
        match charges.as_slice() {
            [] => match NoCharge::after(payment.age) {
                NoCharge::Resend => self.resend(payment, until).await,
                NoCharge::Poll => Ok(PollResult::Unknown),
                NoCharge::NeverCharged => {
                    let settlement = Settlement::Failed { reason: FailureReason::GatewayTimeout };
                    self.settle(payment.id, payment.order_id, settlement).await?;
                    Ok(PollResult::Settled)
                }
            },
            [charge] => {
                let judged = judge_charge(payment.gateway_key, payment.amount, &payment.currency, charge);
                self.settle_charge(payment, charge, judged).await
            }
            several => {
                let found = format!("{} charges", several.len());
                self.mismatch("payments", payment.id, "several charges", &found).await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }

    /// Resends the charge. The gateway has no charge, but a first call may still be in flight. Only the response to the
    /// same charge under the same key is certain.
    async fn resend(&self, payment: &OpenPayment, until: Instant) -> Result<PollResult, PaymentError> {
        let Ok(permit) = self.0.gateway.breaker().acquire_in_background() else {
            return Ok(PollResult::Unknown);
        };
        if payments::count_attempt(&self.0.database, payment.id).await?.is_none() {
            return Ok(PollResult::Settled);
        }
        crash::point("recovery.sending");
        match self.0.gateway.charge(payment.gateway_key, &payment.gateway_request, permit, until).await {
            SendResult::Made(response) => {
                let (charge, judged) = response.judge(|charge| {
                    judge_charge(payment.gateway_key, payment.amount, &payment.currency, charge)
                });
                self.settle_charge(payment, &charge, judged).await
            }
            SendResult::Rejected(status) => {
                // The settling statement checks that no earlier attempt may have reached the gateway.
                tracing::warn!(%status, payment_id = %payment.id, "the gateway rejected a resent charge");
                let settled = self.settle(payment.id, payment.order_id, Settlement::Rejected).await?;
                Ok(if settled.status == PaymentStatus::Processing {
                    PollResult::Unknown
                } else {
                    PollResult::Settled
                })
            }
            SendResult::Conflict => {
                self.mismatch("payments", payment.id, "idempotency conflict", "409").await?;
                Ok(PollResult::Unknown)
            }
            SendResult::Unknown(Unknown::Unreadable(why)) => {
                self.mismatch("payments", payment.id, "unreadable charge", &why).await?;
                Ok(PollResult::Unknown)
            }
            SendResult::Unknown(unknown) => {
                if unknown.was_not_sent() {
                    payments::uncount_attempt(&self.0.database, payment.id).await?;
                }
                Ok(PollResult::Unknown)
            }
        }
    }

    async fn settle_charge(
        &self,
        payment: &OpenPayment,
        charge: &Charge,
        judged: Result<Settlement, Mismatch>,
    ) -> Result<PollResult, PaymentError> {
        match judged {
            Ok(settlement) => {
                let settled = self.settle(payment.id, payment.order_id, settlement).await?;
                // A charge that has settled another payment cannot settle a second one.
                let rejected = settled.status == PaymentStatus::Processing;
                Ok(if rejected { PollResult::NeedsReview } else { PollResult::Settled })
            }
            Err(Mismatch(what)) => {
                self.mismatch("payments", payment.id, what, &format!("{charge:?}")).await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }

    async fn recover_refund(self, refund: OpenRefund) {
        let result = self.poll_refund(&refund).await;
        let Some(park) = self.needs_review("refunds", refund.id, refund.age, refund.parked, result).await
        else {
            return;
        };
        let pause = pause_at(refund.age, self.0.recovery_interval);
        if let Err(error) = refunds::release(&self.0.database, refund.id, pause, park).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, refund_id = %refund.id, "failed to release a lease");
        }
    }

    /// Polls for a refund's outcome. If the gateway has no refund and the key is still valid, resends the refund. An
    /// empty list is never proof.
    #[instrument(name = "recover refund", skip_all, fields(refund_id = %refund.id))]
    async fn poll_refund(&self, refund: &OpenRefund) -> Result<PollResult, PaymentError> {
        traces::link(&Span::current(), refund.trace_parent.as_deref());
        let until = Instant::now() + self.0.gateway.timeout();
        let refunds = match self.0.gateway.refunds(refund.gateway_key, until).await {
            Ok(refunds) => refunds,
            Err(Unknown::Unreadable(why)) => {
                self.mismatch("refunds", refund.id, "unreadable refund", &why).await?;
                return Ok(PollResult::NeedsReview);
            }
            Err(_unknown) => return Ok(PollResult::Unknown),
        };
        match refunds.as_slice() {
            [] if NoCharge::after(refund.age) == NoCharge::Resend => self.resend_refund(refund, until).await,
            [] => Ok(PollResult::Unknown),
            [found] => self.settle_found_refund(refund, found).await,
            several => {
                let count = format!("{} refunds", several.len());
                self.mismatch("refunds", refund.id, "several refunds", &count).await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }

    async fn resend_refund(&self, refund: &OpenRefund, until: Instant) -> Result<PollResult, PaymentError> {
        let Ok(permit) = self.0.gateway.breaker().acquire_in_background() else {
            return Ok(PollResult::Unknown);
        };
        if refunds::count_attempt(&self.0.database, refund.id).await?.is_none() {
            return Ok(PollResult::Settled);
        }
        let (key, charge_id) = (refund.gateway_key, &refund.charge_id);
        match self.0.gateway.refund(charge_id, key, &refund.gateway_request, permit, until).await {
            SendResult::Made(response) => {
                let (found, _) = response.judge(|found| judge_refund(key, refund.amount, charge_id, found));
                self.settle_found_refund(refund, &found).await
            }
            SendResult::Rejected(status) => {
                self.mismatch("refunds", refund.id, "refused", status.as_str()).await?;
                Ok(PollResult::NeedsReview)
            }
            SendResult::Conflict => {
                self.mismatch("refunds", refund.id, "idempotency conflict", "409").await?;
                Ok(PollResult::Unknown)
            }
            SendResult::Unknown(Unknown::Unreadable(why)) => {
                self.mismatch("refunds", refund.id, "unreadable refund", &why).await?;
                Ok(PollResult::Unknown)
            }
            SendResult::Unknown(unknown) => {
                if unknown.was_not_sent() {
                    refunds::uncount_attempt(&self.0.database, refund.id).await?;
                }
                Ok(PollResult::Unknown)
            }
        }
    }

    async fn settle_found_refund(
        &self,
        refund: &OpenRefund,
        found: &GatewayRefund,
    ) -> Result<PollResult, PaymentError> {
        match judge_refund(refund.gateway_key, refund.amount, &refund.charge_id, found) {
            Ok(settlement) => {
                let settled = self.settle_refund(refund, settlement).await?;
                let rejected = settled.status == RefundStatus::Processing;
                Ok(if rejected { PollResult::NeedsReview } else { PollResult::Settled })
            }
            Err(Mismatch(what)) => {
                self.mismatch("refunds", refund.id, what, &format!("{found:?}")).await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }
}

/// Returns the pause before the next poll. It grows with the age, from the interval up to [`MAX_PAUSE`].
fn pause_at(age: Duration, interval: Duration) -> Duration {
    (age / 4).clamp(interval, MAX_PAUSE.max(interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_between_two_polls_grows_up_to_a_maximum() {
        let pause =
            |age, interval| pause_at(Duration::from_secs(age), Duration::from_secs(interval)).as_secs();
        assert_eq!(pause(0, 5), 5);
        assert_eq!(pause(20, 5), 5);
        assert_eq!(pause(48, 5), 12);
        assert_eq!(pause(80, 5), 20);
        assert_eq!(pause(82_800, 5), 20);
        assert_eq!(pause(82_800, 60), 60);
        assert_eq!(pause(0, 60), 60);
    }
}
