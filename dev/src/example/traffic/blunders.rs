//! Deliberately invalid requests, each with the error that the API contract promises.
use std::sync::Mutex;

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::memory::{Answered, Placed, Product};
use crate::traffic::{
    api::{Answer, Call},
    customer::Customer,
    expectations::{is_refused, keeps, list},
    visit::{Came, Visit, lock},
};

/// A deliberately invalid request.
#[derive(Debug)]
pub(super) enum Blunder {
    UnknownField(Value),
    QuantityOfZero(Product),
    NoToken,
    SomebodyElsesOrder(String),
    NoKey(Value),
    BrokenJson,
    LimitTooHigh,
    NoSuchRoute,
    WrongMethod,
    NotAllowed,
    KeyReused(Answered),
    PayTwice(Placed),
}

impl Visit<'_> {
    /// Sends an invalid request, and checks that it is rejected.
    pub(super) async fn blunder(&self, customer: &Mutex<Customer>, token: &str, blunder: Blunder) {
        let fresh = Uuid::now_v7().to_string();
        let order = |body: &Value| Call::post("/v1/orders", body).by(token).under(&fresh);
        let (call, status) = match &blunder {
            Blunder::UnknownField(items) => (order(&json!({ "items": items, "coupon": "FREE" })), 422),
            Blunder::QuantityOfZero(product) => {
                (order(&json!({ "items": [{ "product_id": product.id, "quantity": 0 }] })), 422)
            }
            Blunder::NoToken => (Call::get("/v1/orders"), 401),
            Blunder::SomebodyElsesOrder(id) => (Call::get(format!("/v1/orders/{id}")).by(token), 404),
            Blunder::NoKey(items) => (Call { key: None, ..order(&json!({ "items": items })) }, 400),
            Blunder::BrokenJson => {
                (Call { body: Some("{\"items\":".to_owned()), ..order(&Value::Null) }, 400)
            }
            Blunder::LimitTooHigh => (Call::get("/v1/orders?limit=101").by(token), 400),
            Blunder::NoSuchRoute => (Call::get("/v1/wishes"), 404),
            Blunder::WrongMethod => (Call { method: Method::DELETE, ..Call::get("/v1/products") }, 405),
            Blunder::NotAllowed => {
                let product = json!({ "sku": fresh, "name": "Mine", "unit_amount": 1, "currency": "EUR" });
                (Call::post("/v1/products", &product).by(token).under(&fresh), 403)
            }
            Blunder::KeyReused(answered) => {
                let other = json!({ "something": "else" }).to_string();
                (Call { body: Some(other), ..answered.call.clone().by(token) }, 422)
            }
            Blunder::PayTwice(paid) => {
                let card = json!({ "payment_method": "pm_card_ok" });
                (Call::post(format!("/v1/orders/{}/payments", paid.id), &card).by(token).under(&fresh), 409)
            }
        };
        let names_the_field = matches!(blunder, Blunder::UnknownField(_) | Blunder::QuantityOfZero(_));
        let promised = |answer: &Answer| {
            is_refused(answer, status)?;
            keeps("the refusal names the field", !names_the_field || !list(&answer.body, "errors").is_empty())
        };
        let came = match status {
            401 => self.ask(&call, promised).await,
            _ => self.ask_as(customer, &call, promised).await,
        };
        if let Came::Promised(_) = came {
            self.report().refusals += 1;
        }
        if let Blunder::PayTwice(order) = blunder {
            lock(customer).memory.remember(order);
        }
    }
}
