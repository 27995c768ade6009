//! Paying an order: two transactions around one foreign call (after Brandur Leach's "atomic phases").
//!
//! 1. One statement: the key is claimed, the order taken, the payment stored as `processing` with its first lease.
//! 2. The gateway is called, by the payment's id, again where that may help and there is time.
//! 3. One transaction: what is certain is settled, and the answer stored.
//!
//! Where 2 has no certain end, the payment stays `processing`, the caller is told so (202), and recovery goes on.
//! From 1 on the work runs in a task of its own: a client that leaves, or a deadline, does not abandon a charge.
use axum::http::StatusCode;
use platform::{
    http::{
        idempotency::{self, Claim, Idempotent, Previous, Replayable},
        problem::Problem,
    },
    identity::Caller,
    resilience::{breaker::Permit, crash},
    telemetry::{correlation, traces},
};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Payments,
    gateway::{Admission, Charge, Sent, Unknown},
    metrics::PAYMENT_FAILURES,
    model::{FailureReason, Mismatch, NewPayment, Payment, PaymentStatus, Settlement, judge_charge},
    store::{self, Begin},
};
use crate::slices::orders::{self, OrderStatus, Payable};

/// The body of a charge. Its fields are written in this order, and the text is stored: sent again, it is the same.
#[derive(Serialize)]
struct ChargeRequest<'a> {
    amount: i64,
    currency: &'a str,
    payment_method: &'a str,
    reference: Uuid,
}

impl Payments {
    /// Pays an order, or answers what an earlier request under the same key came to.
    pub(super) async fn pay(
        &self,
        caller: Caller,
        order_id: Uuid,
        request: Idempotent<NewPayment>,
        deadline: Instant,
    ) -> Result<Replayable, Problem> {
        let claim = Claim::of_user(caller.user_id, &request);
        let order = {
            let mut connection = self.0.database.acquire().await?;
            let order = orders::payable(&mut connection, order_id, caller.user_id).await?;
            let order = order.ok_or_else(|| Problem::not_yours("orders", order_id))?;
            if let Some(previous) = idempotency::previous(&mut connection, &claim).await? {
                connection.release();
                return self.replay(previous).await;
            }
            connection.release();
            order
        };
        let new = request.body?;
        if let Some(conflict) = why_not_payable(&order) {
            return Err(conflict);
        }
        let admission = self.0.gateway.admit().map_err(|refusal| {
            Problem::unavailable(refusal.retry_after_seconds())
                .detail("The payment gateway is not available. Nothing was charged.")
        })?;
        let (begun, has_begun) = oneshot::channel();
        let work = self.clone().begin_and_charge(order_id, order, new, claim, admission, begun);
        let work = self.0.tracked.run(work);
        finish_by(deadline, work, has_begun, created).await
    }

    /// What an earlier request under the same key came to: its answer, or the present state.
    async fn replay(&self, previous: Previous) -> Result<Replayable, Problem> {
        if let Some(answer) = previous.answer {
            return Ok(answer.at(location(previous.resource_id)));
        }
        let mut connection = self.0.database.acquire().await?;
        let found = store::find(&mut connection, previous.resource_id, None).await?;
        connection.release();
        let found = found.ok_or_else(Problem::not_found)?;
        Ok(created(&found.payment)?.replayed())
    }

    async fn begin_and_charge(
        self,
        order_id: Uuid,
        order: Payable,
        new: NewPayment,
        claim: Claim,
        admission: Admission,
        begun: oneshot::Sender<Payment>,
    ) -> Result<Replayable, Problem> {
        let Admission { permit, slot: _until_the_end } = admission;
        let id = Uuid::now_v7();
        let body = ChargeRequest {
            amount: order.total_amount,
            currency: &order.currency,
            payment_method: &new.payment_method,
            reference: id,
        };
        let gateway_request = serde_json::to_string(&body).map_err(|error| Problem::internal(&error))?;
        let (correlation_id, trace_parent) = (correlation::current_id(), traces::current_trace_parent());
        let start = Begin {
            id,
            order_id,
            amount: order.total_amount,
            currency: &order.currency,
            gateway_request: &gateway_request,
            correlation_id: correlation_id.as_str(),
            trace_parent: trace_parent.as_deref(),
            claim: &claim,
            lease: self.0.lease,
        };
        crash::point("payment.beginning");
        let Some(payment) = store::begin_payment(&self.0.database, &start).await? else {
            return self.lost_the_race(order_id, &claim).await;
        };
        crash::point("payment.begun");
        // Nobody listens any more if the deadline has passed; the work goes on all the same.
        let _deadline_passed = begun.send(payment.clone());
        let payment = self.charge(payment, &gateway_request, permit).await?;
        created(&payment)
    }

    /// Between looking at the order and taking it, a twin of this request or another payment took it.
    async fn lost_the_race(&self, order_id: Uuid, claim: &Claim) -> Result<Replayable, Problem> {
        let mut connection = self.0.database.acquire().await?;
        if let Some(previous) = idempotency::previous(&mut connection, claim).await? {
            connection.release();
            return self.replay(previous).await;
        }
        tracing::info!(%order_id, "another request took the order first");
        Err(Problem::conflict("The order was paid, cancelled, or is being paid by another request."))
    }

