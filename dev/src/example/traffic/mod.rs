//! The actions of customers, such as reading, ordering, paying, cancelling, and sending invalid requests.
//!
//! - [`memory`]: the state of each customer, the state shared by all customers, and the counts of orders and payments
//! - [`choices`]: the next action of a customer
//! - [`shopping`], [`paying`], [`invalid_requests`]: the actions, each with the checks of its responses
//! - [`expectations`]: rules of the API contract for products, orders and payments
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

/// Requests the first page of products without a session.
pub(crate) async fn browse(request: &ApiRequest<'_>) {
    request.browse(None, None).await;
}

/// Sends one request of a logged-in customer. `other_customer` is a customer whose order an invalid request may name.
pub(crate) async fn act(
    request: &ApiRequest<'_>,
    customer: &Mutex<Customer>,
    other_customer: Option<&Mutex<Customer>>,
    mut rng: StdRng,
) {
    let products: Vec<_> = lock(&request.shared.products).values().cloned().collect();
    let foreign_order = other_customer
        .and_then(|other_customer| lock(other_customer).memory.orders.front().map(|order| order.id.clone()));
    let (action, token) = {
        let mut customer = lock(customer);
        let token = customer.token.clone().unwrap_or_default();
        (customer.memory.next(&mut rng, &products, foreign_order), token)
    };
    request.perform(customer, &token, action).await;
}
