//! Who may do what: every route, and everybody.
mod table;

use std::collections::BTreeSet;

use dev::harness::{Request, Service, User};
use serde_json::json;

use self::table::{ROUTES, Standing};
use crate::{compliance::with_parts, openapi, service};

/// Everybody, in the order of the table's columns.
const EVERYBODY: [&str; 5] = ["nobody", "customer", "support", "auditor", "admin"];

struct People {
    customer: User,
    support: User,
    auditor: User,
    admin: User,
}

impl People {
    async fn of(service: &Service) -> Self {
        Self {
            customer: service.customer().await,
            support: service.support().await,
            auditor: service.auditor().await,
            admin: service.admin().await,
        }
    }

    fn user(&self, role: &str) -> Option<&User> {
        match role {
            "customer" => Some(&self.customer),
            "support" => Some(&self.support),
            "auditor" => Some(&self.auditor),
            "admin" => Some(&self.admin),
            _ => None,
        }
    }
}

#[tokio::test]
async fn every_route_lets_in_whom_it_should_and_nobody_else() {
    let service = service().await;
    let people = People::of(&service).await;
    let owner = &people.customer.email;
    let standing = Standing::of(&people.customer).await;
    let mut refused = 0;
    for (method, route, ask, expected) in ROUTES {
        for (role, expected) in EVERYBODY.into_iter().zip(expected) {
            // A new record and a new session for each, since some of the requests use them up.
            let customer = service.log_in(owner).await;
            let (by, email) = match people.user(role) {
                Some(user) => ((*service.log_in(&user.email).await).clone(), user.email.clone()),
                None => (service.nobody(), owner.clone()),
            };
            let answer = ask(&by, &standing.subject(&customer, email).await).await;
            assert_eq!(answer.status, expected, "{method} {route} by {role}: {answer}");
            match expected {
                401 => {
                    let problem = answer.is_problem(401, "unauthenticated");
                    assert_eq!(problem.header("www-authenticate"), Some("Bearer"));
                }
                403 => {
                    refused += 1;
                    let _problem = answer.is_problem(403, "forbidden");
                }
                _ => {}
            }
        }
    }
    let denials =
        service.audit_events("event_type = 'authorization' and metadata ->> 'reason' = 'role'").await;
    assert_eq!(denials.len(), refused, "each refusal is audited");
    assert!(denials.iter().all(|denial| denial["result"] == "denied" && denial["user_id"].is_string()));
    service.invariants_hold().await;
}

#[tokio::test]
async fn who_may_not_is_told_so_before_anybody_looks_at_what_they_sent() {
    let service = service().await;
    let people = People::of(&service).await;
    let nonsense = |request: Request| request.header("content-type", "application/json").body("{");
    for path in table::FORBIDDEN_TO_AUDITORS {
        let _nobody = nonsense(service.nobody().post(path)).await.is_problem(401, "unauthenticated");
        let _auditor = nonsense(people.auditor.post(path)).await.is_problem(403, "forbidden");
    }
}

#[test]
fn the_table_has_every_route_of_the_document() {
    let in_table: BTreeSet<_> =
        ROUTES.iter().map(|(method, route, ..)| format!("{method} {route}")).collect();
    let in_document: BTreeSet<_> =
        openapi::operations().map(|(method, route, _)| format!("{method} {route}")).collect();
    assert_eq!(in_table, in_document);
}

#[test]
fn the_table_in_the_documents_is_this_one() {
    let documents = with_parts("docs/permissions.md");
    let rows = documents.lines().filter(|line| line.starts_with("| `"));
    let mut in_documents: Vec<_> = rows.map(str::to_owned).collect();
    let mut in_table = ROUTES.map(|(method, route, _, statuses)| {
        let statuses = statuses.map(|status| status.to_string()).join(" | ");
        format!("| `{method} {route}` | {statuses} |")
    });
    in_documents.sort_unstable();
    in_table.sort_unstable();
    assert_eq!(in_documents, in_table);
}

#[test]
fn the_document_says_which_routes_need_a_session() {
    for (method, route, _, expected) in ROUTES {
        let operation = openapi::operations().find(|(m, r, _)| (m.as_str(), *r) == (method, route));
        let Some((.., operation)) = operation else { continue };
        let needs_session = operation.get("security").is_some_and(|security| security != &json!([]));
        assert_eq!(needs_session, expected[0] == 401, "{method} {route}");
    }
}
