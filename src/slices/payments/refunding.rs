//! Refunding a payment, in the same three steps as paying ([`super::paying`]), with two differences:
//!
//! - The amount is reserved in the payment's row, so that concurrent refunds together never exceed the payment.
//! - Only a refund object with the status `failed`, or an operator, ends a refund that moved no money. Neither a
//!   rejection (4xx) nor an empty list of the gateway's refunds proves that no money was refunded.
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
    gateway::{GatewaySlot, SendResult, Unknown},
    gateway_key::GatewayKey,
    model::{Mismatch, NewRefund, PaymentStatus, Refund, RefundStatus, check_refund},
    paying::{finish_by, log_failure},
    responses,
    store::{
        By,
        payments::{self, PaymentRecord},
        refunds::{self, RefundDraft, RefundRecord, RefundToSend},
    },
};

/// The body of a refund request, stored and sent like the body of a charge request.
#[derive(Serialize)]
struct RefundRequest {
    amount: i64,
    reference: GatewayKey,
}

impl Payments {
    /// Refunds a payment, or replays an earlier request with the same key.
    pub(super) async fn refund(
        &self,
        caller: Caller,
        payment_id: Uuid,
        request: IdempotentRequest<NewRefund>,
        deadline: Instant,
    ) -> Result<StoredResponse, PaymentError> {
        let claim = Claim::of_user(caller.user_id, &request);
        let found =
            payments::find(&self.0.database, By::Id(payment_id)).await?.ok_or(PaymentError::NotFound)?;
        let admitted = request.body.map_err(PaymentError::InvalidBody).and_then(|new| {
            let amount = amount_to_refund(&found, new.amount)?;
            let gateway_slot = self.0.gateway.acquire_slot().map_err(PaymentError::CannotRefund)?;
            Ok((new.reason, amount, gateway_slot))
        });
        let (reason, amount, gateway_slot) = match admitted {
            Ok(admitted) => admitted,
            Err(rejection) => return self.replay_refund_or(rejection, &claim).await,
        };
        let (begun_sender, begun_receiver) = oneshot::channel();
        let work = self.clone().begin_and_refund(found, amount, reason, claim, gateway_slot, begun_sender);
        let work = self.0.background_tasks.run(log_failure(work));
        finish_by(deadline, work, begun_receiver, responses::of_refund).await
    }

    /// Replays the earlier request with the same key, or returns the rejection if there was no earlier request. Mirrors
    /// `replay_or`.
    async fn replay_refund_or(
        &self,
        rejection: PaymentError,
        claim: &Claim,
    ) -> Result<StoredResponse, PaymentError> {
        let by = match idempotency::previous(&self.0.database, claim).await? {
            Some(Previous { response: Some(response), .. }) => return Ok(response),
            Some(Previous { resource_id, response: None }) => By::Id(resource_id),
            None => By::GatewayKey(GatewayKey::derive(claim)),
        };
        let found = refunds::find(&self.0.database, by).await?.ok_or(rejection)?;
        Ok(responses::of_refund(&found.refund)?.replayed())
    }

