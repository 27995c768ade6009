//! Recovery: polls the gateway for each payment and refund whose outcome is unknown, until the outcome is certain. A
//! charge or refund that the gateway does not have is resent, as long as [`NextStep`] allows it.
//!
//! Any number of replicas may run recovery. A lease, taken by a committed update, keeps two replicas from polling for
//! the same payment or refund at the same time. The lease only distributes the work: even without it, the gateway's
//! idempotency key allows one charge or refund, and the [conditions of a settlement](super::settlement) allow one
//! settlement.
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
        FailureReason, Mismatch, NextStep, PaymentStatus, RefundStatus, Settlement, check_charge,
        check_refund,
    },
    store::{
        self,
        payments::{self, OpenPayment},
        refunds::{self, RefundToSend},
    },
};

/// Maximum number of payments, and also of refunds, that one replica leases in one run. The replica polls for all of
/// them concurrently, and each poll has a timeout that is shorter than the lease.
const BATCH: i64 = 16;

/// Maximum pause between two polls for a payment or refund, also while it needs review. A longer recovery interval
/// takes precedence. With this pause, recovery usually settles a payment within a minute after an outage of the
/// gateway.
const MAX_PAUSE: Duration = Duration::from_secs(20);

/// The result of polling for one payment or refund.
enum PollResult {
    /// The payment or refund is settled.
    Settled,
    /// The outcome is still unknown.
    Unknown,
    /// The gateway's response cannot settle the payment or refund, for example because the amounts differ. A
    /// discrepancy is recorded, and an operator must decide.
    NeedsReview,
}

/// Runs recovery once: polls for due payments and refunds, sends the discrepancy alerts that no receiver has accepted
/// yet, and updates the gauges.
///
/// # Errors
/// If a statement that leases or counts records fails. A failed poll is not an error, because a later run repeats it.
pub async fn recover(payments: Payments) -> Result<Progress, sqlx::Error> {
    let database = &payments.0.database;
    let lease = payments.0.lease;
    // The polls start when both statements have returned. The statements run concurrently, so that less time of the
    // leases has passed when the polls start.
    let (due, due_refunds) =
        tokio::try_join!(payments::lease(database, lease, BATCH), refunds::lease(database, lease, BATCH))?;
    let is_full = [due.len(), due_refunds.len()]
        .iter()
        .any(|count| i64::try_from(*count).is_ok_and(|count| count == BATCH));
    let mut polls = JoinSet::new();
    for payment in due {
        let context = context_of(&payment.correlation_id);
        polls.spawn(context.scope(payments.clone().recover_payment(payment)));
    }
    for refund in due_refunds {
        let context = context_of(&refund.correlation_id);
        polls.spawn(context.scope(payments.clone().recover_refund(refund)));
    }
    payments.alert_discrepancies();
    while let Some(polled) = polls.join_next().await {
        if let Err(panic) = polled {
            // The panic's own log line has the correlation id of the payment or refund.
            tracing::error!(
                error = &panic as &dyn std::error::Error,
                "recovery of a payment or refund panicked"
            );
        }
    }
    let unsettled = store::unsettled(database).await?;
    PAYMENTS_PROCESSING.set(unsettled.count);
    PAYMENTS_PARKED.set(unsettled.needs_review);
    DISCREPANCIES_OPEN.set(unsettled.discrepancies);
    let age = unsettled.oldest.map_or(0, |oldest| (chrono::Utc::now() - oldest).num_seconds().max(0));
    OLDEST_PROCESSING.set(age);
    Ok(if is_full { Progress::More } else { Progress::Idle })
}

/// Returns a context with the correlation id of the request that began the payment or refund.
pub(super) fn context_of(correlation_id: &str) -> Context {
    Context::for_work(CorrelationId::parse(correlation_id).unwrap_or_else(CorrelationId::generate))
}

impl Payments {
    async fn recover_payment(self, payment: OpenPayment) {
        let result = self.poll_payment(&payment).await;
        let Some(needs_review) =
            self.evaluate_poll("payments", payment.id, payment.age, payment.needs_review, result).await
        else {
            return;
        };
        let pause = pause_at(payment.age, self.0.recovery_interval);
        if let Err(error) = payments::release(&self.0.database, payment.id, pause, needs_review).await {
            // The next poll is then due when the lease expires.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, payment_id = %payment.id, "failed to release a lease");
        }
    }

