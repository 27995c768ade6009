//! A user of the service, with a session.
use std::{ops::Deref, sync::Arc};

use serde_json::json;
use uuid::Uuid;

use super::{
    client::{Api, Client},
    database::Database,
};

/// Password of every test user.
pub const PASSWORD: &str = "correct horse battery staple";

/// A logged-in user. Requests are sent through the contained [`Client`].
#[derive(Debug, Clone)]
pub struct User {
    client: Client,
    /// Database of the user's service, for checking the stored data.
    pub database: Arc<Database>,
    pub id: Uuid,
    pub email: String,
    pub token: String,
}

impl Deref for User {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl User {
    /// Logs in with the password of test users.
    pub(super) async fn log_in(anonymous: &Client, database: &Arc<Database>, email: &str) -> Self {
        let credentials = json!({ "email": email, "password": PASSWORD });
        let session = anonymous.post("/v1/sessions").json(&credentials).await.assert_status(201);
        let token = session.text("token");
        let id = session.json()["user"]["id"].as_str().unwrap_or_default().parse();
        Self {
            client: anonymous.with_token(&token),
            database: Arc::clone(database),
            id: id.unwrap_or_else(|error| panic!("{error}: {session}")),
            email: email.to_owned(),
            token,
        }
    }

    pub(super) fn at(&self, api: &Arc<Api>) -> Self {
        Self { client: self.client.at(api), ..self.clone() }
    }
}
