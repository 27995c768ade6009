//! Paying, and determining the outcome of a payment.
use std::sync::Mutex;

use serde_json::{Value, json};

use super::{
    expectations::{is_payment, says_whether_it_is_settled},
    memory::{CompletedRequest, PayRequest, PlacedOrder, State},
};
use crate::traffic::{
    api::Call,
    customer::Customer,
    expectations::{has_status, is_refused, keeps, text},
    request::{ApiRequest, RequestOutcome, lock},
};

impl ApiRequest<'_> {
    pub(super) async fn pay(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        order: PlacedOrder,
        request: PayRequest,
        again: bool,
    ) {
        let path = format!("/v1/orders/{}/payments", order.id);
        let call =
            Call::post(path, &json!({ "payment_method": request.method })).by(token).under(&request.key);
        // At the deadline the response is 202.
        let call = Call { never_times_out: true, ..call };
        let mut under_way = false;
        let came = self
            .ask_as(customer, &call, |answer| {
                under_way = again && answer.status == 409 && answer.header("retry-after").is_some();
                if under_way {
                    return is_refused(answer, 409);
                }
                keeps("a new payment is 201 or 202", [201, 202].contains(&answer.status))?;
                is_payment(&answer.body, &order.id, order.total_amount, &order.currency, request.method)?;
                says_whether_it_is_settled(answer)?;
                keeps("a new payment is not a replay", again || !answer.is_replayed())
            })
            .await;
        match came {
            RequestOutcome::Promised(answer) if !under_way => {
                if answer.status == 201 {
                    lock(customer).memory.answered =
                        Some(CompletedRequest { call, status: answer.status, body: answer.body.clone() });
                }
                self.learn(customer, order, request, &answer.body);
            }
            RequestOutcome::Promised(_) | RequestOutcome::ComeAgain => {
                let payment_id = match &order.state {
                    State::Paying { payment_id, .. } => payment_id.clone(),
                    _ => None,
                };
                lock(customer)
                    .memory
                    .remember(PlacedOrder { state: State::Paying { payment_id, request }, ..order });
            }
            RequestOutcome::Wrong => {}
        }
    }

    pub(super) async fn ask_for_payment(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        order: PlacedOrder,
        payment_id: String,
        request: PayRequest,
    ) {
        let call = Call::get(format!("/v1/payments/{payment_id}")).by(token);
        let came = self
            .ask_as(customer, &call, |answer| {
                has_status(answer, 200)?;
                keeps("the response is the requested payment", text(&answer.body, "id") == payment_id)?;
                is_payment(&answer.body, &order.id, order.total_amount, &order.currency, request.method)
            })
            .await;
        match came {
            RequestOutcome::Promised(answer) => self.learn(customer, order, request, &answer.body),
            RequestOutcome::ComeAgain => lock(customer).memory.remember(order),
            RequestOutcome::Wrong => {}
        }
    }

    /// Counts the state of a payment, and updates the customer's memory.
    fn learn(&self, customer: &Mutex<Customer>, order: PlacedOrder, request: PayRequest, payment: &Value) {
        let was_processing = matches!(order.state, State::Paying { payment_id: Some(_), .. });
        let mut report = self.report();
        let payments = &mut report.counts.payments;
        if was_processing {
            payments.processing -= 1;
        }
        let state = match text(payment, "status") {
            "processing" => {
                payments.processing += 1;
                State::Paying { payment_id: Some(text(payment, "id").to_owned()), request }
            }
            "declined" => {
                payments.declined += 1;
                State::Unpaid { declined_before: true }
            }
            "failed" => {
                payments.failed += 1;
                State::Unpaid { declined_before: true }
            }
            _ => {
                payments.succeeded += 1;
                State::Paid
            }
        };
        drop(report);
        lock(customer).memory.remember(PlacedOrder { state, ..order });
    }
}
