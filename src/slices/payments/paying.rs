//! Paying an order: two transactions with the call to the gateway between them (as in Brandur Leach's "atomic phases").
//!
//! 1. One statement claims the idempotency key, reserves the order, and stores the payment as `processing` with its
//!    first lease.
//! 2. The gateway is called under the payment's gateway key. The call is retried if a retry may help and time is left.
//! 3. If the outcome is known, one transaction settles the payment and stores the response.
//!
//! If the outcome is unknown, the payment stays `processing`, the response is 202, and recovery takes over. From
//! step 1 on, the work runs in a separate task, so that neither a disconnect nor a deadline abandons a charge.
//!
//! As in [`idempotency::run`], the first statement claims the key, so no lookup of the key precedes it. The key is
//! looked up only if a check rejects the request, or if the first statement begins no payment. There are two
//! differences from [`idempotency::run`]:
//!
//! - An earlier request may have no response yet. The payment's current state is then the replay.
//! - The response of an earlier request may be deleted already. The payment is then found by its gateway key, and
//!   replayed too.
use platform::{
    http::idempotency::{self, Claim, IdempotentRequest, Previous, StoredResponse},
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
    errors::PaymentError,
    gateway::{Charge, GatewaySlot, SendResult, Unknown},
    gateway_key::GatewayKey,
    metrics::PAYMENT_FAILURES,
    model::{FailureReason, Mismatch, NewPayment, Payment, PaymentStatus, Settlement, check_charge},
    responses,
    store::{
        By,
        payments::{self, PaymentDraft},
    },
};
use crate::slices::orders::{self, OrderStatus, PayableOrder};

/// The body of a charge request. The serialized body is stored, so that a resend has the same bytes.
#[derive(Serialize)]
struct ChargeRequest<'a> {
    amount: i64,
    currency: &'a str,
    payment_method: &'a str,
    reference: GatewayKey,
}

impl Payments {
    /// Pays an order, or replays an earlier request with the same key.
    pub(super) async fn pay(
        &self,
        caller: Caller,
        order_id: Uuid,
        request: IdempotentRequest<NewPayment>,
        deadline: Instant,
    ) -> Result<StoredResponse, PaymentError> {
        let claim = Claim::of_user(caller.user_id, &request);
        let order = orders::payable(&self.0.database, order_id, caller.user_id).await?;
        let order = order.ok_or(PaymentError::OrderNotFound(order_id))?;
        let admitted = request.body.map_err(PaymentError::InvalidBody).and_then(|new| {
            check_payable(&order)?;
            let gateway_slot = self.0.gateway.acquire_slot().map_err(PaymentError::CannotCharge)?;
            Ok((new, gateway_slot))
        });
        let (new, gateway_slot) = match admitted {
            Ok(admitted) => admitted,
            Err(rejection) => return self.replay_or(rejection, &claim).await,
        };
        let (begun_sender, begun_receiver) = oneshot::channel();
        let work = self.clone().begin_and_charge(order_id, order, new, claim, gateway_slot, begun_sender);
        let work = self.0.background_tasks.run(log_failure(work));
        finish_by(deadline, work, begun_receiver, responses::of_payment).await
    }

    /// Replays the earlier request with the same key, or returns the rejection if there was no earlier request. The
    /// replay is the stored response, or the payment's current state while no response is stored.
    ///
    /// A stored response is deleted after 24 hours. Even then, the payment is found by its gateway key.
    async fn replay_or(
        &self,
        rejection: PaymentError,
        claim: &Claim,
    ) -> Result<StoredResponse, PaymentError> {
        let by = match idempotency::previous(&self.0.database, claim).await? {
            Some(Previous { resource_id, response: Some(response) }) => {
                return Ok(response.at(responses::payment_location(resource_id)));
            }
            Some(Previous { resource_id, response: None }) => By::Id(resource_id),
            None => By::GatewayKey(GatewayKey::derive(claim)),
        };
        let found = payments::find(&self.0.database, by).await?.ok_or(rejection)?;
        Ok(responses::of_payment(&found.payment)?.replayed())
    }

