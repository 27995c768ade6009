//! What customers do: they browse, order, pay, change their mind and make mistakes.
//!
//! - [`memory`]: what customers remember, what all of them know, and what they have achieved
//! - [`choices`]: what a customer does next
//! - [`shopping`], [`paying`], [`blunders`]: what customers do, each with what is promised about it
//! - [`expectations`]: the promises that several of them share
mod blunders;
mod choices;
mod expectations;
pub(crate) mod memory;
mod paying;
mod shopping;

use std::sync::Mutex;

use rand::rngs::StdRng;

use crate::traffic::{
    customer::Customer,
    visit::{Visit, lock},
};

/// Sends one request of somebody without a session.
pub(crate) async fn look_around(visit: &Visit<'_>) {
    visit.browse(None, None).await;
}

/// Sends one request of a customer who is logged in. `stranger` is another one.
pub(crate) async fn act(
    visit: &Visit<'_>,
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
