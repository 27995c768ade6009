//! The table of permissions: each route with its status for each role. [`ROWS`] has the routes of the example domain.
use dev::harness::{Client, PASSWORD, Request, User};
use serde_json::json;
use uuid::Uuid;

use crate::example::permissions::{Fixtures, ROWS};

/// The data that one request uses. Each request gets data of its own, because some requests change or delete it.
pub(crate) struct Subject {
    /// The e-mail address for the login: the caller's address, or the owner's if the caller is unauthenticated.
    email: String,
    /// The owner's records in the example domain.
    pub(crate) fixtures: Fixtures,
}

impl Subject {
    pub(super) async fn of(owner: &User, email: String) -> Self {
        Self { email, fixtures: Fixtures::of(owner).await }
    }
}

pub(crate) type BuildRequest = fn(&Client, &Subject) -> Request;

/// The method and path of a route, the function that builds a valid request, and the expected status for each of
/// [`CALLERS`](super::CALLERS).
pub(crate) type Row = (&'static str, &'static str, BuildRequest, [u16; 5]);

#[rustfmt::skip]
const COMMON: [Row; 6] = [
    //                                                 none customer support auditor admin
    ("POST",   "/v1/users",            register,        [201, 201, 201, 201, 201]),
    ("POST",   "/v1/sessions",         log_in,          [201, 201, 201, 201, 201]),
    ("DELETE", "/v1/sessions/current", log_out,         [401, 204, 204, 204, 204]),
    ("GET",    "/v1/me",               show_user,       [401, 200, 200, 200, 200]),
    ("PUT",    "/v1/me/password",      change_password, [401, 204, 204, 204, 204]),
    ("GET",    "/v1/audit-events",     read_audit_log,  [401, 403, 403, 200, 200]),
];

/// Returns the rows of all routes.
pub(super) fn routes() -> impl Iterator<Item = Row> {
    COMMON.iter().chain(ROWS).copied()
}

fn register(client: &Client, _: &Subject) -> Request {
    let email = format!("{}@example.com", Uuid::now_v7().simple());
    client.post("/v1/users").json(&json!({ "email": email, "password": PASSWORD, "name": "Grace" }))
}

fn log_in(client: &Client, subject: &Subject) -> Request {
    client.post("/v1/sessions").json(&json!({ "email": subject.email, "password": PASSWORD }))
}

fn log_out(client: &Client, _: &Subject) -> Request {
    client.delete("/v1/sessions/current")
}

fn show_user(client: &Client, _: &Subject) -> Request {
    client.get("/v1/me")
}

fn change_password(client: &Client, _: &Subject) -> Request {
    client.put("/v1/me/password").json(&json!({ "current_password": PASSWORD, "new_password": PASSWORD }))
}

fn read_audit_log(client: &Client, _: &Subject) -> Request {
    client.get("/v1/audit-events")
}