    async fn begin_and_charge(
        self,
        order_id: Uuid,
        order: PayableOrder,
        new: NewPayment,
        claim: Claim,
        gateway_slot: GatewaySlot,
        begun_sender: oneshot::Sender<Payment>,
    ) -> Result<StoredResponse, PaymentError> {
        let GatewaySlot { permit, slot: _held_until_return } = gateway_slot;
        let (id, gateway_key) = (Uuid::now_v7(), GatewayKey::derive(&claim));
        let body = ChargeRequest {
            amount: order.total_amount,
            currency: &order.currency,
            payment_method: &new.payment_method,
            reference: gateway_key,
        };
        let gateway_request = serde_json::to_string(&body)?;
        let (correlation_id, trace_parent) = (correlation::current_id(), traces::current_trace_parent());
        let draft = PaymentDraft {
            id,
            order_id,
            gateway_key,
            amount: order.total_amount,
            currency: &order.currency,
            gateway_request: &gateway_request,
            correlation_id: correlation_id.as_str(),
            trace_parent: trace_parent.as_deref(),
            claim: &claim,
            lease: self.0.lease,
        };
        crash::point("payment.beginning");
        let Some(payment) = payments::begin(&self.0.database, &draft).await? else {
            // An earlier request with the same key began a payment, or a concurrent request paid, cancelled or reserved
            // the order.
            tracing::info!(%order_id, "no payment was begun: the order or the key is taken");
            return self.replay_or(PaymentError::OrderTaken, &claim).await;
        };
        crash::point("payment.begun");
        // The request no longer receives this message if its deadline has passed or the client has disconnected. The
        // payment continues without a receiver.
        let _deadline_passed = begun_sender.send(payment.clone());
        let payment = self.charge(payment, gateway_key, &gateway_request, permit).await?;
        Ok(responses::of_payment(&payment)?)
    }

    /// Calls the gateway until the outcome is known, no retry is allowed, or the time limit of all calls together is
    /// reached. Then settles the payment, or leaves it to recovery.
    async fn charge(
        &self,
        payment: Payment,
        gateway_key: GatewayKey,
        gateway_request: &str,
        permit: Permit,
    ) -> Result<Payment, PaymentError> {
        let until = Instant::now() + self.0.gateway.timeout();
        let mut calls = 1;
        let mut permit = permit;
        loop {
            let unknown = match self.0.gateway.charge(gateway_key, gateway_request, permit, until).await {
                SendResult::Response(response) => {
                    crash::point("payment.responded");
                    let check = |charge: &Charge| {
                        check_charge(gateway_key, payment.amount, &payment.currency, charge)
                    };
                    match response.check(check) {
                        (_, Ok(settlement)) => break self.settle_or_leave(payment, settlement).await,
                        (charge, Err(Mismatch(what))) => {
                            self.record_discrepancy_of_unsettled(
                                "payments",
                                payment.id,
                                what,
                                &format!("{charge:?}"),
                            )
                            .await?;
                            break self.leave_to_recovery(payment, FailureReason::GatewayError).await;
                        }
                    }
                }
                SendResult::Rejected(status) => {
                    tracing::warn!(%status, calls, "the gateway rejected the charge");
                    break self.settle_or_leave(payment, Settlement::Rejected).await;
                }
                SendResult::Conflict => {
                    self.record_discrepancy_of_unsettled(
                        "payments",
                        payment.id,
                        "idempotency conflict",
                        "409",
                    )
                    .await?;
                    break self.leave_to_recovery(payment, FailureReason::GatewayError).await;
                }
                SendResult::Unknown(Unknown::Unreadable(why)) => {
                    self.record_discrepancy_of_unsettled("payments", payment.id, "unreadable charge", &why)
                        .await?;
                    break self.leave_to_recovery(payment, FailureReason::GatewayError).await;
                }
                SendResult::Unknown(unknown) => unknown,
            };
            if unknown.was_not_sent() {
                payments::uncount_attempt(&self.0.database, payment.id).await?;
            }
            let reason = failure_reason(&unknown);
            let pause = self.0.gateway.pause_before_retry(calls, &unknown);
            let pause = pause.filter(|pause| *pause < until.saturating_duration_since(Instant::now()));
            let Some(pause) = pause else { break self.leave_to_recovery(payment, reason).await };
            tokio::time::sleep(pause).await;
            let Ok(next) = self.0.gateway.breaker().acquire() else {
                break self.leave_to_recovery(payment, reason).await;
            };
            if payments::count_attempt(&self.0.database, payment.id).await?.is_none() {
                // A webhook, for example, has settled the payment since the last attempt.
                break self.reload(payment.id).await;
            }
            (calls, permit) = (calls + 1, next);
        }
    }

    /// Settles the payment, or leaves it to recovery if it is still `processing` afterwards.
    async fn settle_or_leave(
        &self,
        payment: Payment,
        settlement: Settlement,
    ) -> Result<Payment, PaymentError> {
        let payment = self.settle(payment.id, payment.order_id, settlement).await?;
        if payment.status == PaymentStatus::Processing {
            return self.leave_to_recovery(payment, FailureReason::GatewayError).await;
        }
        Ok(payment)
    }

