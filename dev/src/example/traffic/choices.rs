//! The next action of a customer.
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    invalid_requests::InvalidRequest,
    memory::{CompletedRequest, Memory, PayRequest, PlacedOrder, Product, State},
};

/// Number of unfinished orders at which a customer stops placing further orders.
const MAX_UNFINISHED_ORDERS: usize = 5;

/// Payment methods, and their percentages among the first payments of orders. Methods that leave the outcome unknown
/// are rare, so that the service's circuit breaker stays closed.
const PAYMENT_METHODS: [(&str, u32); 9] = [
    ("pm_card_ok", 80),
    ("pm_card_declined", 6),
    ("pm_card_expired", 4),
    ("pm_card_fraud", 2),
    ("pm_card_flaky", 3),
    ("pm_card_error", 2),
    ("pm_card_timeout", 1),
    ("pm_card_slow", 1),
    ("pm_card_error_after_charge", 1),
];

/// The next action of a customer. While an action with a [`PlacedOrder`] runs, the order is not in the customer's
/// memory, so no concurrent action can take the same order.
#[derive(Debug)]
pub(super) enum Action {
    Browse { cursor: Option<String> },
    ReadProduct(Product),
    ReadProfile,
    Place { key: String, items: Value, is_retry: bool },
    Pay { order: PlacedOrder, request: PayRequest, is_retry: bool },
    PollPayment { order: PlacedOrder, payment_id: String, request: PayRequest },
    ReadOrder(PlacedOrder),
    ListOrders { paid_only: bool },
    Cancel(PlacedOrder),
    Repeat(CompletedRequest),
    InvalidRequest(InvalidRequest),
}

impl Memory {
    /// Selects the next action of this customer. `foreign_order` is the id of another customer's order.
    pub(super) fn next(
        &mut self,
        rng: &mut StdRng,
        products: &[Product],
        foreign_order: Option<String>,
    ) -> Action {
        if products.is_empty() {
            return Action::Browse { cursor: None };
        }
        let unfinished = self.orders.iter().filter(|order| !order.state.is_finished()).count();
        let chosen = match rng.random_range(0..100) {
            0..20 => None,
            20..25 => products.choose(rng).cloned().map(Action::ReadProduct),
            25..45 if unfinished < MAX_UNFINISHED_ORDERS => Some(self.place(rng, products)),
            25..70 => self.pay(rng),
            70..75 => self.continue_payment(rng),
            75..82 => self.take_any(rng).map(Action::ReadOrder),
            82..86 => Some(Action::ListOrders { paid_only: rng.random_bool(0.5) }),
            86..87 => Some(Action::ReadProfile),
            87..89 => self.take(|state| matches!(state, State::Unpaid { .. })).map(Action::Cancel),
            89..94 => self.completed.clone().map(Action::Repeat),
            _ => self.invalid_request(rng, products, foreign_order).map(Action::InvalidRequest),
        };
        chosen.unwrap_or_else(|| Action::Browse { cursor: self.cursor.take() })
    }

    fn place(&mut self, rng: &mut StdRng, products: &[Product]) -> Action {
        match self.uncertain.pop() {
            Some((key, items)) => Action::Place { key, items, is_retry: true },
            None => Action::Place { key: new_key(), items: basket(rng, products), is_retry: false },
        }
    }

    /// Selects an unpaid order to pay, or a payment with an unknown outcome to retry or poll.
    fn pay(&mut self, rng: &mut StdRng) -> Option<Action> {
        if rng.random_bool(0.3)
            && let Some(action) = self.continue_payment(rng)
        {
            return Some(action);
        }
        let order = self.take(|state| matches!(state, State::Unpaid { .. }))?;
        // After a declined or failed payment, the customer uses a card that succeeds.
        let method = match order.state {
            State::Unpaid { declined_before: true } => "pm_card_ok",
            _ => PAYMENT_METHODS
                .choose_weighted(rng, |(_, weight)| *weight)
                .map_or("pm_card_ok", |(method, _)| method),
        };
        Some(Action::Pay { order, request: PayRequest { key: new_key(), method }, is_retry: false })
    }

    fn continue_payment(&mut self, rng: &mut StdRng) -> Option<Action> {
        let order = self.take(|state| matches!(state, State::Paying { .. }))?;
        let State::Paying { payment_id, request } = order.state.clone() else { return None };
        Some(match payment_id.filter(|_| rng.random_bool(0.6)) {
            Some(payment_id) => Action::PollPayment { order, payment_id, request },
            None => Action::Pay { order, request, is_retry: true },
        })
    }

    fn invalid_request(
        &mut self,
        rng: &mut StdRng,
        products: &[Product],
        foreign_order: Option<String>,
    ) -> Option<InvalidRequest> {
        Some(match rng.random_range(0..12) {
            0 => InvalidRequest::UnknownField(basket(rng, products)),
            1 => InvalidRequest::QuantityOfZero(products.choose(rng)?.clone()),
            2 => InvalidRequest::NoToken,
            3 => InvalidRequest::ForeignOrder(foreign_order.unwrap_or_else(new_key)),
            4 => InvalidRequest::NoKey(basket(rng, products)),
            5 => InvalidRequest::BrokenJson,
            6 => InvalidRequest::LimitTooHigh,
            7 => InvalidRequest::NoSuchRoute,
            8 => InvalidRequest::WrongMethod,
            9 => InvalidRequest::NotAllowed,
            10 => InvalidRequest::KeyReused(self.completed.clone()?),
            _ => InvalidRequest::PayTwice(self.take(|state| matches!(state, State::Paid))?),
        })
    }
}

/// Returns the items of an order: one to five products of one currency, each with a quantity.
fn basket(rng: &mut StdRng, products: &[Product]) -> Value {
    let currency = products.choose(rng).map(|product| product.currency.clone());
    let choice: Vec<_> =
        products.iter().filter(|product| Some(&product.currency) == currency.as_ref()).cloned().collect();
    let lines = rng.random_range(1..=5);
    let chosen: Vec<_> = choice.sample(rng, lines).collect();
    chosen
        .into_iter()
        .map(|product| json!({ "product_id": product.id, "quantity": rng.random_range(1..=3) }))
        .collect()
}

fn new_key() -> String {
    Uuid::now_v7().to_string()
}
