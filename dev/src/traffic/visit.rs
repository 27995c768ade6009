//! One request of one customer: it is sent, and what comes back is counted.
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::{
    api::{Answer, Api, Call},
    customer::Customer,
    expectations::{Kept, is_refused, keeps},
    report::{Report, Unexpected},
};
use crate::example::traffic::memory::Shared;

/// What a request came to.
pub(crate) enum Came {
    /// The answer that the contract promises.
    Promised(Answer),
    /// None, or one that asks to come again: what was done is not known, and the same request may be repeated.
    ComeAgain,
    /// One that the contract does not promise. It is counted, and the matter is left alone.
    Wrong,
}

/// One request under way.
pub(crate) struct Visit<'a> {
    /// What all customers know.
    pub(crate) shared: &'a Shared,
    api: &'a Api,
    report: &'a Mutex<Report>,
    correlation_id: String,
}

impl<'a> Visit<'a> {
    pub(super) fn new(shared: &'a Shared, api: &'a Api, report: &'a Mutex<Report>) -> Self {
        let correlation_id = format!("traffic-{}", Uuid::now_v7().simple());
        Self { shared, api, report, correlation_id }
    }

    pub(crate) fn report(&self) -> MutexGuard<'_, Report> {
        lock(self.report)
    }

    /// Sends a call and counts what came. `promised` says what is wrong with an answer that is neither missing
    /// nor one of those by which a busy service turns everybody away.
    pub(crate) async fn ask(&self, call: &Call, promised: impl FnOnce(&Answer) -> Kept) -> Came {
        self.report().requests += 1;
        let Some(answer) = self.api.send(call, &self.correlation_id).await else {
            self.report().unanswered += 1;
            return Came::ComeAgain;
        };
        let turned_away = turns_away(call, &answer);
        let kept = keeps(
            "the correlation id comes back",
            answer.header("x-correlation-id") == Some(self.correlation_id.as_str()),
        )
        .and_then(|()| if turned_away { is_refused_for_now(&answer) } else { promised(&answer) });
        match kept {
            Err(why) => {
                self.report().unexpected(Unexpected {
                    method: call.method.to_string(),
                    path: call.path.clone(),
                    status: answer.status,
                    why,
                    body: answer.text,
                    correlation_id: self.correlation_id.clone(),
                });
                Came::Wrong
            }
            Ok(()) if turned_away => {
                self.report().turned_away += 1;
                Came::ComeAgain
            }
            Ok(()) => Came::Promised(answer),
        }
    }

    /// The same for a customer who is logged in. A session may end at any time; then the customer logs in again
    /// before anything else, and the request may be repeated.
    pub(crate) async fn ask_as(
        &self,
        customer: &Mutex<Customer>,
        call: &Call,
        promised: impl FnOnce(&Answer) -> Kept,
    ) -> Came {
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
        Came::ComeAgain
    }
}

/// Returns whether a busy service may answer this call so.
fn turns_away(call: &Call, answer: &Answer) -> bool {
    match answer.status {
        429 | 503 => true,
        504 => !call.never_times_out,
        _ => false,
    }
}

fn is_refused_for_now(answer: &Answer) -> Kept {
    is_refused(answer, answer.status)?;
    keeps("it says when to come again", answer.status == 504 || answer.header("retry-after").is_some())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
