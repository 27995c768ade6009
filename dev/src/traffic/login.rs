//! Registration and login.
use std::sync::Mutex;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    api::Call,
    customer::{Customer, Identity},
    expectations::{has_status, keeps, text},
    request::{ApiRequest, RequestOutcome, lock},
};

impl ApiRequest<'_> {
    pub(super) async fn enter(&self, customer: &Mutex<Customer>) {
        let known = lock(customer).identity.clone();
        let Some(identity) = known else {
            return self.register(customer).await;
        };
        let call =
            Call::post("/v1/sessions", &json!({ "email": identity.email, "password": identity.password }));
        let came = self
            .ask(&call, |answer| {
                has_status(answer, 201)?;
                keeps("a session has a token", !text(&answer.body, "token").is_empty())?;
                keeps("a session ends", !text(&answer.body, "expires_at").is_empty())?;
                let user = answer.body.get("user").unwrap_or(&Value::Null);
                keeps("a session belongs to the logged-in user", text(user, "id") == identity.id)
            })
            .await;
        match came {
            RequestOutcome::Promised(answer) => {
                lock(customer).token = Some(text(&answer.body, "token").to_owned());
            }
            // The service may have lost its users since, for example after its database was recreated.
            RequestOutcome::Wrong => *lock(customer) = Customer { at_the_door: true, ..Customer::default() },
            RequestOutcome::ComeAgain => {}
        }
    }

    async fn register(&self, customer: &Mutex<Customer>) {
        let name = Uuid::now_v7().simple().to_string();
        let email = format!("traffic-{name}@example.com");
        let password = format!("open sesame {name}");
        let call =
            Call::post("/v1/users", &json!({ "email": email, "password": password, "name": "Traffic" }));
        let came = self
            .ask(&call, |answer| {
                has_status(answer, 201)?;
                keeps("a user has an id", !text(&answer.body, "id").is_empty())?;
                keeps("a user has the registered address", text(&answer.body, "email") == email)?;
                keeps("a registered user is a customer", text(&answer.body, "role") == "customer")
            })
            .await;
        if let RequestOutcome::Promised(answer) = came {
            let id = text(&answer.body, "id").to_owned();
            lock(customer).identity = Some(Identity { id, email, password });
            self.report().customers += 1;
        }
    }
}
