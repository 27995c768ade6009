//! A placed order and its later states.
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Database, HttpResponse, Request, User, eventually};

/// An order, together with its customer.
#[derive(Debug, Clone)]
pub struct Order {
    pub customer: User,
    database: Arc<Database>,
    pub id: Uuid,
    pub total_amount: i64,
}

impl Order {
    pub(super) fn new(customer: User, database: Arc<Database>, placed: &HttpResponse) -> Self {
        let total_amount = placed.json()["total_amount"].as_i64();
        Self {
            customer,
            database,
            id: placed.id(),
            total_amount: total_amount.unwrap_or_else(|| panic!("{placed}")),
        }
    }

    /// Returns the order's path.
    pub fn path(&self) -> String {
        format!("/v1/orders/{}", self.id)
    }

    /// Reads the order as its customer.
    pub async fn read(&self) -> Value {
        self.customer.get(self.path()).await.assert_status(200).json()
    }

    /// Reads the order's status as its customer.
    pub async fn status(&self) -> String {
        self.read().await["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the order has this status.
    pub async fn wait_until(&self, status: &str) {
        let what = format!("order {} becomes {status}", self.id);
        eventually(&what, async || (self.status().await == status).then_some(())).await;
    }

    /// Returns an unsent payment of the order, with a new idempotency key.
    pub fn pay(&self, payment_method: &str) -> Request {
        self.customer.pay(self.id, payment_method)
    }

    /// Pays the order, and returns the payment's id.
    pub async fn pay_successfully(&self) -> Uuid {
        let payment = self.pay("pm_card_ok").await.assert_status(201);
        assert_eq!(payment.text("status"), "succeeded", "{payment}");
        payment.id()
    }

    /// Returns an unsent request of the customer that cancels the order.
    pub fn cancel(&self) -> Request {
        self.customer.post(format!("{}/cancel", self.path()))
    }

    /// Returns the ids of the order's payments, oldest first.
    pub async fn payments(&self) -> Vec<Uuid> {
        let query = format!("select id from payments where order_id = '{}' order by id", self.id);
        let rows = self.database.rows(query).await;
        rows.iter().filter_map(|row| row["id"].as_str()?.parse().ok()).collect()
    }

    /// Waits until the order has a payment, and returns the id of the newest payment.
    pub async fn wait_for_payment(&self) -> Uuid {
        let what = format!("order {} has a payment", self.id);
        eventually(&what, async || self.payments().await.last().copied()).await
    }
}
