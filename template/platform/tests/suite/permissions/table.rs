//! The table of who may do what: every route, and what is asked of it.
use dev::harness::{Client, PASSWORD, PATH, Request, User, body};
use serde_json::json;
use uuid::Uuid;

/// What stands for as long as the test does: nothing yet.
pub(super) struct Standing;

impl Standing {
    #[expect(clippy::unused_async, reason = "what stands is put up by requests")]
    pub(super) async fn of(_customer: &User) -> Self {
        Self
    }

    /// What one request is about.
    pub(super) async fn subject(&self, owner: &User, email: String) -> Subject {
        Subject { id: owner.creates().await.is(201).id(), email }
    }
}

/// Where an auditor may change nothing.
pub(super) const FORBIDDEN_TO_AUDITORS: [&str; 1] = [PATH];

/// What the requests of the table are about.
pub(super) struct Subject {
    /// A {{resource_words}} of the customer.
    id: Uuid,
    email: String,
}

pub(super) type Ask = fn(&Client, &Subject) -> Request;

/// Every route, and how it answers to each of [`EVERYBODY`](super::EVERYBODY) if the request is otherwise in order.
#[rustfmt::skip]
pub(super) const ROUTES: [(&str, &str, Ask, [u16; 5]); 10] = [
    //                                                     nobody customer support auditor admin
    ("POST",   "/v1/users",                    register,       [201, 201, 201, 201, 201]),
    ("POST",   "/v1/sessions",                 log_in,         [201, 201, 201, 201, 201]),
    ("DELETE", "/v1/sessions/current",         log_out,        [401, 204, 204, 204, 204]),
    ("GET",    "/v1/me",                       who_am_i,       [401, 200, 200, 200, 200]),
    ("PUT",    "/v1/me/password",              new_password,   [401, 204, 204, 204, 204]),
    ("GET",    "/v1/audit-events",             read_trail,     [401, 403, 403, 200, 200]),
    ("POST",   "/v1/{{resource_plural}}",      create,         [401, 201, 403, 403, 403]),
    ("GET",    "/v1/{{resource_plural}}",      list,           [401, 200, 200, 403, 200]),
    ("GET",    "/v1/{{resource_plural}}/{id}", show,           [401, 200, 200, 403, 200]),
    ("PATCH",  "/v1/{{resource_plural}}/{id}", change,         [401, 200, 403, 403, 403]),
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

fn create(by: &Client, _: &Subject) -> Request {
    by.post(PATH).json(&body()).new_key()
}

fn list(by: &Client, _: &Subject) -> Request {
    by.get(PATH)
}

fn show(by: &Client, subject: &Subject) -> Request {
    by.get(format!("{PATH}/{}", subject.id))
}

fn change(by: &Client, subject: &Subject) -> Request {
    by.patch(format!("{PATH}/{}", subject.id)).json(&json!({ "name": "Another" }))
}

fn read_trail(by: &Client, _: &Subject) -> Request {
    by.get("/v1/audit-events")
}
