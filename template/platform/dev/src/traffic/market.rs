//! Where customers and the service meet: who comes, what is asked, and what is promised about it.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use uuid::Uuid;

use super::{
    Settings,
    api::{Answer, Api, Call},
    report::{Report, Unexpected},
};

const PATH: &str = "/v1/{{resource_plural}}";

/// Between two registrations. The service counts those of one address, and this is the only address.
const AT_THE_DOOR: Duration = Duration::from_millis(2500);

/// Somebody who is logged in.
#[derive(Debug, Clone)]
struct Customer {
    token: String,
    /// What they created last, and how: to read it, and to repeat themselves.
    last: Option<(String, Call, String)>,
}

/// The service as its customers know it.
pub(super) struct Market {
    api: Api,
    seed: u64,
    most_customers: usize,
    customers: Mutex<Vec<Customer>>,
    door_opens: Mutex<Instant>,
    report: Mutex<Report>,
}

impl Market {
    pub(super) fn open(settings: Settings) -> Result<Self, reqwest::Error> {
        Ok(Self {
            api: Api::new(settings.api)?,
            seed: settings.seed,
            most_customers: settings.customers.max(1),
            customers: Mutex::default(),
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
        let inside = lock(&self.customers).len();
        if self.door_is_open(inside) {
            return self.register().await;
        }
        if inside == 0 {
            return;
        }
        let index = rng.random_range(0..inside);
        let Some(customer) = lock(&self.customers).get(index).cloned() else { return };
        match (rng.random_range(0..10), customer.last.clone()) {
            (0..=3, _) | (_, None) => self.create(index, &customer).await,
            (4..=5, Some((id, ..))) => {
                self.ask(&Call::get(format!("{PATH}/{id}")).by(&customer.token), 200).await;
            }
            (6..=7, _) => {
                self.ask(&Call::get(PATH).by(&customer.token), 200).await;
            }
            (8, Some((_, call, text))) => self.repeat(&call, &text).await,
            (_, Some(_)) => self.blunder(&customer, rng.random_range(0..4)).await,
        }
    }

    fn door_is_open(&self, inside: usize) -> bool {
        let mut door_opens = lock(&self.door_opens);
        let open = inside < self.most_customers && Instant::now() >= *door_opens;
        if open {
            *door_opens = Instant::now() + AT_THE_DOOR;
        }
        open
    }

    async fn register(&self) {
        let name = Uuid::now_v7().simple().to_string();
        let (email, password) = (format!("traffic-{name}@example.com"), format!("open sesame {name}"));
        let registration = json!({ "email": email, "password": password, "name": "Traffic" });
        if self.ask(&Call::post("/v1/users", &registration), 201).await.is_none() {
            return;
        }
        let credentials = json!({ "email": email, "password": password });
        let Some(session) = self.ask(&Call::post("/v1/sessions", &credentials), 201).await else { return };
        let token = session.body.get("token").and_then(|token| token.as_str()).unwrap_or_default().to_owned();
        lock(&self.customers).push(Customer { token, last: None });
        lock(&self.report).customers += 1;
    }

    async fn create(&self, index: usize, customer: &Customer) {
        let key = Uuid::now_v7().to_string();
        let call = Call::post(PATH, &json!({ "name": format!("Number {key}") })).by(&customer.token).under(&key);
        let Some(created) = self.ask(&call, 201).await else { return };
        let id = created.body.get("id").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
        if let Some(customer) = lock(&self.customers).get_mut(index) {
            customer.last = Some((id, call, created.text));
        }
        lock(&self.report).created += 1;
    }

    /// The same request again has the same answer.
    async fn repeat(&self, call: &Call, first: &str) {
        let Some(again) = self.ask(call, 201).await else { return };
        if again.is_replayed() && again.text == first {
            lock(&self.report).replays += 1;
        } else {
            self.unexpected(call, &again, "the first answer, and a sign that it is not the first time");
        }
    }

    /// Something that has to be refused.
    async fn blunder(&self, customer: &Customer, which: u32) {
        let key = Uuid::now_v7().to_string();
        let create = |body| Call::post(PATH, &body).by(&customer.token);
        let (call, status) = match which {
            0 => (create(json!({ "name": "" })).under(&key), 422),
            1 => (create(json!({ "name": "Without a key" })), 400),
            2 => (Call::get(format!("{PATH}/{key}")).by(&customer.token), 404),
            _ => (Call::get(PATH), 401),
        };
        if self.ask(&call, status).await.is_some() {
            lock(&self.report).refusals += 1;
        }
    }

    /// Sends a call: its answer, if it has the status that is promised. What is not promised is counted.
    async fn ask(&self, call: &Call, promised: u16) -> Option<Answer> {
        lock(&self.report).requests += 1;
        let correlation_id = format!("traffic-{}", Uuid::now_v7().simple());
        let Some(answer) = self.api.send(call, &correlation_id).await else {
            lock(&self.report).unanswered += 1;
            return None;
        };
        if answer.status == promised && answer.header("x-correlation-id") == Some(correlation_id.as_str()) {
            return Some(answer);
        }
        if [429, 503, 504].contains(&answer.status) {
            lock(&self.report).turned_away += 1;
        } else {
            self.unexpected(call, &answer, &format!("{promised}, and the correlation id"));
        }
        None
    }

    fn unexpected(&self, call: &Call, answer: &Answer, why: &str) {
        lock(&self.report).unexpected(Unexpected {
            method: call.method.to_string(),
            path: call.path.clone(),
            status: answer.status,
            why: why.to_owned(),
            body: answer.text.clone(),
            correlation_id: answer.header("x-correlation-id").unwrap_or_default().to_owned(),
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
