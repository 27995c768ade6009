//! What the harness knows of what the service is for: {{resource_plural_words}}, as long as there is nothing else.
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::{Builder, Database, Request, Service, User};

/// The table on which tests act that are about no slice: customers create and read what is theirs.
pub const TABLE: &str = "{{resource_plural}}";
/// Where that is created and listed.
pub const PATH: &str = "/v1/{{resource_plural}}";
/// Where one of them is read.
pub const ROUTE: &str = "/v1/{{resource_plural}}/{id}";
/// The statement that creates one, as it is named in metrics.
pub const CREATES: &str = "{{resource_plural}}.insert";
/// The statement that lists a customer's.
pub const LISTS: &str = "{{resource_plural}}.list_of_owner";

/// Settings without which the service does not start, besides the database.
pub const REQUIRED: [(&str, &str); 0] = [];
/// Settings that are never shown, besides the platform's.
pub const SECRETS: [&str; 0] = [];
/// What readiness looks at besides the service itself.
pub const NEIGHBOUR_CHECKS: [&str; 0] = [];
/// Series that are there from the first scrape, besides the platform's.
pub const SERIES: [&str; 1] = ["{{resource_plural}}_created_total 0"];

/// What a body says that creates one.
pub fn body() -> Value {
    json!({ "name": "First" })
}

/// The services that ours calls: none yet. A stand-in for one is started here, and named in the settings.
pub(super) struct Neighbours;

impl Neighbours {
    /// Starts them.
    #[expect(clippy::unused_async, reason = "a stand-in has a port to listen on")]
    pub(super) async fn start() -> Self {
        Self
    }

    /// How the service finds them, unless a test says otherwise.
    #[expect(clippy::unused_self, reason = "a stand-in knows where it listens")]
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// How they find the service, those of them that call it.
    #[expect(clippy::unused_self, reason = "a stand-in remembers whom it calls")]
    pub(super) fn find_the_service_at(&self, _api: &Url) {}
}

/// Puts into a new database what every test finds there: nothing yet.
#[expect(clippy::unused_async, reason = "what is put there is put there by statements")]
pub(super) async fn stock(_database: &Database) {}

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

    /// Creates something that is theirs; under a new key, and not sent yet.
    pub fn creates(&self) -> Request {
        self.names("First")
    }

    /// Creates a {{resource_words}} of this name, under a new key; not sent yet.
    pub fn names(&self, name: &str) -> Request {
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
