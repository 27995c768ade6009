//! One request of one customer: sending it, and counting the response.
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::{
    api::{Api, ApiResponse, Call},
    customer::Customer,
    expectations::{CheckResult, check, check_rejection},
    report::{Report, UnexpectedResponse},
};
use crate::example::traffic::memory::SharedMemory;

/// The outcome of a request.
pub(crate) enum RequestOutcome {
    /// The response that the API contract promises.
    Expected(ApiResponse),
    /// No response, a response that counts as busy, or a 401 after the end of the session. The effect of the request
    /// may be unknown, and the same request can be retried.
    Retryable,
    /// A response that violates the API contract. The response is counted, and the request is not retried.
    Unexpected,
}

/// One request in flight.
pub(crate) struct ApiRequest<'a> {
    /// Memory shared by all customers.
    pub(crate) shared: &'a SharedMemory,
    api: &'a Api,
    report: &'a Mutex<Report>,
    correlation_id: String,
}

impl<'a> ApiRequest<'a> {
    pub(super) fn new(shared: &'a SharedMemory, api: &'a Api, report: &'a Mutex<Report>) -> Self {
        let correlation_id = format!("traffic-{}", Uuid::now_v7().simple());
        Self { shared, api, report, correlation_id }
    }

    pub(crate) fn report(&self) -> MutexGuard<'_, Report> {
        lock(self.report)
    }

    /// Sends a call. Counts the request, and every outcome except an expected response. `expected` checks the response
    /// against the API contract. `expected` is called only for a response that has the request's correlation id, and a
    /// status other than those of a busy service (429, 503, or a 504 that the API contract allows for this call).
    pub(crate) async fn send(
        &self,
        call: &Call,
        expected: impl FnOnce(&ApiResponse) -> CheckResult,
    ) -> RequestOutcome {
        self.report().requests += 1;
        let Some(response) = self.api.send(call, &self.correlation_id).await else {
            self.report().without_response += 1;
            return RequestOutcome::Retryable;
        };
        let busy = is_busy_response(call, &response);
        let checked = check(
            "the response has the correlation id",
            response.header("x-correlation-id") == Some(self.correlation_id.as_str()),
        )
        .and_then(|()| if busy { is_retryable_rejection(&response) } else { expected(&response) });
        match checked {
            Err(violation) => {
                self.report().unexpected(UnexpectedResponse {
                    method: call.method.to_string(),
                    path: call.path.clone(),
                    status: response.status,
                    violation,
                    body: response.text,
                    correlation_id: self.correlation_id.clone(),
                });
                RequestOutcome::Unexpected
            }
            Ok(()) if busy => {
                self.report().busy += 1;
                RequestOutcome::Retryable
            }
            Ok(()) => RequestOutcome::Expected(response),
        }
    }

    /// Sends a call of a logged-in customer. After a 401 to the customer's current token, the token is removed, so that
    /// the customer logs in again before the next request.
    pub(crate) async fn send_as(
        &self,
        customer: &Mutex<Customer>,
        call: &Call,
        expected: impl FnOnce(&ApiResponse) -> CheckResult,
    ) -> RequestOutcome {
        let mut is_unauthorized = false;
        let outcome = self
            .send(call, |response| {
                is_unauthorized = response.status == 401;
                if is_unauthorized { check_rejection(response, 401) } else { expected(response) }
            })
            .await;
        if !is_unauthorized {
            return outcome;
        }
        let mut customer = lock(customer);
        if customer.token == call.token {
            customer.token = None;
            self.report().logins_after_expiry += 1;
        }
        RequestOutcome::Retryable
    }
}

/// Returns whether the response has a status of a busy service that the API contract allows for this call.
fn is_busy_response(call: &Call, response: &ApiResponse) -> bool {
    match response.status {
        429 | 503 => true,
        504 => !call.never_times_out,
        _ => false,
    }
}

fn is_retryable_rejection(response: &ApiResponse) -> CheckResult {
    check_rejection(response, response.status)?;
    check(
        "a rejection with 429 or 503 has Retry-After",
        response.status == 504 || response.header("retry-after").is_some(),
    )
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
