//! How many round trips to the database each hot route makes, counted on the wire: they cost both sides more than
//! anything else does, and unlike time they are the same on every machine.
//!
//! A statement is one, `begin` and `commit` are one each, and so is the ping that a connection gets on its way back into
//! the pool where nobody has released it.
use dev::harness::{PATH, Request, Service, body, eventually};
use serde_json::json;

use crate::builder;

/// Who adds to one of these has made the route dearer by as much, and says here why.
const ROUND_TRIPS: [(&str, usize); 6] = [
    ("POST /v1/sessions", 4),
    ("GET /v1/me", 2),
    ("POST /v1/{{resource_plural}}", 2),
    ("POST /v1/{{resource_plural}}, again", 3),
    ("GET /v1/{{resource_plural}}/{id}", 2),
    ("GET /v1/{{resource_plural}}", 2),
];

/// The workers of the service use the same wire now and then, and statements are prepared once: both only ever add,
/// so that the fewest of some tries is what the request itself needs.
const TRIES: usize = 5;

/// The round trips of a request.
async fn round_trips(service: &Service, request: impl AsyncFn() -> Request) -> usize {
    let link = service.link();
    let mut fewest = usize::MAX;
    for _ in 0..TRIES {
        let request = request().await;
        nobody_is_at_the_database(service).await;
        let before = link.round_trips();
        let answer = request.await;
        assert!((200..300).contains(&answer.status), "{answer}");
        nobody_is_at_the_database(service).await;
        fewest = fewest.min(link.round_trips() - before);
    }
    fewest
}

/// A connection counts as active until its last ping, if it gets one, is answered.
async fn nobody_is_at_the_database(service: &Service) {
    eventually("the pool is at rest", async || {
        (service.metric("db_connections_active").await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn hot_routes_make_no_more_round_trips_than_they_need() {
    let service = builder()
        .behind_a_link()
        // One connection, so that every statement is prepared with the first try.
        .setting("DATABASE_MAX_CONNECTIONS", "1")
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "3600")
        .start()
        .await;
    let customer = service.customer().await;
    let path = format!("{PATH}/{}", customer.creates().await.is(201).id());
    let _created = customer.post(PATH).json(&body()).key("again").await.is(201);
    let credentials = json!({ "email": customer.email, "password": dev::harness::PASSWORD });

    let mut counted = Vec::new();
    for (route, _) in ROUND_TRIPS {
        let request = async || match route {
            "POST /v1/sessions" => service.nobody().post("/v1/sessions").json(&credentials),
            "GET /v1/me" => customer.get("/v1/me"),
            "POST /v1/{{resource_plural}}" => customer.creates(),
            "POST /v1/{{resource_plural}}, again" => customer.post(PATH).json(&body()).key("again"),
            "GET /v1/{{resource_plural}}/{id}" => customer.get(&path),
            "GET /v1/{{resource_plural}}" => customer.lists(),
            route => unreachable!("{route}"),
        };
        counted.push((route, round_trips(&service, request).await));
    }
    assert_eq!(counted, ROUND_TRIPS);
}
