//! Requests of simulated customers: they create and read notes, repeat requests and send invalid ones.
pub(crate) mod memory;

use std::sync::{Mutex, atomic::Ordering};

use rand::{RngExt, rngs::StdRng};
use serde_json::json;
use uuid::Uuid;

use self::memory::Created;
use crate::traffic::{
    api::Call,
    customer::Customer,
    expectations::{has_status, is_page, is_refused, keeps, text},
    request::{ApiRequest, RequestOutcome, lock},
};

const PATH: &str = "/v1/notes";
const PAGE: usize = 5;

/// Sends one request without a session.
pub(crate) async fn look_around(visit: &ApiRequest<'_>) {
    if let RequestOutcome::Promised(_) = visit.ask(&Call::get(PATH), |answer| is_refused(answer, 401)).await {
        visit.report().refusals += 1;
    }
}

/// Sends one request of a customer who is logged in. `stranger` is another customer.
pub(crate) async fn act(
    visit: &ApiRequest<'_>,
    customer: &Mutex<Customer>,
    stranger: Option<&Mutex<Customer>>,
    mut rng: StdRng,
) {
    let (token, last) = {
        let customer = lock(customer);
        (customer.token.clone().unwrap_or_default(), customer.memory.last.clone())
    };
    match (rng.random_range(0..10), last) {
        (0..4, _) | (_, None) => create(visit, customer, &token).await,
        (4..6, Some(last)) => read(visit, customer, &token, &last.id).await,
        (6..8, _) => list(visit, customer, &token).await,
        (8, Some(last)) => repeat(visit, customer, &token, last).await,
        (_, Some(_)) => {
            let strangers = stranger.and_then(|stranger| lock(stranger).memory.last.clone());
            let strangers = strangers.map_or_else(new_key, |note| note.id);
            blunder(visit, customer, &token, &strangers, rng.random_range(0..4)).await;
        }
    }
}

async fn create(visit: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str) {
    let number = visit.shared.names.fetch_add(1, Ordering::Relaxed);
    let call = Call::post(PATH, &json!({ "name": format!("Note {number}") })).by(token).under(&new_key());
    let came = visit
        .ask_as(customer, &call, |answer| {
            has_status(answer, 201)?;
            keeps("a new note is not a replay", !answer.is_replayed())?;
            keeps("a new note has an id", !text(&answer.body, "id").is_empty())
        })
        .await;
    if let RequestOutcome::Promised(answer) = came {
        visit.report().counts.created += 1;
        let id = text(&answer.body, "id").to_owned();
        lock(customer).memory.last = Some(Created { id, call, response: answer.text });
    }
}

async fn read(visit: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str, id: &str) {
    visit
        .ask_as(customer, &Call::get(format!("{PATH}/{id}")).by(token), |answer| {
            has_status(answer, 200)?;
            keeps("the response is the requested note", text(&answer.body, "id") == id)
        })
        .await;
}

async fn list(visit: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str) {
    let call = Call::get(format!("{PATH}?limit={PAGE}")).by(token);
    visit.ask_as(customer, &call, |answer| is_page(answer, PAGE)).await;
}

/// Repeats a request that was successful before.
async fn repeat(visit: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str, last: Created) {
    let came = visit
        .ask_as(customer, &last.call.by(token), |answer| {
            has_status(answer, 201)?;
            keeps("a replay is marked as a replay", answer.is_replayed())?;
            keeps("a replay is the first response", answer.text == last.response)
        })
        .await;
    if let RequestOutcome::Promised(_) = came {
        visit.report().replays += 1;
    }
}

/// Sends a request that the service must refuse.
async fn blunder(
    visit: &ApiRequest<'_>,
    customer: &Mutex<Customer>,
    token: &str,
    strangers: &str,
    which: u32,
) {
    let create = |body| Call::post(PATH, &body).by(token);
    let (call, status) = match which {
        0 => (create(json!({ "name": "" })).under(&new_key()), 422),
        1 => (create(json!({ "name": "Without a key" })), 400),
        2 => (Call::get(format!("{PATH}/{strangers}")).by(token), 404),
        _ => (Call::get(format!("{PATH}?limit=101")).by(token), 400),
    };
    if let RequestOutcome::Promised(_) =
        visit.ask_as(customer, &call, |answer| is_refused(answer, status)).await
    {
        visit.report().refusals += 1;
    }
}

fn new_key() -> String {
    Uuid::now_v7().to_string()
}
