//! One request of one customer: sending it, and counting the response.
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::{
    api::{Api, ApiResponse, Call},
    customer::Customer,
    expectations::{CheckResult, is_refused, keeps},
    report::{Report, UnexpectedResponse},
};
use crate::example::traffic::memory::Shared;

/// The outcome of a request.
pub(crate) enum RequestOutcome {
    /// The response that the API contract promises.
    Promised(ApiResponse),
    /// No response, or a response that requests a retry. The effect is unknown, and the same request may be retried.
    ComeAgain,
    /// A response that violates the API contract. The response is counted, and the request is not retried.
    Wrong,
}

/// One request in flight.
pub(crate) struct ApiRequest<'a> {
    /// Memory shared by all customers.
    pub(crate) shared: &'a Shared,
    api: &'a Api,
    report: &'a Mutex<Report>,
    correlation_id: String,
}

impl<'a> ApiRequest<'a> {
    pub(super) fn new(shared: &'a Shared, api: &'a Api, report: &'a Mutex<Report>) -> Self {
        let correlation_id = format!("traffic-{}", Uuid::now_v7().simple());
        Self { shared, api, report, correlation_id }
    }

    pub(crate) fn report(&self) -> MutexGuard<'_, Report> {
        lock(self.report)
    }

    /// Sends a call and counts its outcome. `promised` returns the violation of a response. It does not see missing
    /// responses or the responses of a busy service.
    pub(crate) async fn ask(
        &self,
        call: &Call,
        promised: impl FnOnce(&ApiResponse) -> CheckResult,
    ) -> RequestOutcome {
        self.report().requests += 1;
        let Some(answer) = self.api.send(call, &self.correlation_id).await else {
            self.report().unanswered += 1;
            return RequestOutcome::ComeAgain;
        };
        let turned_away = turns_away(call, &answer);
        let kept = keeps(
            "the response has the correlation id",
            answer.header("x-correlation-id") == Some(self.correlation_id.as_str()),
        )
        .and_then(|()| if turned_away { is_refused_for_now(&answer) } else { promised(&answer) });
        match kept {
            Err(why) => {
                self.report().unexpected(UnexpectedResponse {
                    method: call.method.to_string(),
                    path: call.path.clone(),
                    status: answer.status,
                    why,
                    body: answer.text,
                    correlation_id: self.correlation_id.clone(),
                });
                RequestOutcome::Wrong
            }
            Ok(()) if turned_away => {
                self.report().turned_away += 1;
                RequestOutcome::ComeAgain
            }
            Ok(()) => RequestOutcome::Promised(answer),
        }
    }

    /// Sends a call of a logged-in customer. A session may end at any time. In that case the customer logs in again
    /// before anything else, and the request may be retried.
    pub(crate) async fn ask_as(
        &self,
        customer: &Mutex<Customer>,
        call: &Call,
        promised: impl FnOnce(&ApiResponse) -> CheckResult,
    ) -> RequestOutcome {
        let mut ended = false;
        let came = self
            .ask(call, |answer| {
                ended = answer.status == 401;
                if ended { is_refused(answer, 401) } else { promised(answer) }
            })
            .await;
        if !ended {
            return came;
        }
        let mut customer = lock(customer);
        if customer.token == call.token {
            customer.token = None;
            self.report().sessions_renewed += 1;
        }
        RequestOutcome::ComeAgain
    }
}

/// Returns whether a busy service may give this response to this call.
fn turns_away(call: &Call, answer: &ApiResponse) -> bool {
    match answer.status {
        429 | 503 => true,
        504 => !call.never_times_out,
        _ => false,
    }
}

fn is_refused_for_now(answer: &ApiResponse) -> CheckResult {
    is_refused(answer, answer.status)?;
    keeps(
        "a retryable rejection has Retry-After",
        answer.status == 504 || answer.header("retry-after").is_some(),
    )
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
