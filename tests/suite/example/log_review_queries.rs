//! The queries of the regular review of logs (docs/logs.md) run with the privileges of the service, and find their
//! events.
use std::path::Path;

use dev::harness::{PASSWORD, Service};
use reqwest::Method;
use serde_json::json;

use crate::service;

/// Returns the queries of the document in their order.
fn queries() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/logs.md");
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("```sql\n").skip(1).map(|rest| rest.split_once("\n```").unwrap().0);
    blocks.map(|query| query.trim_end_matches(';').to_owned()).collect()
}

/// Causes at least one event for every query of the review.
async fn cause_reviewed_events(service: &Service) {
    let (customer, support, admin) =
        (service.customer().await, service.support().await, service.admin().await);
    let order = customer.places_an_order().await;
    let payment = order.pay_successfully().await;
    let _read = support.get(order.path()).await.assert_status(200);
    let _refunded = support.refund(payment, Some(100)).await.assert_status(201);
    let product = json!({ "sku": "REVIEWED", "name": "A thing", "unit_amount": 100, "currency": "EUR" });
    let _created = admin.post("/v1/products").json(&product).await.assert_status(201);
    for _ in 0..6 {
        let credentials = json!({ "email": customer.email, "password": "not the password of any user" });
        let _wrong = service.anonymous().post("/v1/sessions").json(&credentials).await.assert_status(401);
    }
    // Deleting the attempts unlocks the account, as the end of the lockout would.
    service.database().execute("delete from login_attempts").await;
    let credentials = json!({ "email": customer.email, "password": PASSWORD });
    let _in = service.anonymous().post("/v1/sessions").json(&credentials).await.assert_status(201);
    let change = json!({ "filter": "info", "ttl_seconds": 60 }).to_string();
    assert_eq!(service.request_ops(Method::PUT, "/log-level", &change).await.unwrap().0, 200);
    service.command(&["audit", "verify"], &[]).await.succeeded();
}

#[tokio::test]
async fn every_review_query_runs_and_finds_its_events() {
    let service = service().await;
    cause_reviewed_events(&service).await;
    let queries = queries();
    assert!(queries.len() >= 5, "{queries:?}");
    for query in queries {
        assert_eq!(service.database().try_as_service(&query).await, Ok(()), "as the service's role: {query}");
        let found = service.database().rows(&query).await;
        assert!(!found.is_empty(), "the query finds none of the events: {query}");
    }
}
