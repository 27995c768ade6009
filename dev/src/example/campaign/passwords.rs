//! A fault of the campaign: password changes during logins with the old password. After each change, no session created
//! with the old password may be valid, and the service must reject the old password.
use std::{net::SocketAddr, time::Duration};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use crate::http;

/// Number of password changes of one fault.
const CHANGE_COUNT: usize = 5;

/// Number of logins during each change.
const LOGINS_PER_CHANGE: usize = 8;

/// Pause between two attempts of a request.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Maximum number of attempts at a request in [`User::send_until_definite`].
const MAX_ATTEMPTS: usize = 40;

/// One user, who sends requests to several replicas.
#[derive(Clone)]
struct User {
    client: Client,
    replicas: Vec<SocketAddr>,
    email: String,
}

/// A request of a user: its method, path, token and body.
type Request<'a> = (Method, &'a str, Option<&'a str>, Value);

/// Registers a user, and changes the password several times while the user logs in at every replica. Returns the
/// violations. The fault ends early, without a violation, if a request other than a concurrent login fails. A change
/// without a 204 response counts as failed, because the outcome of the change may be unknown.
pub(super) async fn change_during_logins(replicas: Vec<SocketAddr>) -> Vec<String> {
    let Ok(client) = http::client(Duration::from_secs(15)) else { return Vec::new() };
    let email = format!("password-{}@example.com", Uuid::now_v7().simple());
    let user = User { client, replicas, email };
    user.change_repeatedly().await.unwrap_or_default()
}

impl User {
    /// Changes the password [`CHANGE_COUNT`] times. Returns the violations, or `None` if the fault ended early.
    async fn change_repeatedly(&self) -> Option<Vec<String>> {
        let password = |number: usize| format!("open sesame {number} {}", self.email);
        let registration = json!({ "email": self.email, "password": password(0), "name": "Ada" });
        self.send_until_definite((Method::POST, "v1/users", None, registration))
            .await
            .filter(|(status, _)| *status == 201)?;
        for number in 0..CHANGE_COUNT {
            let (old, new) = (password(number), password(number + 1));
            let (_, session) =
                self.send_until_definite(self.login(&old)).await.filter(|(status, _)| *status == 201)?;
            let token = session.get("token")?.as_str()?;
            let mut logins = JoinSet::new();
            for login in 0..LOGINS_PER_CHANGE {
                let (user, old) = (self.clone(), old.clone());
                logins.spawn(async move { user.send(login, user.login(&old)).await });
            }
            let change = json!({ "current_password": old, "new_password": new });
            let changed = self.send(number, (Method::PUT, "v1/me/password", Some(token), change)).await?;
            let sessions = logins.join_all().await.into_iter().flatten();
            let tokens: Vec<String> = sessions
                .filter_map(|(_, session)| Some(session.get("token")?.as_str()?.to_owned()))
                .collect();
            if changed.0 != 204 {
                return None;
            }
            for token in tokens {
                let (status, _) = self
                    .send_until_definite((Method::GET, "v1/me", Some(token.as_str()), Value::Null))
                    .await?;
                if status == 200 {
                    return Some(vec!["a session of the old password is valid after the change".to_owned()]);
                }
            }
            if self.send_until_definite(self.login(&old)).await?.0 == 201 {
                return Some(vec!["the old password is accepted after its change".to_owned()]);
            }
        }
        Some(Vec::new())
    }

    fn login(&self, password: &str) -> Request<'static> {
        let credentials = json!({ "email": self.email, "password": password });
        (Method::POST, "v1/sessions", None, credentials)
    }

    /// Sends a request to one of the replicas. Returns `None` if there was no response.
    async fn send(&self, replica: usize, (method, path, token, body): Request<'_>) -> Option<(u16, Value)> {
        let address = self.replicas.get(replica % self.replicas.len())?;
        let mut request = self.client.request(method, format!("http://{address}/{path}"));
        if !body.is_null() {
            request = request.json(&body);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.ok()?;
        Some((response.status().as_u16(), response.json().await.unwrap_or_default()))
    }

    /// Sends a request to the replicas in turn, until one of them returns a status other than 429, 503 and 504. Returns
    /// this response, or `None` after [`MAX_ATTEMPTS`] attempts.
    async fn send_until_definite(&self, request: Request<'_>) -> Option<(u16, Value)> {
        for attempt in 0..MAX_ATTEMPTS {
            match self.send(attempt, request.clone()).await {
                None | Some((429 | 503 | 504, _)) => sleep(RETRY_DELAY).await,
                definite => return definite,
            }
        }
        None
    }
}
