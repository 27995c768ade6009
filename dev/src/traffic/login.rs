//! Registration and login.
use std::sync::Mutex;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    api::Call,
    customer::{Customer, Identity},
    expectations::{check, check_status, text},
    request::{ApiRequest, RequestOutcome, lock},
};

impl ApiRequest<'_> {
    pub(super) async fn authenticate(&self, customer: &Mutex<Customer>) {
        let known = lock(customer).identity.clone();
        let Some(identity) = known else {
            return self.register(customer).await;
        };
        let call =
            Call::post("/v1/sessions", &json!({ "email": identity.email, "password": identity.password }));
        let outcome = self
            .send(&call, |response| {
                check_status(response, 201)?;
                check("a session has a token", !text(&response.body, "token").is_empty())?;
                check("a session has an end", !text(&response.body, "expires_at").is_empty())?;
                let user = response.body.get("user").unwrap_or(&Value::Null);
                check("a session belongs to the logged-in user", text(user, "id") == identity.id)
            })
            .await;
        match outcome {
            RequestOutcome::Expected(response) => {
                lock(customer).token = Some(text(&response.body, "token").to_owned());
            }
            // The user may no longer exist, for example after a restore of the database. The customer then registers
            // again.
            RequestOutcome::Unexpected => {
                *lock(customer) = Customer { is_logging_in: true, ..Customer::default() }
            }
            RequestOutcome::Retryable => {}
        }
    }

    async fn register(&self, customer: &Mutex<Customer>) {
        let name = Uuid::now_v7().simple().to_string();
        let email = format!("traffic-{name}@example.com");
        let password = format!("open sesame {name}");
        let call =
            Call::post("/v1/users", &json!({ "email": email, "password": password, "name": "Traffic" }));
        let outcome = self
            .send(&call, |response| {
                check_status(response, 201)?;
                check("a user has an id", !text(&response.body, "id").is_empty())?;
                check("a user has the registered address", text(&response.body, "email") == email)?;
                check("a registered user is a customer", text(&response.body, "role") == "customer")
            })
            .await;
        if let RequestOutcome::Expected(response) = outcome {
            let id = text(&response.body, "id").to_owned();
            lock(customer).identity = Some(Identity { id, email, password });
            self.report().customers += 1;
        }
    }
}
