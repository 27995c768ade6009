//! Paying an order, and polling a payment whose outcome is unknown.
use std::sync::Mutex;

use serde_json::{Value, json};

use super::{
    expectations::{check_payment, check_status_of_state},
    memory::{CompletedRequest, PayRequest, PlacedOrder, State},
};
use crate::traffic::{
    api::Call,
    customer::Customer,
    expectations::{check, check_rejection, check_status, text},
    request::{ApiRequest, RequestOutcome, lock},
};

impl ApiRequest<'_> {
    pub(super) async fn pay(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        order: PlacedOrder,
        request: PayRequest,
        is_retry: bool,
    ) {
        let path = format!("/v1/orders/{}/payments", order.id);
        let call = Call::post(path, &json!({ "payment_method": request.method }))
            .with_token(token)
            .with_key(&request.key);
        // A payment request that reaches the service's deadline gets the response 202 or 503, never 504.
        let call = Call { never_times_out: true, ..call };
        let mut is_in_progress = false;
        let outcome = self
            .send_as(customer, &call, |response| {
                is_in_progress =
                    is_retry && response.status == 409 && response.header("retry-after").is_some();
                if is_in_progress {
                    return check_rejection(response, 409);
                }
                check("a payment request gets 201 or 202", [201, 202].contains(&response.status))?;
                check_payment(
                    &response.body,
                    &order.id,
                    order.total_amount,
                    &order.currency,
                    request.method,
                )?;
                check_status_of_state(response)?;
                check("a new payment is not a replay", is_retry || !response.is_replayed())
            })
            .await;
        match outcome {
            RequestOutcome::Expected(response) if !is_in_progress => {
                if response.status == 201 {
                    lock(customer).memory.completed =
                        Some(CompletedRequest { call, status: response.status, body: response.body.clone() });
                }
                self.record_state(customer, order, request, &response.body);
            }
            RequestOutcome::Expected(_) | RequestOutcome::Retryable => {
                let payment_id = match &order.state {
                    State::Paying { payment_id, .. } => payment_id.clone(),
                    _ => None,
                };
                lock(customer)
                    .memory
                    .store(PlacedOrder { state: State::Paying { payment_id, request }, ..order });
            }
            RequestOutcome::Unexpected => {}
        }
    }

    pub(super) async fn poll_payment(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        order: PlacedOrder,
        payment_id: String,
        request: PayRequest,
    ) {
        let call = Call::get(format!("/v1/payments/{payment_id}")).with_token(token);
        let outcome = self
            .send_as(customer, &call, |response| {
                check_status(response, 200)?;
                check("the response is the requested payment", text(&response.body, "id") == payment_id)?;
                check_payment(&response.body, &order.id, order.total_amount, &order.currency, request.method)
            })
            .await;
        match outcome {
            RequestOutcome::Expected(response) => self.record_state(customer, order, request, &response.body),
            RequestOutcome::Retryable => lock(customer).memory.store(order),
            RequestOutcome::Unexpected => {}
        }
    }

    /// Counts the state of a payment, and updates the customer's memory.
    fn record_state(
        &self,
        customer: &Mutex<Customer>,
        order: PlacedOrder,
        request: PayRequest,
        payment: &Value,
    ) {
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
        lock(customer).memory.store(PlacedOrder { state, ..order });
    }
}
