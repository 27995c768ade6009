//! The rows of the table of permissions for the routes of notes.
use dev::harness::{Client, PATH, Request, User, body};
use serde_json::json;
use uuid::Uuid;

use crate::accounts::permissions::{Row, Subject};

/// The records that the table's requests use.
pub(crate) struct Fixtures {
    /// A note of the owner.
    note: Uuid,
}

impl Fixtures {
    pub(crate) async fn of(owner: &User) -> Self {
        Self { note: owner.creates().await.assert_status(201).id() }
    }
}

/// Paths to which an auditor is not authorized to send POST requests.
pub(crate) const FORBIDDEN_TO_AUDITORS: [&str; 1] = [PATH];

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    //                                  none customer support auditor admin
    ("POST",   "/v1/notes",      create, [401, 201, 403, 403, 403]),
    ("GET",    "/v1/notes",      list,   [401, 200, 200, 403, 200]),
    ("GET",    "/v1/notes/{id}", show,   [401, 200, 200, 403, 200]),
    ("PATCH",  "/v1/notes/{id}", change, [401, 200, 403, 403, 403]),
];

fn create(client: &Client, _: &Subject) -> Request {
    client.post(PATH).json(&body()).new_key()
}

fn list(client: &Client, _: &Subject) -> Request {
    client.get(PATH)
}

fn show(client: &Client, subject: &Subject) -> Request {
    client.get(format!("{PATH}/{}", subject.fixtures.note))
}

fn change(client: &Client, subject: &Subject) -> Request {
    client.patch(format!("{PATH}/{}", subject.fixtures.note)).json(&json!({ "name": "Another" }))
}
