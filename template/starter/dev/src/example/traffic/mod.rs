//! Requests of simulated customers: they create and read notes, repeat requests and send invalid ones.
pub(crate) mod memory;

use std::sync::{Mutex, atomic::Ordering};

use rand::{RngExt, rngs::StdRng};
use serde_json::json;
use uuid::Uuid;

use self::memory::CreatedNote;
use crate::traffic::{
    api::Call,
    customer::Customer,
    expectations::{check, check_page, check_rejection, check_status, text},
    request::{ApiRequest, RequestOutcome, lock},
};

const PATH: &str = "/v1/notes";
const PAGE: usize = 5;

/// Sends one request without a session, which the service must reject.
pub(crate) async fn browse(request: &ApiRequest<'_>) {
    if let RequestOutcome::Expected(_) =
        request.send(&Call::get(PATH), |response| check_rejection(response, 401)).await
    {
        request.report().rejections += 1;
    }
}

/// Sends one request of a customer who is logged in. One kind of invalid request reads the last note of
/// `other_customer`, or requests a random id if there is no such note.
pub(crate) async fn act(
    request: &ApiRequest<'_>,
    customer: &Mutex<Customer>,
    other_customer: Option<&Mutex<Customer>>,
    mut rng: StdRng,
) {
    let (token, last) = {
        let customer = lock(customer);
        (customer.token.clone().unwrap_or_default(), customer.memory.last.clone())
    };
    match (rng.random_range(0..10), last) {
        (0..4, _) | (_, None) => create(request, customer, &token).await,
        (4..6, Some(last)) => read(request, customer, &token, &last.id).await,
        (6..8, _) => list(request, customer, &token).await,
        (8, Some(last)) => repeat(request, customer, &token, last).await,
        (_, Some(_)) => {
            let foreign_id =
                other_customer.and_then(|other_customer| lock(other_customer).memory.last.clone());
            let foreign_id = foreign_id.map_or_else(new_key, |note| note.id);
            invalid_request(request, customer, &token, &foreign_id, rng.random_range(0..4)).await;
        }
    }
}

async fn create(request: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str) {
    let number = request.shared.names.fetch_add(1, Ordering::Relaxed);
    let call =
        Call::post(PATH, &json!({ "name": format!("Note {number}") })).with_token(token).with_key(&new_key());
    let outcome = request
        .send_as(customer, &call, |response| {
            check_status(response, 201)?;
            check("a new note is not a replay", !response.is_replayed())?;
            check("a new note has an id", !text(&response.body, "id").is_empty())
        })
        .await;
    if let RequestOutcome::Expected(response) = outcome {
        request.report().counts.created += 1;
        let id = text(&response.body, "id").to_owned();
        lock(customer).memory.last = Some(CreatedNote { id, call, response: response.text });
    }
}

async fn read(request: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str, id: &str) {
    request
        .send_as(customer, &Call::get(format!("{PATH}/{id}")).with_token(token), |response| {
            check_status(response, 200)?;
            check("the response is the requested note", text(&response.body, "id") == id)
        })
        .await;
}

async fn list(request: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str) {
    let call = Call::get(format!("{PATH}?limit={PAGE}")).with_token(token);
    request.send_as(customer, &call, |response| check_page(response, PAGE)).await;
}

/// Repeats the request that created this note, with the same idempotency key.
async fn repeat(request: &ApiRequest<'_>, customer: &Mutex<Customer>, token: &str, last: CreatedNote) {
    let outcome = request
        .send_as(customer, &last.call.with_token(token), |response| {
            check_status(response, 201)?;
            check("a replay is marked as a replay", response.is_replayed())?;
            check("a replay has the bytes of the first response", response.text == last.response)
        })
        .await;
    if let RequestOutcome::Expected(_) = outcome {
        request.report().replays += 1;
    }
}

/// Sends a request that the service must reject.
async fn invalid_request(
    request: &ApiRequest<'_>,
    customer: &Mutex<Customer>,
    token: &str,
    foreign_id: &str,
    which: u32,
) {
    let create = |body| Call::post(PATH, &body).with_token(token);
    let (call, status) = match which {
        0 => (create(json!({ "name": "" })).with_key(&new_key()), 422),
        1 => (create(json!({ "name": "Without a key" })), 400),
        2 => (Call::get(format!("{PATH}/{foreign_id}")).with_token(token), 404),
        _ => (Call::get(format!("{PATH}?limit=101")).with_token(token), 400),
    };
    if let RequestOutcome::Expected(_) =
        request.send_as(customer, &call, |response| check_rejection(response, status)).await
    {
        request.report().rejections += 1;
    }
}

fn new_key() -> String {
    Uuid::now_v7().to_string()
}
