//! An order that somebody placed, and what becomes of it.
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Answer, Database, Request, User, eventually};

/// An order in its customer's hands.
#[derive(Debug, Clone)]
pub struct Order {
    pub customer: User,
    database: Arc<Database>,
    pub id: Uuid,
    pub total_amount: i64,
}

impl Order {
    pub(super) fn new(customer: User, database: Arc<Database>, placed: &Answer) -> Self {
        let total_amount = placed.json()["total_amount"].as_i64();
        Self {
            customer,
            database,
            id: placed.id(),
            total_amount: total_amount.unwrap_or_else(|| panic!("{placed}")),
        }
    }

    /// Where it is.
    pub fn path(&self) -> String {
        format!("/v1/orders/{}", self.id)
    }

    /// As its customer sees it.
    pub async fn read(&self) -> Value {
        self.customer.get(self.path()).await.is(200).json()
    }

    /// Its status, as its customer sees it.
    pub async fn status(&self) -> String {
        self.read().await["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until it has this status.
    pub async fn becomes(&self, status: &str) {
        let what = format!("order {} becomes {status}", self.id);
        eventually(&what, async || (self.status().await == status).then_some(())).await;
    }

    /// A payment under a new key; not sent yet.
    pub fn pay(&self, payment_method: &str) -> Request {
        self.customer.pay(self.id, payment_method)
    }

    /// Pays it, and returns the payment's id.
    pub async fn is_paid(&self) -> Uuid {
        let payment = self.pay("pm_card_ok").await.is(201);
        assert_eq!(payment.text("status"), "succeeded", "{payment}");
        payment.id()
    }

    /// Its customer's cancellation.
    pub fn cancel(&self) -> Request {
        self.customer.post(format!("{}/cancel", self.path()))
    }

    /// The ids of its payments, oldest first.
    pub async fn payments(&self) -> Vec<Uuid> {
        let query = format!("select id from payments where order_id = '{}' order by id", self.id);
        let rows = self.database.rows(query).await;
        rows.iter().filter_map(|row| row["id"].as_str()?.parse().ok()).collect()
    }

    /// Waits until it has a payment, and returns its id.
    pub async fn has_a_payment(&self) -> Uuid {
        let what = format!("order {} has a payment", self.id);
        eventually(&what, async || self.payments().await.last().copied()).await
    }
}
