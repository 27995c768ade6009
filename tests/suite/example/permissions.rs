//! The table of permissions: the rows for the routes of products, orders and payments.
use dev::harness::{Client, LAMP, MUG, Request, User};
use serde_json::json;
use uuid::Uuid;

use crate::accounts::permissions::{Row, Subject};

/// The records that the table's requests use.
pub(crate) struct Fixtures {
    /// An unpaid order of the owner.
    order: Uuid,
    /// A payment of another order of the owner.
    payment: Uuid,
}

impl Fixtures {
    pub(crate) async fn of(owner: &User) -> Self {
        let order = owner.places_an_order().await.id;
        Self { order, payment: owner.places_an_order().await.pay_successfully().await }
    }
}

/// Some of the paths to which an auditor is not authorized to send a POST request.
pub(crate) const FORBIDDEN_TO_AUDITORS: [&str; 3] =
    ["/v1/orders", "/v1/products", "/v1/payments/01900000-0000-7000-8000-000000000009/refunds"];

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    //                                                    none customer support auditor admin
    ("GET",    "/v1/products",              list_products,  [200, 200, 200, 200, 200]),
    ("GET",    "/v1/products/{id}",         show_product,   [200, 200, 200, 200, 200]),
    ("POST",   "/v1/products",              add_product,    [401, 403, 403, 403, 201]),
    ("PATCH",  "/v1/products/{id}",         change_product, [401, 403, 403, 403, 200]),
    ("POST",   "/v1/orders",                place_order,    [401, 201, 403, 403, 403]),
    ("GET",    "/v1/orders",                list_orders,    [401, 200, 200, 403, 200]),
    ("GET",    "/v1/orders/{id}",           show_order,     [401, 200, 200, 403, 200]),
    ("POST",   "/v1/orders/{id}/cancel",    cancel_order,   [401, 200, 200, 403, 403]),
    ("POST",   "/v1/orders/{id}/payments",  pay_order,      [401, 201, 403, 403, 403]),
    ("GET",    "/v1/payments/{id}",         show_payment,   [401, 200, 200, 403, 200]),
    ("POST",   "/v1/payments/{id}/refunds", refund,         [401, 403, 201, 403, 201]),
    // The gateway signs its requests and has no session, so an unsigned request gets 400 with every role.
    ("POST",   "/v1/gateway/events",        unsigned_event, [400, 400, 400, 400, 400]),
];

fn list_products(client: &Client, _: &Subject) -> Request {
    client.get("/v1/products")
}

fn show_product(client: &Client, _: &Subject) -> Request {
    client.get(format!("/v1/products/{MUG}"))
}

fn add_product(client: &Client, _: &Subject) -> Request {
    client.post("/v1/products").json(&json!({ "sku": Uuid::now_v7().simple().to_string(), "name": "New", "unit_amount": 1, "currency": "EUR" }))
}

fn change_product(client: &Client, _: &Subject) -> Request {
    client.patch(format!("/v1/products/{LAMP}")).json(&json!({ "unit_amount": 2 }))
}

fn place_order(client: &Client, _: &Subject) -> Request {
    client.post("/v1/orders").json(&json!({ "items": [{ "product_id": MUG, "quantity": 1 }] })).new_key()
}

fn list_orders(client: &Client, _: &Subject) -> Request {
    client.get("/v1/orders")
}

fn show_order(client: &Client, subject: &Subject) -> Request {
    client.get(format!("/v1/orders/{}", subject.fixtures.order))
}

fn cancel_order(client: &Client, subject: &Subject) -> Request {
    client.post(format!("/v1/orders/{}/cancel", subject.fixtures.order))
}

fn pay_order(client: &Client, subject: &Subject) -> Request {
    let card = json!({ "payment_method": "pm_card_ok" });
    client.post(format!("/v1/orders/{}/payments", subject.fixtures.order)).json(&card).new_key()
}

fn show_payment(client: &Client, subject: &Subject) -> Request {
    client.get(format!("/v1/payments/{}", subject.fixtures.payment))
}

fn refund(client: &Client, subject: &Subject) -> Request {
    client
        .post(format!("/v1/payments/{}/refunds", subject.fixtures.payment))
        .json(&json!({ "amount": 1 }))
        .new_key()
}

fn unsigned_event(client: &Client, _: &Subject) -> Request {
    client.post("/v1/gateway/events").json(&json!({ "type": "charge.succeeded", "data": {} }))
}
