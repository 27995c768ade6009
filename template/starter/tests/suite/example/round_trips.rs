//! Number of database round trips of creating, reading and listing notes. A request for another customer's note costs
//! the same as a request for a missing note.
use dev::harness::{PATH, body};
use serde_json::json;
use uuid::Uuid;

use crate::database::round_trips::{counted_service, measure_cost};

/// Requests with their expected status and number of round trips. A change that raises a number makes the route more
/// expensive. State the reason here.
const ROUND_TRIPS: [(&str, u16, usize); 4] = [
    ("POST /v1/notes", 201, 2),
    ("POST /v1/notes, again", 201, 3),
    ("GET /v1/notes/{id}", 200, 2),
    ("GET /v1/notes", 200, 2),
];

#[tokio::test]
async fn note_routes_make_the_documented_number_of_round_trips() {
    let service = counted_service().await;
    let customer = service.customer().await;
    let path = format!("{PATH}/{}", customer.creates().await.assert_status(201).id());
    let _created = customer.post(PATH).json(&body()).key("again").await.assert_status(201);
    let mut counted = Vec::new();
    for (route, status, _) in ROUND_TRIPS {
        let request = async || match route {
            "POST /v1/notes" => customer.creates(),
            "POST /v1/notes, again" => customer.post(PATH).json(&body()).key("again"),
            "GET /v1/notes/{id}" => customer.get(&path),
            "GET /v1/notes" => customer.lists(),
            route => unreachable!("{route}"),
        };
        counted.push((route, status, measure_cost(&service, status, request).await.round_trips));
    }
    assert_eq!(counted, ROUND_TRIPS);
}

/// A difference in cost would be measurable as a response time, and would reveal which notes exist.
#[tokio::test]
async fn a_404_costs_the_same_for_a_missing_and_a_foreign_note() {
    let service = counted_service().await;
    let (owner, other_customer) = (service.customer().await, service.customer().await);
    let note = owner.creates().await.assert_status(201).id();
    let rejected = async |id: Uuid| {
        let change = json!({ "name": "Another" });
        [
            measure_cost(&service, 404, async || other_customer.get(format!("{PATH}/{id}"))).await,
            measure_cost(&service, 404, async || other_customer.patch(format!("{PATH}/{id}")).json(&change))
                .await,
        ]
    };
    assert_eq!(rejected(note).await, rejected(Uuid::now_v7()).await);
}
