//! Recovery: goes on asking for every outcome that is not known, until it is.
//!
//! Any number of replicas may run it: a lease, taken by a committed update, keeps them from asking for the same
//! payment together. It spreads the work and nothing more; that a payment is charged once rests on the gateway's
//! idempotency key and on the guard of the settlement.
use std::time::Duration;

use platform::{
    alerts::{Alert, Severity},
    http::problem::Problem,
    resilience::crash,
    telemetry::{
        correlation::{Context, CorrelationId},
        traces,
    },
    workers::Progress,
};
use tokio::{task::JoinSet, time::Instant};
use tracing::{Span, instrument};

use super::{
    Payments,
    gateway::{Charge, GatewayRefund, Sent},
    metrics::{OLDEST_PROCESSING, PAYMENTS_PARKED, PAYMENTS_PROCESSING},
    model::{FailureReason, Mismatch, NoCharge, Settlement, judge_charge, judge_refund},
    store::{self, OpenPayment, OpenRefund},
};

/// Asked for at once by one replica. Each call is bounded, so that all of them end before their lease does.
const BATCH: i64 = 16;

/// The longest pause before a payment is asked for again, parked or not: "once the gateway is well, every unknown
/// payment is settled within a minute".
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// One run: asks for whatever is due, and refreshes what the metrics tell of the whole database.
///
/// # Errors
/// The database's. What the gateway does is no error here: it is asked again.
pub async fn recover(payments: Payments) -> Result<Progress, sqlx::Error> {
    let database = &payments.0.database;
    let due = store::lease_payments(database, payments.0.lease, BATCH).await?;
    let due_refunds = store::lease_refunds(database, payments.0.lease, BATCH).await?;
    let full = [due.len(), due_refunds.len()]
        .iter()
        .any(|count| i64::try_from(*count).is_ok_and(|count| count == BATCH));
    let mut asking = JoinSet::new();
    for payment in due {
        let context = context_of(&payment.correlation_id);
        asking.spawn(context.scope(payments.clone().ask_for_payment(payment)));
    }
    for refund in due_refunds {
        let context = context_of(&refund.correlation_id);
        asking.spawn(context.scope(payments.clone().ask_for_refund(refund)));
    }
    while let Some(asked) = asking.join_next().await {
        if let Err(died) = asked {
            tracing::error!(
                error = &died as &dyn std::error::Error,
                "asking for an outcome ended unexpectedly"
            );
        }
    }
    let unsettled = store::unsettled(database).await?;
    PAYMENTS_PROCESSING.set(unsettled.count);
    PAYMENTS_PARKED.set(unsettled.parked);
    let age = unsettled.oldest.map_or(0, |oldest| (chrono::Utc::now() - oldest).num_seconds().max(0));
    OLDEST_PROCESSING.set(age);
    Ok(if full { Progress::More } else { Progress::Idle })
}

/// A recovered payment goes on under the correlation id of the request that began it.
fn context_of(correlation_id: &str) -> Context {
    Context::for_work(CorrelationId::parse(correlation_id).unwrap_or_else(CorrelationId::generate))
}

impl Payments {
    async fn ask_for_payment(self, payment: OpenPayment) {
        match self.learn_payment(&payment).await {
            Ok(true) => {}
            Ok(false) => {
                let park = payment.age >= self.0.park_after;
                if park && !payment.parked {
                    self.alert_parked("payment", payment.id, payment.age);
                }
                let pause = pause_at(payment.age, self.0.recovery_interval);
                if let Err(error) = store::release_payment(&self.0.database, payment.id, pause, park).await {
                    // The lease ends by itself.
                    tracing::warn!(error = &error as &dyn std::error::Error, payment_id = %payment.id, "a lease could not be released");
                }
            }
            Err(problem) => {
                tracing::warn!(payment_id = %payment.id, status = problem.status().as_u16(), "an outcome could not be stored; it is asked for again");
            }
        }
    }

    /// Tries to learn a payment's outcome; whether it is settled now.
    #[instrument(name = "recover payment", skip_all, fields(payment_id = %payment.id))]
    async fn learn_payment(&self, payment: &OpenPayment) -> Result<bool, Problem> {
        traces::link(&Span::current(), payment.trace_parent.as_deref());
        crash::point("recovery.leased");
        let until = Instant::now() + self.0.gateway.timeout();
        let charges = match self.0.gateway.charges(payment.id, until).await {
            Ok(charges) => charges,
            Err(_unknown) => return Ok(false),
        };
        crash::point("recovery.answered");
        match charges.as_slice() {
            [] => match NoCharge::after(payment.age) {
                NoCharge::SendAgain => self.send_again(payment, until).await,
                NoCharge::AskAgain => Ok(false),
                NoCharge::NeverCharged => {
                    let settlement = Settlement::Failed { reason: FailureReason::GatewayTimeout };
                    self.settle(payment.id, payment.order_id, settlement).await?;
                    Ok(true)
                }
            },
            [charge] => {
                let judged = judge_charge(payment.id, payment.amount, &payment.currency, charge);
                self.settle_charge(payment, charge, judged).await
            }
            several => {
                let found = format!("{} charges", several.len());
                self.mismatch("payments", payment.id, "several charges", &found).await?;
                Ok(false)
            }
        }
    }

