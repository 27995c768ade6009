//! The actions of customers: they browse, order, pay, cancel and make mistakes.
//!
//! - [`memory`]: memory of each customer, memory shared by all customers, and the results
//! - [`choices`]: the next action of a customer
//! - [`shopping`], [`paying`], [`blunders`]: the actions, each with its part of the API contract
//! - [`expectations`]: the parts of the API contract that several actions share
mod choices;
mod expectations;
mod invalid_requests;
pub(crate) mod memory;
mod paying;
mod shopping;

use std::sync::Mutex;

use rand::rngs::StdRng;

use crate::traffic::{
    customer::Customer,
    request::{ApiRequest, lock},
};

/// Sends one request without a session.
pub(crate) async fn look_around(visit: &ApiRequest<'_>) {
    visit.browse(None, None).await;
}

/// Sends one request of a logged-in customer. `stranger` is another customer.
pub(crate) async fn act(
    visit: &ApiRequest<'_>,
    customer: &Mutex<Customer>,
    stranger: Option<&Mutex<Customer>>,
    mut rng: StdRng,
) {
    let products: Vec<_> = lock(&visit.shared.products).values().cloned().collect();
    let strangers_order =
        stranger.and_then(|stranger| lock(stranger).memory.orders.front().map(|order| order.id.clone()));
    let (action, token) = {
        let mut customer = lock(customer);
        let token = customer.token.clone().unwrap_or_default();
        (customer.memory.next(&mut rng, &products, strangers_order), token)
    };
    visit.carry_out(customer, &token, action).await;
}