    /// Calls the gateway until something is certain or the time of one request is over.
    async fn charge(
        &self,
        payment: Payment,
        gateway_request: &str,
        permit: Permit,
    ) -> Result<Payment, Problem> {
        let until = Instant::now() + self.0.gateway.timeout();
        let mut attempts = 1;
        let mut permit = permit;
        loop {
            let unknown = match self.0.gateway.charge(payment.id, gateway_request, permit, until).await {
                Sent::Made(answer) => {
                    crash::point("payment.answered");
                    let judge =
                        |charge: &Charge| judge_charge(payment.id, payment.amount, &payment.currency, charge);
                    match answer.judge(judge) {
                        (_, Ok(settlement)) => {
                            return self.settle(payment.id, payment.order_id, settlement).await;
                        }
                        (charge, Err(Mismatch(what))) => {
                            self.mismatch("payments", payment.id, what, &format!("{charge:?}")).await?;
                            break self.leave_to_recovery(payment, FailureReason::GatewayError).await;
                        }
                    }
                }
                // The answer to the only request that was ever sent: nothing was charged.
                Sent::Refused(status) if attempts == 1 => {
                    tracing::warn!(%status, "the gateway refused the charge");
                    let settlement = Settlement::Failed { reason: FailureReason::GatewayRejected };
                    return self.settle(payment.id, payment.order_id, settlement).await;
                }
                Sent::Refused(status) => {
                    tracing::warn!(%status, attempts, "the gateway refused the charge after an attempt that it has not answered");
                    break self.leave_to_recovery(payment, FailureReason::GatewayError).await;
                }
                Sent::Conflict => {
                    self.mismatch("payments", payment.id, "idempotency conflict", "409").await?;
                    break self.leave_to_recovery(payment, FailureReason::GatewayError).await;
                }
                Sent::Unknown(unknown) => unknown,
            };
            let reason = reason_of(&unknown);
            let pause = self.0.gateway.pause_before_retry(attempts, &unknown);
            let Some(pause) = pause.filter(|pause| Instant::now() + *pause < until) else {
                break self.leave_to_recovery(payment, reason).await;
            };
            tokio::time::sleep(pause).await;
            let Ok(next) = self.0.gateway.breaker().acquire() else {
                break self.leave_to_recovery(payment, reason).await;
            };
            match store::count_attempt(&self.0.database, payment.id).await? {
                Some(count) => (attempts, permit) = (count, next),
                // A webhook was faster.
                None => break self.present(payment.id).await,
            }
        }
    }

    /// Lets recovery and later repetitions of the request go on from here.
    async fn leave_to_recovery(&self, payment: Payment, reason: FailureReason) -> Result<Payment, Problem> {
        PAYMENT_FAILURES.with_label_values(&[reason.as_str()]).inc();
        store::release_payment(&self.0.database, payment.id, self.0.recovery_interval, false).await?;
        let mut connection = self.0.database.acquire().await?;
        idempotency::release(&mut connection, payment.id).await?;
        connection.release();
        self.present(payment.id).await
    }

    async fn present(&self, id: Uuid) -> Result<Payment, Problem> {
        let mut connection = self.0.database.acquire().await?;
        let found = store::find(&mut connection, id, None).await?;
        found.map(|found| found.payment).ok_or_else(Problem::not_found)
    }
}

fn why_not_payable(order: &Payable) -> Option<Problem> {
    let detail = match (order.status, order.live_payment_id) {
        (OrderStatus::PendingPayment, None) => return None,
        (OrderStatus::PendingPayment, Some(_)) => "A payment of this order is under way.",
        (OrderStatus::Cancelled, _) => "The order is cancelled.",
        (OrderStatus::Paid | OrderStatus::PartiallyRefunded | OrderStatus::Refunded, _) => {
            "The order is paid already."
        }
    };
    Some(Problem::conflict(detail))
}

/// What a call without a certain outcome counts as.
pub(super) fn reason_of(unknown: &Unknown) -> FailureReason {
    match unknown {
        Unknown::TimedOut => FailureReason::GatewayTimeout,
        _ => FailureReason::GatewayError,
    }
}

fn location(id: Uuid) -> String {
    format!("/v1/payments/{id}")
}

/// An attempt's outcome is data: 201 for a settled payment however it ended, 202 while that is not known.
fn created(payment: &Payment) -> Result<Replayable, Problem> {
    let processing = payment.status == PaymentStatus::Processing;
    let status = if processing { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    Ok(Replayable::new(status, payment)?.at(location(payment.id)))
}

/// Waits for the work until `deadline`. Past that, the answer is what has begun (202), or that nothing has (503):
/// never a 504, which would leave the caller with nothing to hold on to.
pub(super) async fn finish_by<T>(
    deadline: Instant,
    work: tokio::task::JoinHandle<Result<Replayable, Problem>>,
    mut has_begun: oneshot::Receiver<T>,
    answer: impl Fn(&T) -> Result<Replayable, Problem>,
) -> Result<Replayable, Problem> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(died)) => Err(Problem::internal(&died)),
        Err(_elapsed) => match has_begun.try_recv() {
            Ok(begun) => answer(&begun),
            Err(_nothing_yet) => Err(Problem::unavailable(1)
                .detail("It is not certain whether the payment has begun. Send the same request again, with the same Idempotency-Key.")),
        },
    }
}