    /// The gateway knows of no charge, but a first call may still be on its way: only its answer to the same
    /// charge under the same key decides.
    async fn send_again(&self, payment: &OpenPayment, until: Instant) -> Result<bool, Problem> {
        let Ok(permit) = self.0.gateway.breaker().acquire() else { return Ok(false) };
        if store::count_attempt(&self.0.database, payment.id).await?.is_none() {
            return Ok(true);
        }
        crash::point("recovery.sending");
        match self.0.gateway.charge(payment.id, &payment.gateway_request, permit, until).await {
            Sent::Made(answer) => {
                let (charge, judged) = answer
                    .judge(|charge| judge_charge(payment.id, payment.amount, &payment.currency, charge));
                self.settle_charge(payment, &charge, judged).await
            }
            Sent::Refused(status) => {
                // An earlier attempt was not answered, so this refusal proves nothing about it.
                tracing::warn!(%status, payment_id = %payment.id, "the gateway refuses the charge; what became of the first attempt is not known");
                Ok(false)
            }
            Sent::Conflict => {
                self.mismatch("payments", payment.id, "idempotency conflict", "409").await?;
                Ok(false)
            }
            Sent::Unknown(_) => Ok(false),
        }
    }

    async fn settle_charge(
        &self,
        payment: &OpenPayment,
        charge: &Charge,
        judged: Result<Settlement, Mismatch>,
    ) -> Result<bool, Problem> {
        match judged {
            Ok(settlement) => {
                self.settle(payment.id, payment.order_id, settlement).await?;
                Ok(true)
            }
            Err(Mismatch(what)) => {
                self.mismatch("payments", payment.id, what, &format!("{charge:?}")).await?;
                Ok(false)
            }
        }
    }

    async fn ask_for_refund(self, refund: OpenRefund) {
        match self.learn_refund(&refund).await {
            Ok(true) => {}
            Ok(false) => {
                let park = refund.age >= self.0.park_after;
                if park && !refund.parked {
                    self.alert_parked("refund", refund.id, refund.age);
                }
                let pause = pause_at(refund.age, self.0.recovery_interval);
                if let Err(error) = store::release_refund(&self.0.database, refund.id, pause, park).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, refund_id = %refund.id, "a lease could not be released");
                }
            }
            Err(problem) => {
                tracing::warn!(refund_id = %refund.id, status = problem.status().as_u16(), "an outcome could not be stored; it is asked for again");
            }
        }
    }

    /// Tries to learn a refund's outcome; whether it is settled now. An empty list is never proof of anything.
    #[instrument(name = "recover refund", skip_all, fields(refund_id = %refund.id))]
    async fn learn_refund(&self, refund: &OpenRefund) -> Result<bool, Problem> {
        traces::link(&Span::current(), refund.trace_parent.as_deref());
        let until = Instant::now() + self.0.gateway.timeout();
        let Ok(refunds) = self.0.gateway.refunds(refund.id, until).await else { return Ok(false) };
        let judge = |found: &GatewayRefund| judge_refund(refund.id, refund.amount, &refund.charge_id, found);
        let (found, judged) = match refunds.as_slice() {
            [] if NoCharge::after(refund.age) == NoCharge::SendAgain => {
                let Ok(permit) = self.0.gateway.breaker().acquire() else { return Ok(false) };
                if store::count_refund_attempt(&self.0.database, refund.id).await?.is_none() {
                    return Ok(true);
                }
                match self
                    .0
                    .gateway
                    .refund(&refund.charge_id, refund.id, &refund.gateway_request, permit, until)
                    .await
                {
                    Sent::Made(answer) => answer.judge(judge),
                    Sent::Conflict => {
                        self.mismatch("refunds", refund.id, "idempotency conflict", "409").await?;
                        return Ok(false);
                    }
                    Sent::Refused(_) | Sent::Unknown(_) => return Ok(false),
                }
            }
            [] => return Ok(false),
            [found] => (found.clone(), judge(found)),
            several => {
                let count = format!("{} refunds", several.len());
                self.mismatch("refunds", refund.id, "several refunds", &count).await?;
                return Ok(false);
            }
        };
        match judged {
            Ok(settlement) => {
                self.settle_refund(refund, settlement).await?;
                Ok(true)
            }
            Err(Mismatch(what)) => {
                self.mismatch("refunds", refund.id, what, &format!("{found:?}")).await?;
                Ok(false)
            }
        }
    }

    fn alert_parked(&self, what: &'static str, id: uuid::Uuid, age: Duration) {
        self.0.alerts.raise(Alert {
            severity: Severity::Critical,
            title: format!("A {what} is parked"),
            description: format!(
                "Its outcome at the payment gateway has been unknown for {} seconds. It is still being asked for, and never guessed.",
                age.as_secs()
            ),
            metadata: [("id".to_owned(), id.to_string()), ("action".to_owned(), "reconcile".to_owned())].into(),
        });
    }
}

/// The older, the longer the pause: from the interval up to [`LONGEST_PAUSE`].
fn pause_at(age: Duration, interval: Duration) -> Duration {
    (age / 4).clamp(interval, LONGEST_PAUSE.max(interval))
}
