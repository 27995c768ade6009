//! The part of the test harness that knows notes.
#![allow(clippy::missing_panics_doc, reason = "a test fails by a panic, in its helpers too")]
use std::future::{Ready, ready};

use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::Addresses;
use crate::harness::{Builder, Database, Request, Service, User};

/// The table on which tests act that are about no slice: customers create and read what is theirs.
pub const TABLE: &str = "notes";
/// Where a note is created, and where notes are listed.
pub const PATH: &str = "/v1/notes";
/// Where one of them is read.
pub const ROUTE: &str = "/v1/notes/{id}";
/// The statement that creates one, as it is named in metrics.
pub const CREATES: &str = "notes.insert";
/// The statement that lists a customer's.
pub const LISTS: &str = "notes.list_of_owner";

/// Settings without which the service does not start, besides the database.
pub const REQUIRED: [(&str, &str); 0] = [];
/// Settings that are never shown, besides the platform's.
pub const SECRETS: [&str; 0] = [];
/// What readiness looks at besides the service itself.
pub const NEIGHBOUR_CHECKS: [&str; 0] = [];
/// Series that are there from the first scrape, besides the platform's.
pub const SERIES: [&str; 1] = ["notes_created_total 0"];

/// Returns a body that creates a note.
pub fn body() -> Value {
    json!({ "name": "First" })
}

/// The services that ours calls: none. A simulator of one is started here, and named in the settings.
pub(crate) struct Neighbours;

#[expect(clippy::unused_self, reason = "a simulator knows its address")]
impl Neighbours {
    /// Starts them.
    pub(crate) fn start() -> Ready<Self> {
        ready(Self)
    }

    /// Returns the settings by which the service finds them, unless a test sets others.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    pub(crate) fn addresses(&self) -> Addresses {
        Addresses
    }

    /// Gives them the service's address.
    pub(crate) fn find_the_service_at(&self, _api: &Url) {}
}

/// Puts into a new database what every test finds there: nothing.
pub(crate) fn stock(_database: &Database) -> Ready<()> {
    ready(())
}

impl Builder {
    /// With workers that leave the database alone for longer than a test takes.
    pub fn with_idle_workers(self) -> Self {
        self.setting("AUDIT_SEAL_INTERVAL_SECONDS", "600")
    }

    /// With a deadline of requests.
    pub fn with_a_deadline_of_ms(self, milliseconds: u32) -> Self {
        self.setting("REQUEST_TIMEOUT_MS", &milliseconds.to_string())
    }
}

impl User {
    /// What is theirs.
    pub fn lists(&self) -> Request {
        self.get(PATH)
    }

    /// Creates something that is theirs, for tests that are about no slice; under a new key, and not sent yet.
    pub fn creates(&self) -> Request {
        self.creates_note("First")
    }

    /// Creates a note of this name, under a new key; not sent yet.
    pub fn creates_note(&self, name: &str) -> Request {
        self.post(PATH).json(&json!({ "name": name })).new_key()
    }

    /// Does once whatever customers do: how many requests were answered as they should be.
    ///
    /// # Errors
    /// What was not.
    pub async fn does_what_customers_do(&self) -> Result<usize, String> {
        let created = self.creates().await;
        if created.status != 201 {
            return Err(created.to_string());
        }
        let id: Uuid = created.id();
        let (read, listed) = (self.get(format!("{PATH}/{id}")).await, self.lists().await);
        if (read.status, listed.status) == (200, 200) { Ok(3) } else { Err(format!("{read}\n{listed}")) }
    }
}

impl Service {
    /// What holds whatever fails: every row is there with the event that tells of it, and no event without its row.
    pub async fn invariants_hold(&self) {
        let query = format!(
            "select count(*)
             from {TABLE} full join (
               select record_id::uuid as id
               from audit_events, jsonb_array_elements_text(metadata -> 'record_ids') as record_id
               where resource = '{TABLE}' and action = 'create'
             ) as created using (id)
             where {TABLE}.id is null or created.id is null"
        );
        assert_eq!(self.database().number(query).await, 0, "rows and their events are the same");
    }
}