    async fn begin_and_refund(
        self,
        found: PaymentRecord,
        amount: i64,
        reason: Option<String>,
        claim: Claim,
        gateway_slot: GatewaySlot,
        begun_sender: oneshot::Sender<Refund>,
    ) -> Result<StoredResponse, PaymentError> {
        let GatewaySlot { permit, slot: _held_until_return } = gateway_slot;
        let (id, gateway_key) = (Uuid::now_v7(), GatewayKey::derive(&claim));
        let gateway_request = serde_json::to_string(&RefundRequest { amount, reference: gateway_key })?;
        let (correlation_id, trace_parent) = (correlation::current_id(), traces::current_trace_parent());
        let draft = RefundDraft {
            id,
            gateway_key,
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
        let Some(refund) = refunds::begin(&self.0.database, &draft).await? else {
            return self.replay_refund_or(PaymentError::RefundableTaken, &claim).await;
        };
        crash::point("refund.begun");
        // The request no longer receives this message if its deadline has passed or the client has disconnected. The
        // refund continues without a receiver.
        let _deadline_passed = begun_sender.send(refund);
        let found = self.reload_refund(id).await?;
        Ok(responses::of_refund(&self.send_refund(&found.open, permit).await?)?)
    }

    /// Calls the gateway until the outcome is known, no retry is allowed, or the time limit of all calls together is
    /// reached. Then settles the refund, or leaves it to recovery.
    async fn send_refund(&self, open: &RefundToSend, permit: Permit) -> Result<Refund, PaymentError> {
        let until = Instant::now() + self.0.gateway.timeout();
        let mut calls = 1;
        let mut permit = permit;
        // Set after a rejection, because a later poll is not expected to find an outcome.
        let mut needs_review = false;
        loop {
            let key = open.gateway_key;
            let sent =
                self.0.gateway.refund(&open.charge_id, key, &open.gateway_request, permit, until).await;
            crash::point("refund.responded");
            let unknown = match sent {
                SendResult::Response(response) => {
                    match response.check(|refund| check_refund(key, open.amount, &open.charge_id, refund)) {
                        (_, Ok(settlement)) => {
                            let refund = self.settle_refund(open, settlement).await?;
                            if refund.status != RefundStatus::Processing {
                                return Ok(refund);
                            }
                        }
                        (refund, Err(Mismatch(what))) => {
                            self.record_discrepancy_of_unsettled(
                                "refunds",
                                open.id,
                                what,
                                &format!("{refund:?}"),
                            )
                            .await?;
                        }
                    }
                    break;
                }
                SendResult::Rejected(status) => {
                    tracing::warn!(%status, refund_id = %open.id, calls, "the gateway rejected the refund");
                    self.record_discrepancy_of_unsettled("refunds", open.id, "refused", status.as_str())
                        .await?;
                    needs_review = true;
                    break;
                }
                SendResult::Conflict => {
                    self.record_discrepancy_of_unsettled("refunds", open.id, "idempotency conflict", "409")
                        .await?;
                    break;
                }
                SendResult::Unknown(Unknown::Unreadable(why)) => {
                    self.record_discrepancy_of_unsettled("refunds", open.id, "unreadable refund", &why)
                        .await?;
                    break;
                }
                SendResult::Unknown(unknown) => unknown,
            };
            if unknown.was_not_sent() {
                refunds::uncount_attempt(&self.0.database, open.id).await?;
            }
            let pause = self.0.gateway.pause_before_retry(calls, &unknown);
            let pause = pause.filter(|pause| *pause < until.saturating_duration_since(Instant::now()));
            let Some(pause) = pause else { break };
            tokio::time::sleep(pause).await;
            let Ok(next) = self.0.gateway.breaker().acquire() else { break };
            if refunds::count_attempt(&self.0.database, open.id).await?.is_none() {
                // A webhook, for example, has settled the refund since the last attempt.
                break;
            }
            (calls, permit) = (calls + 1, next);
        }
        refunds::release(&self.0.database, open.id, self.0.recovery_interval, needs_review).await?;
        idempotency::release(&self.0.database, open.id).await?;
        Ok(self.reload_refund(open.id).await?.refund)
    }

    async fn reload_refund(&self, id: Uuid) -> Result<RefundRecord, PaymentError> {
        refunds::find(&self.0.database, By::Id(id)).await?.ok_or(PaymentError::NotFound)
    }
}

/// Returns the amount to refund: the requested amount, or the whole refundable amount if the request has no amount. The
/// amount is not reserved yet, so the statement that reserves it checks the amount again.
fn amount_to_refund(found: &PaymentRecord, amount: Option<i64>) -> Result<i64, PaymentError> {
    if found.payment.status == PaymentStatus::Processing {
        return Err(PaymentError::NotSettled);
    }
    if !found.payment.status.took_money() {
        return Err(PaymentError::TookNoMoney);
    }
    if amount.is_some_and(|amount| amount > found.payment.amount) {
        return Err(PaymentError::ExceedsPayment);
    }
    match found.refundable_amount {
        0 => Err(PaymentError::NothingLeft),
        left if amount.is_some_and(|amount| amount > left) => Err(PaymentError::ExceedsRefundable(left)),
        left => Ok(amount.unwrap_or(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a payment of 100 minor units, of which `left` are refundable.
    fn payment(status: PaymentStatus, left: i64) -> PaymentRecord {
        PaymentRecord { refundable_amount: left, ..PaymentRecord::example(status) }
    }

    #[test]
    fn a_refund_is_at_most_what_is_left_of_the_payment() {
        use PaymentStatus::{PartiallyRefunded, Refunded, Succeeded};
        let amount = |status, left, amount| amount_to_refund(&payment(status, left), amount);
        for (status, left, asked, expected) in [
            (Succeeded, 100, None, 100),
            (Succeeded, 100, Some(100), 100),
            (Succeeded, 100, Some(1), 1),
            (PartiallyRefunded, 40, None, 40),
            (PartiallyRefunded, 40, Some(40), 40),
        ] {
            assert_eq!(amount(status, left, asked).unwrap(), expected, "{left} {asked:?}");
        }
        assert!(matches!(amount(Succeeded, 100, Some(101)), Err(PaymentError::ExceedsPayment)));
        assert!(matches!(amount(Refunded, 0, Some(101)), Err(PaymentError::ExceedsPayment)));
        assert!(matches!(amount(PartiallyRefunded, 40, Some(41)), Err(PaymentError::ExceedsRefundable(40))));
        assert!(matches!(amount(PartiallyRefunded, 40, Some(100)), Err(PaymentError::ExceedsRefundable(40))));
        for asked in [None, Some(1)] {
            assert!(matches!(amount(Refunded, 0, asked), Err(PaymentError::NothingLeft)));
        }
    }

    #[test]
    fn only_a_payment_that_took_money_is_refunded() {
        for asked in [None, Some(1), Some(101)] {
            let refused = |status| amount_to_refund(&payment(status, 100), asked);
            assert!(matches!(refused(PaymentStatus::Processing), Err(PaymentError::NotSettled)));
            for status in [PaymentStatus::Declined, PaymentStatus::Failed] {
                assert!(matches!(refused(status), Err(PaymentError::TookNoMoney)));
            }
        }
    }
}
