//! The state of each customer, the state shared by all customers, and the counts of orders and payments.
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Mutex,
};

use rand::{RngExt, rngs::StdRng};
use serde::Serialize;
use serde_json::Value;

use crate::traffic::api::Call;

/// Number of orders above which [`Memory::store`] removes the customer's least recently used finished order. `store`
/// removes no unfinished order, so a customer can have more orders.
const MAX_ORDERS: usize = 12;

/// A product for sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Product {
    pub(super) id: String,
    pub(super) currency: String,
}

/// A placed order.
#[derive(Debug, Clone)]
pub(super) struct PlacedOrder {
    pub(super) id: String,
    pub(super) total_amount: i64,
    pub(super) currency: String,
    pub(super) state: State,
}

/// The progress of an order.
#[derive(Debug, Clone)]
pub(super) enum State {
    Unpaid {
        declined_before: bool,
    },
    /// The outcome of the payment is unknown. The customer can retry the same request, or poll the payment if a
    /// response contained the payment's id.
    Paying {
        payment_id: Option<String>,
        request: PayRequest,
    },
    Paid,
    Cancelled,
}

impl State {
    pub(super) fn is_finished(&self) -> bool {
        matches!(self, Self::Paid | Self::Cancelled)
    }
}

/// A payment request that can be retried unmodified.
#[derive(Debug, Clone)]
pub(super) struct PayRequest {
    pub(super) key: String,
    pub(super) method: &'static str,
}

/// A request that created a resource, and its response.
#[derive(Debug, Clone)]
pub(super) struct CompletedRequest {
    pub(super) call: Call,
    pub(super) status: u16,
    pub(super) body: Value,
}

/// The state of one customer.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The cursor of the next page of products.
    pub(super) cursor: Option<String>,
    pub(super) orders: VecDeque<PlacedOrder>,
    /// Idempotency key and items of each order whose placement is not confirmed and can be retried.
    pub(super) uncertain: Vec<(String, Value)>,
    pub(super) completed: Option<CompletedRequest>,
}

impl Memory {
    /// Stores an order, and removes the least recently used finished order above [`MAX_ORDERS`].
    pub(super) fn store(&mut self, order: PlacedOrder) {
        self.orders.push_back(order);
        if self.orders.len() > MAX_ORDERS
            && let Some(finished) = self.orders.iter().position(|order| order.state.is_finished())
        {
            self.orders.remove(finished);
        }
    }

    pub(super) fn take(&mut self, matches: impl Fn(&State) -> bool) -> Option<PlacedOrder> {
        let position = self.orders.iter().position(|order| matches(&order.state))?;
        self.orders.remove(position)
    }

    pub(super) fn take_any(&mut self, rng: &mut StdRng) -> Option<PlacedOrder> {
        if self.orders.is_empty() {
            return None;
        }
        self.orders.remove(rng.random_range(0..self.orders.len()))
    }
}

/// The state shared by all customers: the products for sale.
#[derive(Debug, Default)]
pub(crate) struct SharedMemory {
    pub(super) products: Mutex<BTreeMap<String, Product>>,
}

/// Numbers of orders and payments of all customers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub orders: u64,
    pub cancelled: u64,
    pub payments: Payments,
}

/// Payments by their last known state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Payments {
    pub succeeded: u64,
    pub declined: u64,
    pub failed: u64,
    /// Payments whose last response had the status `processing`.
    pub processing: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { orders, cancelled, payments: Payments { succeeded, declined, failed, processing } } = self;
        write!(
            formatter,
            "{orders} orders ({cancelled} cancelled); payments: {succeeded} succeeded, {declined} declined, \
             {failed} failed, {processing} processing"
        )
    }
}
