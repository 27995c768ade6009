//! The table of who may do what: every route, and what is asked of it.
use dev::harness::{Client, LAMP, MUG, PASSWORD, Request, User};
use serde_json::json;
use uuid::Uuid;

/// What stands for as long as the test does: a payment of the customer.
pub(super) struct Standing {
    payment: Uuid,
}

impl Standing {
    pub(super) async fn of(customer: &User) -> Self {
        Self { payment: customer.places_an_order().await.is_paid().await }
    }

    /// What one request is about, with an order of its own.
    pub(super) async fn subject(&self, owner: &User, email: String) -> Subject {
        Subject { order: owner.places_an_order().await.id, payment: self.payment, email }
    }
}

/// Where an auditor may change nothing.
pub(super) const FORBIDDEN_TO_AUDITORS: [&str; 3] =
    ["/v1/orders", "/v1/products", "/v1/payments/01900000-0000-7000-8000-000000000009/refunds"];

/// What the requests of the table are about.
pub(super) struct Subject {
    /// An unpaid order of the customer.
    order: Uuid,
    /// A payment of another order of the customer.
    payment: Uuid,
    email: String,
}

pub(super) type Ask = fn(&Client, &Subject) -> Request;

/// Every route, and how it answers to each of [`EVERYBODY`](super::EVERYBODY) if the request is otherwise in order.
#[rustfmt::skip]
pub(super) const ROUTES: [(&str, &str, Ask, [u16; 5]); 18] = [
    //                                                  nobody customer support auditor admin
    ("POST",   "/v1/users",                 register,       [201, 201, 201, 201, 201]),
    ("POST",   "/v1/sessions",              log_in,         [201, 201, 201, 201, 201]),
    ("DELETE", "/v1/sessions/current",      log_out,        [401, 204, 204, 204, 204]),
    ("GET",    "/v1/me",                    who_am_i,       [401, 200, 200, 200, 200]),
    ("PUT",    "/v1/me/password",           new_password,   [401, 204, 204, 204, 204]),
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
    // The gateway has no session: it signs.
    ("POST",   "/v1/gateway/events",        unsigned_event, [400, 400, 400, 400, 400]),
    ("GET",    "/v1/audit-events",          read_trail,     [401, 403, 403, 200, 200]),
];

fn register(by: &Client, _: &Subject) -> Request {
    let email = format!("{}@example.com", Uuid::now_v7().simple());
    by.post("/v1/users").json(&json!({ "email": email, "password": PASSWORD, "name": "Grace" }))
}

fn log_in(by: &Client, subject: &Subject) -> Request {
    by.post("/v1/sessions").json(&json!({ "email": subject.email, "password": PASSWORD }))
}

fn log_out(by: &Client, _: &Subject) -> Request {
    by.delete("/v1/sessions/current")
}

fn who_am_i(by: &Client, _: &Subject) -> Request {
    by.get("/v1/me")
}

fn new_password(by: &Client, _: &Subject) -> Request {
    by.put("/v1/me/password").json(&json!({ "current_password": PASSWORD, "new_password": PASSWORD }))
}

fn list_products(by: &Client, _: &Subject) -> Request {
    by.get("/v1/products")
}

fn show_product(by: &Client, _: &Subject) -> Request {
    by.get(format!("/v1/products/{MUG}"))
}

fn add_product(by: &Client, _: &Subject) -> Request {
    by.post("/v1/products").json(&json!({ "sku": "NEW", "name": "New", "unit_amount": 1, "currency": "EUR" }))
}

fn change_product(by: &Client, _: &Subject) -> Request {
    by.patch(format!("/v1/products/{LAMP}")).json(&json!({ "unit_amount": 2 }))
}

fn place_order(by: &Client, _: &Subject) -> Request {
    by.post("/v1/orders").json(&json!({ "items": [{ "product_id": MUG, "quantity": 1 }] })).new_key()
}

fn list_orders(by: &Client, _: &Subject) -> Request {
    by.get("/v1/orders")
}

fn show_order(by: &Client, subject: &Subject) -> Request {
    by.get(format!("/v1/orders/{}", subject.order))
}

fn cancel_order(by: &Client, subject: &Subject) -> Request {
    by.post(format!("/v1/orders/{}/cancel", subject.order))
}

fn pay_order(by: &Client, subject: &Subject) -> Request {
    let card = json!({ "payment_method": "pm_card_ok" });
    by.post(format!("/v1/orders/{}/payments", subject.order)).json(&card).new_key()
}

fn show_payment(by: &Client, subject: &Subject) -> Request {
    by.get(format!("/v1/payments/{}", subject.payment))
}

fn refund(by: &Client, subject: &Subject) -> Request {
    by.post(format!("/v1/payments/{}/refunds", subject.payment)).json(&json!({ "amount": 1 })).new_key()
}

fn unsigned_event(by: &Client, _: &Subject) -> Request {
    by.post("/v1/gateway/events").json(&json!({ "type": "charge.succeeded", "data": {} }))
}

fn read_trail(by: &Client, _: &Subject) -> Request {
    by.get("/v1/audit-events")
}
