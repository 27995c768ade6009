//! Where customers and the service meet: who comes, what is asked, and what is counted.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::{
    Settings,
    api::{Answer, Api, Call},
    customer::{Customer, Product},
    expectations::{Kept, is_refused, keeps},
    report::{Report, Unexpected},
};

/// Between two registrations or logins. The service counts those of one address, and this is the only address.
const AT_THE_DOOR: Duration = Duration::from_millis(2500);

/// The service as its customers know it.
pub(super) struct Market {
    api: Api,
    seed: u64,
    customers: Vec<Mutex<Customer>>,
    pub(super) products: Mutex<BTreeMap<String, Product>>,
    door_opens: Mutex<Instant>,
    report: Mutex<Report>,
}

/// What a request came to.
pub(super) enum Came {
    /// The answer that the contract promises.
    Promised(Answer),
    /// None, or one that asks to come again: what was done is not known, and the same request may be repeated.
    ComeAgain,
    /// One that the contract does not promise. It is counted, and the matter is left alone.
    Wrong,
}

impl Market {
    pub(super) fn open(settings: Settings) -> Result<Self, reqwest::Error> {
        Ok(Self {
            api: Api::new(settings.api)?,
            seed: settings.seed,
            customers: (0..settings.customers.max(1)).map(|_| Mutex::default()).collect(),
            products: Mutex::default(),
            door_opens: Mutex::new(Instant::now()),
            report: Mutex::default(),
        })
    }

    pub(super) fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Counts a request that was not sent because too many were under way.
    pub(super) fn crowded(&self) {
        lock(&self.report).not_sent += 1;
    }

    /// One request by one customer.
    pub(super) async fn visit(self: Arc<Self>, tick: u64) {
        let mut rng = StdRng::seed_from_u64(self.seed ^ tick.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let visit = Visit { market: &self, correlation_id: format!("traffic-{}", Uuid::now_v7().simple()) };
        if let Some(customer) = self.who_may_enter() {
            visit.enter(customer).await;
            lock(customer).at_the_door = false;
            return;
        }
        let inside: Vec<_> =
            self.customers.iter().filter(|customer| lock(customer).token.is_some()).collect();
        let chosen = (!inside.is_empty()).then(|| rng.random_range(0..inside.len()));
        let Some(customer) = chosen.and_then(|index| inside.get(index).copied()) else {
            visit.browse(None, None).await;
            return;
        };
        let products: Vec<_> = lock(&self.products).values().cloned().collect();
        let stranger = inside.iter().find(|other| !std::ptr::eq(**other, customer));
        let strangers_order =
            stranger.and_then(|stranger| lock(stranger).orders.front().map(|order| order.id.clone()));
        let (action, token) = {
            let mut customer = lock(customer);
            (customer.next(&mut rng, &products, strangers_order), customer.token.clone().unwrap_or_default())
        };
        visit.carry_out(customer, &token, action).await;
    }

    /// A customer who is to register or to log in, if it is time for one.
    fn who_may_enter(&self) -> Option<&Mutex<Customer>> {
        let mut door_opens = lock(&self.door_opens);
        if Instant::now() < *door_opens {
            return None;
        }
        let outside = self.customers.iter().find(|customer| {
            let customer = lock(customer);
            customer.token.is_none() && !customer.at_the_door
        })?;
        lock(outside).at_the_door = true;
        *door_opens = Instant::now() + AT_THE_DOOR;
        Some(outside)
    }
}

/// One request under way.
pub(super) struct Visit<'a> {
    pub(super) market: &'a Market,
    correlation_id: String,
}

impl Visit<'_> {
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        lock(&self.market.report)
    }

    /// Sends a call and counts what came. `promised` says what is wrong with an answer that is neither missing
    /// nor one of those by which a busy service turns everybody away.
    pub(super) async fn ask(&self, call: &Call, promised: impl FnOnce(&Answer) -> Kept) -> Came {
        self.report().requests += 1;
        let Some(answer) = self.market.api.send(call, &self.correlation_id).await else {
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
    pub(super) async fn ask_as(
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

/// Whether a busy service may answer this call so. A payment is never given up at the deadline: it is 202 then.
fn turns_away(call: &Call, answer: &Answer) -> bool {
    match answer.status {
        429 | 503 => true,
        504 => !call.path.ends_with("/payments"),
        _ => false,
    }
}

fn is_refused_for_now(answer: &Answer) -> Kept {
    is_refused(answer, answer.status)?;
    keeps("it says when to come again", answer.status == 504 || answer.header("retry-after").is_some())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
