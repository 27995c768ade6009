//! The table of permissions: the routes that every service has.
use dev::harness::{Client, PASSWORD, Request, User};
use serde_json::json;
use uuid::Uuid;

use crate::example::permissions::{Fixtures, ROWS};

/// The subject of one request. Each request has a subject of its own, because some requests consume it.
pub(crate) struct Subject {
    /// The address of the caller; the owner's address for an unauthenticated caller.
    email: String,
    /// Records of the owner.
    pub(crate) things: Fixtures,
}

impl Subject {
    pub(super) async fn of(owner: &User, email: String) -> Self {
        Self { email, things: Fixtures::of(owner).await }
    }
}

pub(crate) type BuildRequest = fn(&Client, &Subject) -> Request;

/// A route, and its status for each of [`CALLERS`](super::CALLERS) if the request is otherwise valid.
pub(crate) type Row = (&'static str, &'static str, BuildRequest, [u16; 5]);

#[rustfmt::skip]
const COMMON: [Row; 6] = [
    //                                               none customer support auditor admin
    ("POST",   "/v1/users",            register,       [201, 201, 201, 201, 201]),
    ("POST",   "/v1/sessions",         log_in,         [201, 201, 201, 201, 201]),
    ("DELETE", "/v1/sessions/current", log_out,        [401, 204, 204, 204, 204]),
    ("GET",    "/v1/me",               who_am_i,       [401, 200, 200, 200, 200]),
    ("PUT",    "/v1/me/password",      new_password,   [401, 204, 204, 204, 204]),
    ("GET",    "/v1/audit-events",     read_audit_log,     [401, 403, 403, 200, 200]),
];

/// Returns every route.
pub(super) fn routes() -> impl Iterator<Item = Row> {
    COMMON.iter().chain(ROWS).copied()
}

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

fn read_audit_log(by: &Client, _: &Subject) -> Request {
    by.get("/v1/audit-events")
}
