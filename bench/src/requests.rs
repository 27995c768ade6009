//! The requests of the load.
use std::sync::Arc;

use http_body_util::Full;
use hyper::{Method, Request, body::Bytes, header};
use serde_json::json;

use crate::{
    load::Requests,
    test_bed::{PRODUCTS, order, product, token},
};

const ORDERS: &str = "/v1/orders";

fn request(
    method: Method,
    path: String,
    body: Option<String>,
    headers: &[(&str, String)],
) -> Request<Full<Bytes>> {
    let has_body = body.is_some();
    let mut request = Request::new(Full::new(body.map_or_else(Bytes::new, Bytes::from)));
    *request.method_mut() = method;
    // Paths and header values here are visible ASCII, so the conversions below cannot fail.
    if let Ok(uri) = path.try_into() {
        *request.uri_mut() = uri;
    }
    let fixed = [(header::HOST, "bench"), (header::CONTENT_TYPE, "application/json")];
    for (name, value) in fixed.into_iter().filter(|(name, _)| has_body || name != header::CONTENT_TYPE) {
        request.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (header::HeaderName::try_from(*name), value.try_into()) {
            request.headers_mut().insert(name, value);
        }
    }
    request
}

fn bearer(number: u64) -> (&'static str, String) {
    ("authorization", format!("Bearer {}", token(number)))
}

/// Maps consecutive numbers to evenly distributed numbers below `bound`.
fn scattered(number: u64, bound: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % bound
}

/// Returns the request body for an order with two lines. The number selects the products.
pub fn basket(number: u64) -> String {
    let first = scattered(number, PRODUCTS / 2);
    json!({
        "items": [
            { "product_id": product(first), "quantity": 1 },
            { "product_id": product(PRODUCTS / 2 + first), "quantity": 2 },
        ]
    })
    .to_string()
}

/// Returns requests that place orders for each customer in turn, each with its own idempotency key. The keys contain
/// `run`, so that no two runs use the same key.
pub fn place_orders(run: u64) -> Requests {
    Arc::new(move |number| {
        let key = ("idempotency-key", format!("run-{run}-order-{number}"));
        request(Method::POST, ORDERS.to_owned(), Some(basket(number)), &[bearer(number), key])
    })
}

/// Returns requests that each read one order as the customer of this order. The requests are spread over the orders
/// with the numbers `0..orders`.
pub fn read_orders(orders: u64) -> Requests {
    Arc::new(move |number| {
        // The factor is prime, so `orders` requests read every order once.
        let order_number = number * 7_919 % orders;
        request(Method::GET, format!("{ORDERS}/{}", order(order_number)), None, &[bearer(order_number)])
    })
}

/// Returns requests for the newest orders of each customer in turn.
pub fn list_orders() -> Requests {
    Arc::new(|number| request(Method::GET, ORDERS.to_owned(), None, &[bearer(number)]))
}

/// Returns `GET` requests without a token.
pub fn get(path: &'static str) -> Requests {
    Arc::new(move |_| request(Method::GET, path.to_owned(), None, &[]))
}

/// Returns a request of the customer with the number `customer`, which pays the order with the id `order`.
pub fn pay(order: &str, customer: u64) -> Request<Full<Bytes>> {
    let body = json!({ "payment_method": "pm_card_ok" }).to_string();
    let key = ("idempotency-key", format!("pay-{order}"));
    request(Method::POST, format!("/v1/orders/{order}/payments"), Some(body), &[bearer(customer), key])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_are_distinct_and_every_order_is_read_by_its_customer() {
        let place = place_orders(3);
        let keys = [0, 1].map(|number| place(number).headers()["idempotency-key"].clone());
        assert_ne!(keys[0], keys[1]);
        let mut read_ids = BTreeSet::new();
        for number in 0..10_000 {
            let read = read_orders(10_000)(number);
            let id = u64::from_str_radix(read.uri().path().rsplit('-').next().unwrap(), 16).unwrap();
            assert_eq!(read.headers()["authorization"], format!("Bearer {}", token(id)).as_str());
            read_ids.insert(id);
        }
        assert!(read_ids.into_iter().eq(0..10_000), "every order must be read once");
    }
}
