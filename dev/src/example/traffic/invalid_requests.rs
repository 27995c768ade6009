//! Deliberately invalid requests, each with the status that the API contract requires.
use std::sync::Mutex;

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::memory::{CompletedRequest, PlacedOrder, Product};
use crate::traffic::{
    api::{ApiResponse, Call},
    customer::Customer,
    expectations::{check, check_rejection, list},
    request::{ApiRequest, RequestOutcome, lock},
};

/// A deliberately invalid request.
#[derive(Debug)]
pub(super) enum InvalidRequest {
    UnknownField(Value),
    QuantityOfZero(Product),
    NoToken,
    ForeignOrder(String),
    NoKey(Value),
    BrokenJson,
    LimitTooHigh,
    NoSuchRoute,
    WrongMethod,
    NotAllowed,
    KeyReused(CompletedRequest),
    PayTwice(PlacedOrder),
}

impl ApiRequest<'_> {
    /// Sends an invalid request, and checks that it is rejected.
    pub(super) async fn invalid_request(
        &self,
        customer: &Mutex<Customer>,
        token: &str,
        invalid_request: InvalidRequest,
    ) {
        let fresh = Uuid::now_v7().to_string();
        let order = |body: &Value| Call::post("/v1/orders", body).with_token(token).with_key(&fresh);
        let (call, status) = match &invalid_request {
            InvalidRequest::UnknownField(items) => (order(&json!({ "items": items, "coupon": "FREE" })), 422),
            InvalidRequest::QuantityOfZero(product) => {
                (order(&json!({ "items": [{ "product_id": product.id, "quantity": 0 }] })), 422)
            }
            InvalidRequest::NoToken => (Call::get("/v1/orders"), 401),
            InvalidRequest::ForeignOrder(id) => {
                (Call::get(format!("/v1/orders/{id}")).with_token(token), 404)
            }
            InvalidRequest::NoKey(items) => (Call { key: None, ..order(&json!({ "items": items })) }, 400),
            InvalidRequest::BrokenJson => {
                (Call { body: Some("{\"items\":".to_owned()), ..order(&Value::Null) }, 400)
            }
            InvalidRequest::LimitTooHigh => (Call::get("/v1/orders?limit=101").with_token(token), 400),
            InvalidRequest::NoSuchRoute => (Call::get("/v1/wishes"), 404),
            InvalidRequest::WrongMethod => {
                (Call { method: Method::DELETE, ..Call::get("/v1/products") }, 405)
            }
            InvalidRequest::NotAllowed => {
                let product = json!({ "sku": fresh, "name": "Mine", "unit_amount": 1, "currency": "EUR" });
                (Call::post("/v1/products", &product).with_token(token).with_key(&fresh), 403)
            }
            InvalidRequest::KeyReused(completed) => {
                let other = json!({ "something": "else" }).to_string();
                (Call { body: Some(other), ..completed.call.clone().with_token(token) }, 422)
            }
            InvalidRequest::PayTwice(paid) => {
                let card = json!({ "payment_method": "pm_card_ok" });
                (
                    Call::post(format!("/v1/orders/{}/payments", paid.id), &card)
                        .with_token(token)
                        .with_key(&fresh),
                    409,
                )
            }
        };
        let must_name_field =
            matches!(invalid_request, InvalidRequest::UnknownField(_) | InvalidRequest::QuantityOfZero(_));
        let expected = |response: &ApiResponse| {
            check_rejection(response, status)?;
            check(
                "the rejection names the field",
                !must_name_field || !list(&response.body, "errors").is_empty(),
            )
        };
        let outcome = match status {
            401 => self.send(&call, expected).await,
            _ => self.send_as(customer, &call, expected).await,
        };
        if let RequestOutcome::Expected(_) = outcome {
            self.report().rejections += 1;
        }
        if let InvalidRequest::PayTwice(order) = invalid_request {
            lock(customer).memory.store(order);
        }
    }
}