    /// Evaluates the result of a poll: returns whether to mark the payment or refund for review, or `None` if it is
    /// settled. Records a discrepancy if the outcome has been unknown for `PAYMENT_PARK_AFTER_SECONDS` and the payment
    /// or refund is not marked yet.
    ///
    /// A failed poll counts as an unknown outcome. Otherwise a permanent error would prevent the review of the payment
    /// or refund.
    async fn evaluate_poll(
        &self,
        resource: &'static str,
        id: Uuid,
        age: Duration,
        needs_review: bool,
        result: Result<PollResult, PaymentError>,
    ) -> Option<bool> {
        match result {
            Ok(PollResult::Settled) => return None,
            Ok(PollResult::NeedsReview) => return Some(true),
            Ok(PollResult::Unknown) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(resource, %id, error, "failed to recover a payment or refund; the next run retries it");
            }
        }
        if age < self.0.park_after {
            return Some(false);
        }
        if !needs_review {
            let unknown = Discrepancy {
                resource,
                id: Some(id),
                what: OUTCOME_UNKNOWN,
                gateway_says: "",
                we_say: "processing",
            };
            if let Err(error) = self.record_discrepancy(&unknown).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(resource, %id, error, "failed to record a discrepancy; the next run retries it");
                // Without its discrepancy, the payment or refund is not marked for review yet. The next run does both.
                return Some(false);
            }
        }
        Some(true)
    }

    /// Polls for a payment's outcome. If the gateway has no charge, [`NextStep`] decides the next step by the payment's
    /// age.
    #[instrument(name = "recover payment", skip_all, fields(payment_id = %payment.id))]
    async fn poll_payment(&self, payment: &OpenPayment) -> Result<PollResult, PaymentError> {
        traces::link(&Span::current(), payment.trace_parent.as_deref());
        crash::point("recovery.leased");
        let until = Instant::now() + self.0.gateway.timeout();
        let charges = match self.0.gateway.charges(payment.gateway_key, until).await {
            Ok(charges) => charges,
            Err(Unknown::Unreadable(why)) => {
                self.record_discrepancy_of_unsettled("payments", payment.id, "unreadable charge", &why)
                    .await?;
                return Ok(PollResult::NeedsReview);
            }
            Err(_unknown) => return Ok(PollResult::Unknown),
        };
        crash::point("recovery.responded");
        match charges.as_slice() {
            [] => match NextStep::after(payment.age) {
                NextStep::Resend => self.resend(payment, until).await,
                NextStep::Poll => Ok(PollResult::Unknown),
                NextStep::NeverCharged => {
                    let settlement = Settlement::Failed { reason: FailureReason::GatewayTimeout };
                    self.settle(payment.id, payment.order_id, settlement).await?;
                    Ok(PollResult::Settled)
                }
            },
            [charge] => {
                let checked = check_charge(payment.gateway_key, payment.amount, &payment.currency, charge);
                self.settle_charge(payment, charge, checked).await
            }
            several => {
                let count = format!("{} charges", several.len());
                self.record_discrepancy_of_unsettled("payments", payment.id, "several charges", &count)
                    .await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }

    /// Resends a charge that the gateway's list does not have. An earlier call may still be in flight, so the empty
    /// list does not prove that nothing was charged. The response to the same bytes under the same key can settle the
    /// payment.
    async fn resend(&self, payment: &OpenPayment, until: Instant) -> Result<PollResult, PaymentError> {
        let Ok(permit) = self.0.gateway.breaker().acquire_in_background() else {
            return Ok(PollResult::Unknown);
        };
        if payments::count_attempt(&self.0.database, payment.id).await?.is_none() {
            return Ok(PollResult::Settled);
        }
        crash::point("recovery.sending");
        match self.0.gateway.charge(payment.gateway_key, &payment.gateway_request, permit, until).await {
            SendResult::Response(response) => {
                let (charge, checked) = response.check(|charge| {
                    check_charge(payment.gateway_key, payment.amount, &payment.currency, charge)
                });
                self.settle_charge(payment, &charge, checked).await
            }
            SendResult::Rejected(status) => {
                // The rejection settles the payment only if no other attempt can have reached the gateway.
                tracing::warn!(%status, payment_id = %payment.id, "the gateway rejected a resent charge");
                let settled = self.settle(payment.id, payment.order_id, Settlement::Rejected).await?;
                Ok(if settled.status == PaymentStatus::Processing {
                    PollResult::Unknown
                } else {
                    PollResult::Settled
                })
            }
            SendResult::Conflict => {
                self.record_discrepancy_of_unsettled("payments", payment.id, "idempotency conflict", "409")
                    .await?;
                Ok(PollResult::Unknown)
            }
            SendResult::Unknown(Unknown::Unreadable(why)) => {
                self.record_discrepancy_of_unsettled("payments", payment.id, "unreadable charge", &why)
                    .await?;
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
        checked: Result<Settlement, Mismatch>,
    ) -> Result<PollResult, PaymentError> {
        match checked {
            Ok(settlement) => {
                let settled = self.settle(payment.id, payment.order_id, settlement).await?;
                // If the payment is still `processing`, its charge has settled another payment.
                let rejected = settled.status == PaymentStatus::Processing;
                Ok(if rejected { PollResult::NeedsReview } else { PollResult::Settled })
            }
            Err(Mismatch(what)) => {
                self.record_discrepancy_of_unsettled("payments", payment.id, what, &format!("{charge:?}"))
                    .await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }

    async fn recover_refund(self, refund: RefundToSend) {
        let result = self.poll_refund(&refund).await;
        let Some(needs_review) =
            self.evaluate_poll("refunds", refund.id, refund.age, refund.needs_review, result).await
        else {
            return;
        };
        let pause = pause_at(refund.age, self.0.recovery_interval);
        if let Err(error) = refunds::release(&self.0.database, refund.id, pause, needs_review).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, refund_id = %refund.id, "failed to release a lease");
        }
    }

    /// Polls for a refund's outcome. If the gateway has no refund, recovery resends the request until shortly before
    /// the gateway deletes the idempotency key. An empty list proves after 25 hours that no charge was made, but it
    /// never proves that no money was refunded. Recovery therefore keeps polling until the refund has an outcome.
    #[instrument(name = "recover refund", skip_all, fields(refund_id = %refund.id))]
    async fn poll_refund(&self, refund: &RefundToSend) -> Result<PollResult, PaymentError> {
        traces::link(&Span::current(), refund.trace_parent.as_deref());
        let until = Instant::now() + self.0.gateway.timeout();
        let reported = match self.0.gateway.refunds(refund.gateway_key, until).await {
            Ok(reported) => reported,
            Err(Unknown::Unreadable(why)) => {
                self.record_discrepancy_of_unsettled("refunds", refund.id, "unreadable refund", &why).await?;
                return Ok(PollResult::NeedsReview);
            }
            Err(_unknown) => return Ok(PollResult::Unknown),
        };
        match reported.as_slice() {
            [] if NextStep::after(refund.age) == NextStep::Resend => self.resend_refund(refund, until).await,
            [] => Ok(PollResult::Unknown),
            [found] => self.settle_found_refund(refund, found).await,
            several => {
                let count = format!("{} refunds", several.len());
                self.record_discrepancy_of_unsettled("refunds", refund.id, "several refunds", &count).await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }

    async fn resend_refund(&self, refund: &RefundToSend, until: Instant) -> Result<PollResult, PaymentError> {
        let Ok(permit) = self.0.gateway.breaker().acquire_in_background() else {
            return Ok(PollResult::Unknown);
        };
        if refunds::count_attempt(&self.0.database, refund.id).await?.is_none() {
            return Ok(PollResult::Settled);
        }
        let (key, charge_id) = (refund.gateway_key, &refund.charge_id);
        match self.0.gateway.refund(charge_id, key, &refund.gateway_request, permit, until).await {
            SendResult::Response(response) => {
                let (found, _) = response.check(|found| check_refund(key, refund.amount, charge_id, found));
                self.settle_found_refund(refund, &found).await
            }
            SendResult::Rejected(status) => {
                tracing::warn!(%status, refund_id = %refund.id, "the gateway rejected a resent refund");
                self.record_discrepancy_of_unsettled("refunds", refund.id, "refused", status.as_str())
                    .await?;
                Ok(PollResult::NeedsReview)
            }
            SendResult::Conflict => {
                self.record_discrepancy_of_unsettled("refunds", refund.id, "idempotency conflict", "409")
                    .await?;
                Ok(PollResult::Unknown)
            }
            SendResult::Unknown(Unknown::Unreadable(why)) => {
                self.record_discrepancy_of_unsettled("refunds", refund.id, "unreadable refund", &why).await?;
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
        refund: &RefundToSend,
        found: &GatewayRefund,
    ) -> Result<PollResult, PaymentError> {
        match check_refund(refund.gateway_key, refund.amount, &refund.charge_id, found) {
            Ok(settlement) => {
                let settled = self.settle_refund(refund, settlement).await?;
                let rejected = settled.status == RefundStatus::Processing;
                Ok(if rejected { PollResult::NeedsReview } else { PollResult::Settled })
            }
            Err(Mismatch(what)) => {
                self.record_discrepancy_of_unsettled("refunds", refund.id, what, &format!("{found:?}"))
                    .await?;
                Ok(PollResult::NeedsReview)
            }
        }
    }
}

/// Returns the pause before the next poll. The pause grows with the age of the payment or refund, from the recovery
/// interval up to [`MAX_PAUSE`].
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
