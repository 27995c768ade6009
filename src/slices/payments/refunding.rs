//! Giving money back: the same three steps as paying. What differs: the amount is reserved in the payment's row, so
//! that refunds under way together never exceed the payment; and only the gateway's own `failed` ends a refund
//! without money, since neither a refusal nor an empty list proves that none was given back.
use axum::http::StatusCode;
use platform::{
    http::{
        idempotency::{self, Claim, Idempotent, Previous, Replayable},
        problem::{FieldError, Problem},
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
    gateway::{Admission, Sent},
    model::{Mismatch, NewRefund, PaymentStatus, Refund, RefundStatus, judge_refund},
    paying::finish_by,
    store::{self, BeginRefund, Found, OpenRefund},
};

/// The body of a refund, stored and sent like that of a charge.
#[derive(Serialize)]
struct RefundRequest {
    amount: i64,
    reference: Uuid,
}

impl Payments {
    /// Refunds a payment, or answers what an earlier request under the same key came to.
    pub(super) async fn give_back(
        &self,
        caller: Caller,
        payment_id: Uuid,
        request: Idempotent<NewRefund>,
        deadline: Instant,
    ) -> Result<Replayable, Problem> {
        let claim = Claim::of_user(caller.user_id, &request);
        let found = {
            let mut connection = self.0.database.acquire().await?;
            let found =
                store::find(&mut connection, payment_id, None).await?.ok_or_else(Problem::not_found)?;
            if let Some(previous) = idempotency::previous(&mut connection, &claim).await? {
                return replay(&mut connection, previous).await;
            }
            found
        };
        let new = request.body?;
        let amount = amount_to_give_back(&found, new.amount)?;
        let admission = self.0.gateway.admit().map_err(|refusal| {
            Problem::unavailable(refusal.retry_after_seconds())
                .detail("The payment gateway is not available. Nothing was refunded.")
        })?;
        let (begun, has_begun) = oneshot::channel();
        let work = self.clone().begin_and_refund(found, amount, new.reason, claim, admission, begun);
        let work = self.0.tracked.run(work);
        finish_by(deadline, work, has_begun, created).await
    }

    async fn begin_and_refund(
        self,
        found: Found,
        amount: i64,
        reason: Option<String>,
        claim: Claim,
        admission: Admission,
        begun: oneshot::Sender<Refund>,
    ) -> Result<Replayable, Problem> {
        let Admission { permit, slot: _until_the_end } = admission;
        let id = Uuid::now_v7();
        let gateway_request = serde_json::to_string(&RefundRequest { amount, reference: id })
            .map_err(|error| Problem::internal(&error))?;
        let (correlation_id, trace_parent) = (correlation::current_id(), traces::current_trace_parent());
        let start = BeginRefund {
            id,
            payment_id: found.payment.id,
            amount,
            currency: &found.payment.currency,
            reason: reason.as_deref(),
            gateway_request: &gateway_request,
            correlation_id: correlation_id.as_str(),
            trace_parent: trace_parent.as_deref(),
            claim: &claim,
            lease: self.0.lease,
        };
        crash::point("refund.beginning");
        let Some(refund) = store::begin_refund(&self.0.database, &start).await? else {
            let mut connection = self.0.database.acquire().await?;
            return match idempotency::previous(&mut connection, &claim).await? {
                Some(previous) => replay(&mut connection, previous).await,
                None => Err(Problem::conflict("Another refund took what was left of the payment.")),
            };
        };
        crash::point("refund.begun");
        // Nobody listens any more if the deadline has passed; the work goes on all the same.
        let _deadline_passed = begun.send(refund);
        let mut connection = self.0.database.acquire().await?;
        let (_, open) = store::find_refund(&mut connection, id).await?.ok_or_else(Problem::not_found)?;
        connection.release();
        created(&self.send_refund(&open, permit).await?)
    }

    /// Calls the gateway until something is certain or the time of one request is over.
    async fn send_refund(&self, open: &OpenRefund, permit: Permit) -> Result<Refund, Problem> {
        let until = Instant::now() + self.0.gateway.timeout();
        let mut attempts = 1;
        let mut permit = permit;
        loop {
            let sent =
                self.0.gateway.refund(&open.charge_id, open.id, &open.gateway_request, permit, until).await;
            crash::point("refund.answered");
            let unknown = match sent {
                Sent::Made(answer) => {
                    match answer.judge(|refund| judge_refund(open.id, open.amount, &open.charge_id, refund)) {
                        (_, Ok(settlement)) => return self.settle_refund(open, settlement).await,
                        (refund, Err(Mismatch(what))) => {
                            self.mismatch("refunds", open.id, what, &format!("{refund:?}")).await?;
                            break;
                        }
                    }
                }
                Sent::Refused(status) => {
                    self.mismatch("refunds", open.id, "refused", status.as_str()).await?;
                    break;
                }
                Sent::Conflict => {
                    self.mismatch("refunds", open.id, "idempotency conflict", "409").await?;
                    break;
                }
                Sent::Unknown(unknown) => unknown,
            };
            let pause = self.0.gateway.pause_before_retry(attempts, &unknown);
            let Some(pause) = pause.filter(|pause| Instant::now() + *pause < until) else { break };
            tokio::time::sleep(pause).await;
            let Ok(next) = self.0.gateway.breaker().acquire() else { break };
            match store::count_refund_attempt(&self.0.database, open.id).await? {
                Some(count) => (attempts, permit) = (count, next),
                // A webhook was faster.
                None => break,
            }
        }
        store::release_refund(&self.0.database, open.id, self.0.recovery_interval, false).await?;
        let mut connection = self.0.database.acquire().await?;
        idempotency::release(&mut connection, open.id).await?;
        let (refund, _) =
            store::find_refund(&mut connection, open.id).await?.ok_or_else(Problem::not_found)?;
        Ok(refund)
    }
}

/// What an earlier request under the same key came to: its answer, or the present state.
async fn replay(connection: &mut sqlx::PgConnection, previous: Previous) -> Result<Replayable, Problem> {
    if let Some(answer) = previous.answer {
        return Ok(answer);
    }
    let (refund, _) =
        store::find_refund(connection, previous.resource_id).await?.ok_or_else(Problem::not_found)?;
    Ok(created(&refund)?.replayed())
}

/// How much, resolved once. It decides nothing: the statement that reserves it guards itself.
fn amount_to_give_back(found: &Found, amount: Option<i64>) -> Result<i64, Problem> {
    if found.payment.status == PaymentStatus::Processing {
        return Err(Problem::conflict("The payment's outcome is not known yet."));
    }
    if !found.payment.status.took_money() {
        return Err(Problem::conflict("The payment took no money."));
    }
    if amount.is_some_and(|amount| amount > found.payment.amount) {
        return Err(Problem::invalid(vec![FieldError::new("/amount", "is more than was paid")]));
    }
    match found.refundable_amount {
        0 => Err(Problem::conflict("All of the payment was given back, or is being given back.")),
        left if amount.is_some_and(|amount| amount > left) => {
            Err(Problem::conflict(format!("Only {left} minor units of the payment are left to refund.")))
        }
        left => Ok(amount.unwrap_or(left)),
    }
}

/// 201 for a settled refund however it ended, 202 while that is not known.
fn created(refund: &Refund) -> Result<Replayable, Problem> {
    let processing = refund.status == RefundStatus::Processing;
    Replayable::new(if processing { StatusCode::ACCEPTED } else { StatusCode::CREATED }, refund)
}
