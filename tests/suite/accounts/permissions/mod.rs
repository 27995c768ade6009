//! Permissions: every route with every role.
mod table;

use std::collections::BTreeSet;

use dev::harness::{Request, Service, User};
use serde_json::json;

use self::table::routes;
pub(crate) use self::table::{Row, Subject};
use crate::{
    docs::{assert_complete, compliance::rows},
    example::permissions::FORBIDDEN_TO_AUDITORS,
    http::openapi,
    service,
};

/// The roles of callers, in the order of the expected statuses in a [`Row`]. The first caller has no session.
const CALLERS: [&str; 5] = ["no login", "customer", "support", "auditor", "admin"];

struct Users {
    support: User,
    auditor: User,
    admin: User,
}

impl Users {
    async fn of(service: &Service) -> Self {
        Self {
            support: service.support().await,
            auditor: service.auditor().await,
            admin: service.admin().await,
        }
    }

    fn user(&self, role: &str) -> Option<&User> {
        match role {
            "support" => Some(&self.support),
            "auditor" => Some(&self.auditor),
            "admin" => Some(&self.admin),
            _ => None,
        }
    }
}

#[tokio::test]
async fn every_route_admits_exactly_its_roles() {
    let service = service().await;
    let staff = Users::of(&service).await;
    let mut rejected = 0;
    for (method, route, request, expected) in routes() {
        for (role, expected) in CALLERS.into_iter().zip(expected) {
            // Each request uses a new owner's records, and a new session if the caller has one, because some requests
            // change the records or the owner, or end the session.
            let owner = service.customer().await;
            let (client, email) = match (role, staff.user(role)) {
                ("customer", _) => ((*owner).clone(), owner.email.clone()),
                (_, Some(user)) => ((*service.log_in(&user.email).await).clone(), user.email.clone()),
                (_, None) => (service.anonymous(), owner.email.clone()),
            };
            let response = request(&client, &Subject::of(&owner, email).await).await;
            assert_eq!(response.status, expected, "{method} {route} by {role}: {response}");
            match expected {
                401 => {
                    let problem = response.assert_problem(401, "unauthenticated");
                    assert_eq!(problem.header("www-authenticate"), Some("Bearer"));
                }
                403 => {
                    rejected += 1;
                    let _problem = response.assert_problem(403, "forbidden");
                }
                _ => {}
            }
        }
    }
    let denials =
        service.audit_events("event_type = 'authorization' and metadata ->> 'reason' = 'role'").await;
    assert_eq!(denials.len(), rejected, "each rejection is audited");
    assert!(denials.iter().all(|denial| denial["result"] == "denied" && denial["user_id"].is_string()));
    service.invariants_hold().await;
}

#[tokio::test]
async fn permissions_are_checked_before_the_body() {
    let service = service().await;
    let staff = Users::of(&service).await;
    let with_malformed_body = |request: Request| request.header("content-type", "application/json").body("{");
    for path in FORBIDDEN_TO_AUDITORS {
        let _anonymous =
            with_malformed_body(service.anonymous().post(path)).await.assert_problem(401, "unauthenticated");
        let _auditor = with_malformed_body(staff.auditor.post(path)).await.assert_problem(403, "forbidden");
    }
}

const FILE: &str = "tests/suite/accounts/permissions/table.rs or tests/suite/example/permissions.rs";

#[test]
fn the_table_has_every_route_of_the_openapi_document() {
    let table: BTreeSet<_> = routes().map(|(method, route, ..)| format!("{method} {route}")).collect();
    let document: BTreeSet<_> =
        openapi::operations().map(|(method, route, _)| format!("{method} {route}")).collect();
    assert_complete(FILE, &table, "the routes of the OpenAPI document", &document);
}

#[test]
fn the_documents_have_the_same_table_of_permissions() {
    let heading = format!("| route | {} |", CALLERS.join(" | "));
    let documents = rows(&heading).into_iter().collect();
    let table: BTreeSet<_> = routes()
        .map(|(method, route, _, statuses)| {
            let statuses = statuses.map(|status| status.to_string()).join(" | ");
            format!("| `{method} {route}` | {statuses} |")
        })
        .collect();
    assert_complete(
        &format!("the tables \"{heading}\" of docs"),
        &documents,
        "tests/suite/*/permissions",
        &table,
    );
}

#[test]
fn the_openapi_document_has_the_session_and_roles_of_routes() {
    for (method, route, _, expected) in routes() {
        let operation = openapi::operations().find(|(m, r, _)| (m.as_str(), *r) == (method, route));
        let Some((.., operation)) = operation else { continue };
        let needs_session = operation.get("security").is_some_and(|security| security != &json!([]));
        assert_eq!(needs_session, expected[0] == 401, "{method} {route}");
        if needs_session {
            let allowed =
                CALLERS.into_iter().zip(expected).filter(|(_, status)| ![401, 403].contains(status));
            let allowed: Vec<_> = allowed.map(|(role, _)| role).collect();
            // In the document, an empty list means that every role is allowed.
            let allowed = if allowed == CALLERS[1..] { json!([]) } else { json!(allowed) };
            assert_eq!(operation["security"], json!([{ "session": allowed }]), "{method} {route}");
        }
    }
}
