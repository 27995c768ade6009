//! A user of the service, with a session.
use std::{ops::Deref, sync::Arc};

use serde_json::json;
use uuid::Uuid;

use super::{
    MUG, Order,
    answer::Answer,
    client::{Api, Client, Request},
    database::Database,
};

/// Everybody's.
pub const PASSWORD: &str = "correct horse battery staple";

/// Somebody who is logged in. Their requests are those of the [`Client`] in them.
#[derive(Debug, Clone)]
pub struct User {
    client: Client,
    database: Arc<Database>,
    pub id: Uuid,
    pub email: String,
    pub token: String,
}

impl Deref for User {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl User {
    /// Logs in.
    pub(super) async fn log_in(nobody: &Client, database: &Arc<Database>, email: &str) -> Self {
        let credentials = json!({ "email": email, "password": PASSWORD });
        let session = nobody.post("/v1/sessions").json(&credentials).await.is(201);
        let token = session.text("token");
        let id = session.json()["user"]["id"].as_str().unwrap_or_default().parse();
        Self {
            client: nobody.with_token(&token),
            database: Arc::clone(database),
            id: id.unwrap_or_else(|error| panic!("{error}: {session}")),
            email: email.to_owned(),
            token,
        }
    }

    pub(super) fn at(&self, api: &Arc<Api>) -> Self {
        Self { client: self.client.at(api), ..self.clone() }
    }

    /// An order of these products and quantities, under a new key; not sent yet.
    pub fn orders(&self, items: &[(&str, i64)]) -> Request {
        let items: Vec<_> = items
            .iter()
            .map(|(product, quantity)| json!({ "product_id": product, "quantity": quantity }))
            .collect();
        self.post("/v1/orders").json(&json!({ "items": items })).new_key()
    }

    /// Places an order of two mugs, for 25.80 EUR.
    pub async fn places_an_order(&self) -> Order {
        self.places(&[(MUG, 2)]).await
    }

    /// Places an order of these products and quantities.
    pub async fn places(&self, items: &[(&str, i64)]) -> Order {
        let placed = self.orders(items).await.is(201);
        Order::new(self.clone(), Arc::clone(&self.database), &placed)
    }

    /// Pays an order under a new key.
    pub async fn pays(&self, order: &Order, payment_method: &str) -> Answer {
        self.pay(order.id, payment_method).await
    }

    /// A payment of an order under a new key; not sent yet.
    pub fn pay(&self, order: Uuid, payment_method: &str) -> Request {
        let body = json!({ "payment_method": payment_method });
        self.post(format!("/v1/orders/{order}/payments")).json(&body).new_key()
    }

    /// A refund of a payment under a new key; not sent yet. Without an amount it is of all that is left.
    pub fn refund(&self, payment: Uuid, amount: Option<i64>) -> Request {
        let body = amount.map_or_else(|| json!({}), |amount| json!({ "amount": amount }));
        self.post(format!("/v1/payments/{payment}/refunds")).json(&body).new_key()
    }
}