    /// Leaves the payment to recovery, whose next poll is due after one recovery interval. Counts `reason` in
    /// `payment_failures_total`. Also ends the lease of the idempotency key, so that a retry by the client gets the
    /// payment's current state instead of a 409.
    async fn leave_to_recovery(
        &self,
        payment: Payment,
        reason: FailureReason,
    ) -> Result<Payment, PaymentError> {
        PAYMENT_FAILURES.with_label_values(&[reason.as_str()]).inc();
        payments::release(&self.0.database, payment.id, self.0.recovery_interval, false).await?;
        idempotency::release(&self.0.database, payment.id).await?;
        self.reload(payment.id).await
    }

    async fn reload(&self, id: Uuid) -> Result<Payment, PaymentError> {
        let found = payments::find(&self.0.database, By::Id(id)).await?;
        found.map(|found| found.payment).ok_or(PaymentError::NotFound)
    }
}

/// Returns an error if the order cannot be paid. The statement that begins the payment checks the order again.
fn check_payable(order: &PayableOrder) -> Result<(), PaymentError> {
    match (order.status, order.live_payment_id) {
        (OrderStatus::PendingPayment, None) => Ok(()),
        (OrderStatus::PendingPayment, Some(_)) => Err(PaymentError::OrderBeingPaid),
        (OrderStatus::Cancelled, _) => Err(PaymentError::OrderCancelled),
        (OrderStatus::Paid | OrderStatus::PartiallyRefunded | OrderStatus::Refunded, _) => {
            Err(PaymentError::OrderPaid)
        }
    }
}

/// Returns the reason under which a call with an unknown outcome is counted.
fn failure_reason(unknown: &Unknown) -> FailureReason {
    if unknown.is_timeout() { FailureReason::GatewayTimeout } else { FailureReason::GatewayError }
}

/// Logs a failure of a payment's or refund's task, because the request may no longer wait for the task's result.
pub(super) async fn log_failure(
    work: impl Future<Output = Result<StoredResponse, PaymentError>>,
) -> Result<StoredResponse, PaymentError> {
    work.await.inspect_err(|error| {
        if error.is_failure() {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "failed to complete a payment or refund; recovery takes over if it has begun"
            );
        }
    })
}

/// Waits for the work until `deadline`. After that, the response is 202 if the payment or refund has begun. Otherwise
/// the response is 503, and the client retries with the same key. Unlike a 504, a 503 states in `Retry-After` when the
/// client can retry.
pub(super) async fn finish_by<T>(
    deadline: Instant,
    work: tokio::task::JoinHandle<Result<StoredResponse, PaymentError>>,
    mut begun_receiver: oneshot::Receiver<T>,
    response: impl Fn(&T) -> Result<StoredResponse, serde_json::Error>,
) -> Result<StoredResponse, PaymentError> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(result) => result?,
        Err(_elapsed) => match begun_receiver.try_recv() {
            Ok(begun) => Ok(response(&begun)?),
            Err(_not_begun) => Err(PaymentError::BeginningUncertain),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{http::StatusCode, response::IntoResponse};

    use super::*;

    #[test]
    fn only_a_pending_order_without_a_payment_can_be_paid() {
        use OrderStatus::{Cancelled, Paid, PartiallyRefunded, PendingPayment, Refunded};
        let check = |status, live_payment_id| {
            check_payable(&PayableOrder {
                status,
                total_amount: 1,
                currency: "EUR".to_owned(),
                live_payment_id,
            })
        };
        let live = Some(Uuid::from_u128(1));
        assert!(check(PendingPayment, None).is_ok());
        assert!(matches!(check(PendingPayment, live), Err(PaymentError::OrderBeingPaid)));
        for live in [None, live] {
            assert!(matches!(check(Cancelled, live), Err(PaymentError::OrderCancelled)));
            for status in [Paid, PartiallyRefunded, Refunded] {
                assert!(matches!(check(status, live), Err(PaymentError::OrderPaid)));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_deadline_the_response_says_whether_work_began() {
        let accepted = |(): &()| StoredResponse::new(StatusCode::ACCEPTED, &());
        let deadline = || Instant::now() + Duration::from_secs(1);
        let (begun, has_begun) = oneshot::channel();
        let work = tokio::spawn(std::future::pending());
        begun.send(()).unwrap();
        let response = finish_by(deadline(), work, has_begun, accepted).await.unwrap();
        assert_eq!(response.into_response().status(), 202);

        let (_begun, has_begun) = oneshot::channel();
        let work = tokio::spawn(std::future::pending());
        let response = finish_by(deadline(), work, has_begun, accepted).await;
        assert!(matches!(response, Err(PaymentError::BeginningUncertain)));

        let (_begun, has_begun) = oneshot::channel();
        let work = tokio::spawn(async { Ok(StoredResponse::new(StatusCode::CREATED, &())?) });
        let response = finish_by(deadline(), work, has_begun, accepted).await.unwrap();
        assert_eq!(response.into_response().status(), 201);
    }
}
