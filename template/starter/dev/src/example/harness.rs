//! The part of the test harness that is specific to notes.
#![allow(clippy::missing_panics_doc, reason = "a test fails by a panic, in its helpers too")]
use std::future::{Ready, ready};

use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::Addresses;
use crate::harness::{Builder, Database, HttpResponse, Request, Service, User};

/// Table that tests of the platform use, and that the fault `slow-database` locks. Customers create and read their own
/// rows in this table.
pub const TABLE: &str = "notes";
/// Path of the routes that create and list notes.
pub const PATH: &str = "/v1/notes";
/// Route that shows a note.
pub const ROUTE: &str = "/v1/notes/{id}";
/// Name of the statement that creates a note, as in metrics.
pub const INSERT_STATEMENT: &str = "notes.insert";
/// Name of the statement that lists a customer's notes.
pub const LIST_STATEMENT: &str = "notes.list_of_owner";

/// Required settings in addition to `DATABASE_URL`, each with a value for tests: none.
pub const REQUIRED: [(&str, &str); 0] = [];
/// Secret settings in addition to those of the platform: none.
pub const SECRETS: [&str; 0] = [];
/// Names of the readiness checks of external services: none.
pub const EXTERNAL_CHECKS: [&str; 0] = [];
/// Metric series that exist from the first scrape, in addition to those of the platform.
pub const SERIES: [&str; 1] = ["notes_created_total 0"];
/// Gauges that are zero until a worker of this project has completed its first run. The harness waits for the first
/// success of each worker. A worker with several units of work reports success after one unit, so each unit needs a
/// gauge here.
pub const FIRST_RUN_GAUGES: [&str; 0] = [];

/// Returns a body that creates a note.
pub fn body() -> Value {
    json!({ "name": "First" })
}

/// The external services of a test: none. Start a simulator in `start`, and return its address from `settings`.
pub(crate) struct ExternalServices;

#[expect(clippy::unused_self, reason = "with a simulator, the functions read its address")]
impl ExternalServices {
    /// Starts the external services.
    pub(crate) fn start() -> Ready<Self> {
        ready(Self)
    }

    /// Returns the service's settings with the addresses of the external services. A test can override them.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    pub(crate) fn addresses(&self) -> Addresses {
        Addresses
    }

    /// Passes the address of the tested service's API to the external services.
    pub(crate) fn set_service_address(&self, _api: &Url) {}
}

/// Inserts the initial data of every test into a new database: none.
pub(crate) fn seed_data(_database: &Database) -> Ready<()> {
    ready(())
}

/// Creates notes of a user in the database, each with its audit event, in one transaction.
pub async fn seed_rows(database: &Database, owner: Uuid, count: u32) {
    database
        .execute(format!(
            "with created as (
               insert into notes (id, owner_id, name)
               select gen_random_uuid(), '{owner}', 'First' from generate_series(1, {count})
               returning id
             )
             insert into audit_events
               (id, timestamp, event_type, user_id, role, resource, action, result, service_version, metadata)
             select gen_random_uuid(), now(), 'data_change', '{owner}', 'customer', 'notes', 'create', 'success', '0',
                    jsonb_build_object('record_ids', jsonb_build_array(id))
             from created"
        ))
        .await;
}

impl Builder {
    /// Sets an interval of sealing that is longer than any test, so that the workers `audit_sealing` and
    /// `audit_seal_lag` use the database only at the service's start.
    pub fn with_idle_workers(self) -> Self {
        self.setting("AUDIT_SEAL_INTERVAL_SECONDS", "600")
    }

    /// Sets the deadline of requests.
    pub fn with_a_deadline_of_ms(self, milliseconds: u32) -> Self {
        self.setting("REQUEST_TIMEOUT_MS", &milliseconds.to_string())
    }
}

impl User {
    /// Returns a request that lists the user's notes.
    pub fn lists(&self) -> Request {
        self.get(PATH)
    }

    /// Returns a request that creates a note with a new idempotency key, for tests of the platform.
    pub fn creates(&self) -> Request {
        self.creates_note("First")
    }

    /// Returns a request that creates a note with this name and a new idempotency key.
    pub fn creates_note(&self, name: &str) -> Request {
        self.post(PATH).json(&json!({ "name": name })).new_key()
    }

    /// Creates and reads a note, and lists the user's notes. Returns the requests with their responses.
    ///
    /// # Errors
    /// Returns the text of the responses if one of them has an unexpected status.
    pub async fn uses_every_customer_route(&self) -> Result<Vec<(Request, HttpResponse)>, String> {
        let creation = self.creates();
        let created = creation.clone().await;
        if created.status != 201 {
            return Err(created.to_string());
        }
        let (reading, listing) = (self.get(format!("{PATH}/{}", created.id())), self.lists());
        let (read, listed) = (reading.clone().await, listing.clone().await);
        if (read.status, listed.status) == (200, 200) {
            Ok(vec![(creation, created), (reading, read), (listing, listed)])
        } else {
            Err(format!("{read}\n{listed}"))
        }
    }
}

impl Service {
    /// Asserts that every note has an audit event of its creation, and that every such event has a note.
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
        assert_eq!(
            self.database().number(query).await,
            0,
            "notes without an audit event, or events without a note"
        );
    }
}
