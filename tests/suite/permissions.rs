//! Who may do what: every route, and everybody.
use std::collections::BTreeSet;

use dev::harness::{Client, LAMP, MUG, PASSWORD, Request, Service, User};
use serde_json::json;
use uuid::Uuid;

use crate::{openapi, service};

/// Everybody, in the order of the table's columns.
const EVERYBODY: [&str; 5] = ["nobody", "customer", "support", "auditor", "admin"];

/// What the requests of the table are about.
struct Subject {
    /// An unpaid order of the customer.
    order: Uuid,
    /// A payment of another order of the customer.
    payment: Uuid,
    email: String,
}

type Ask = fn(&Client, &Subject) -> Request;

/// Every route, and how it answers to each of [`EVERYBODY`] if the request is otherwise in order.
#[rustfmt::skip]
const ROUTES: [(&str, &str, Ask, [u16; 5]); 18] = [
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

struct People {
    customer: User,
    support: User,
    auditor: User,
    admin: User,
}

impl People {
    async fn of(service: &Service) -> Self {
        Self {
            customer: service.customer().await,
            support: service.support().await,
            auditor: service.auditor().await,
            admin: service.admin().await,
        }
    }

    fn user(&self, role: &str) -> Option<&User> {
        match role {
            "customer" => Some(&self.customer),
            "support" => Some(&self.support),
            "auditor" => Some(&self.auditor),
            "admin" => Some(&self.admin),
            _ => None,
        }
    }
}

#[tokio::test]
async fn every_route_lets_in_whom_it_should_and_nobody_else() {
    let service = service().await;
    let people = People::of(&service).await;
    let owner = &people.customer.email;
    let payment = people.customer.places_an_order().await.is_paid().await;
    let mut refused = 0;
    for (method, route, ask, expected) in ROUTES {
        for (role, expected) in EVERYBODY.into_iter().zip(expected) {
            // A new order and a new session for each, since some of the requests use them up.
            let order = service.log_in(owner).await.places_an_order().await.id;
            let (by, email) = match people.user(role) {
                Some(user) => ((*service.log_in(&user.email).await).clone(), user.email.clone()),
                None => (service.nobody(), owner.clone()),
            };
            let answer = ask(&by, &Subject { order, payment, email }).await;
            assert_eq!(answer.status, expected, "{method} {route} by {role}: {answer}");
            match expected {
                401 => {
                    let problem = answer.is_problem(401, "unauthenticated");
                    assert_eq!(problem.header("www-authenticate"), Some("Bearer"));
                }
                403 => {
                    refused += 1;
                    let _problem = answer.is_problem(403, "forbidden");
                }
                _ => {}
            }
        }
    }
    let denials =
        service.audit_events("event_type = 'authorization' and metadata ->> 'reason' = 'role'").await;
    assert_eq!(denials.len(), refused, "each refusal is audited");
    assert!(denials.iter().all(|denial| denial["result"] == "denied" && denial["user_id"].is_string()));
    service.invariants_hold().await;
}

#[tokio::test]
async fn who_may_not_is_told_so_before_anybody_looks_at_what_they_sent() {
    let service = service().await;
    let people = People::of(&service).await;
    let payment = people.customer.places_an_order().await.is_paid().await;
    let nonsense = |request: Request| request.header("content-type", "application/json").body("{");
    for path in
        ["/v1/orders".to_owned(), "/v1/products".to_owned(), format!("/v1/payments/{payment}/refunds")]
    {
        let _nobody = nonsense(service.nobody().post(&path)).await.is_problem(401, "unauthenticated");
        let _auditor = nonsense(people.auditor.post(&path)).await.is_problem(403, "forbidden");
    }
    let key = people.support.refund(payment, Some(1)).key("one-key");
    let _made = key.await.is(201);
    let _not_replayed =
        people.customer.refund(payment, Some(1)).key("one-key").await.is_problem(403, "forbidden");
}

#[test]
fn the_table_has_every_route_of_the_document() {
    let in_table: BTreeSet<_> =
        ROUTES.iter().map(|(method, route, ..)| format!("{method} {route}")).collect();
    let in_document: BTreeSet<_> =
        openapi::operations().map(|(method, route, _)| format!("{method} {route}")).collect();
    assert_eq!(in_table, in_document);
}

#[test]
fn the_table_in_the_documents_is_this_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/permissions.md");
    let document = std::fs::read_to_string(path).unwrap();
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let in_document: Vec<_> = rows.map(str::to_owned).collect();
    let in_table = ROUTES.map(|(method, route, _, statuses)| {
        let statuses = statuses.map(|status| status.to_string()).join(" | ");
        format!("| `{method} {route}` | {statuses} |")
    });
    assert_eq!(in_document, in_table);
}

#[test]
fn the_document_says_which_routes_need_a_session() {
    for (method, route, _, expected) in ROUTES {
        let operation = openapi::operations().find(|(m, r, _)| (m.as_str(), *r) == (method, route));
        let Some((.., operation)) = operation else { continue };
        let needs_session = operation.get("security").is_some_and(|security| security != &json!([]));
        assert_eq!(needs_session, expected[0] == 401, "{method} {route}");
    }
}
