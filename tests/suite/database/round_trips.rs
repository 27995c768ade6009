//! How many round trips to the database each hot route makes, counted on the wire: they cost both sides more than
//! anything else does, and unlike time they are the same on every machine.
//!
//! A statement is one, `begin` and `commit` are one each, and so is the ping that a connection gets on its way back into
//! the pool where nobody has released it.
use dev::harness::{PASSWORD, Request, Service, eventually};
use serde_json::json;

use crate::builder;

/// Who adds to one of these has made the route dearer by as much, and says here why.
const ROUND_TRIPS: [(&str, u16, usize); 2] = [("POST /v1/sessions", 201, 4), ("GET /v1/me", 200, 2)];

/// The workers of the service use the same wire now and then, and statements are prepared once: both only ever add,
/// so that the fewest of some tries is what the request itself needs.
const TRIES: usize = 5;

/// What a request takes of the database.
#[derive(Debug, PartialEq)]
pub(crate) struct DatabaseCost {
    pub(crate) round_trips: usize,
    /// What the database has said.
    pub(crate) bytes: usize,
}

/// What a request takes of the database, and that it is answered with `status`.
pub(crate) async fn taken(
    service: &Service,
    status: u16,
    request: impl AsyncFn() -> Request,
) -> DatabaseCost {
    let link = service.link();
    let mut fewest = DatabaseCost { round_trips: usize::MAX, bytes: usize::MAX };
    for _ in 0..TRIES {
        let request = request().await;
        nobody_is_at_the_database(service).await;
        let before = DatabaseCost { round_trips: link.round_trips(), bytes: link.bytes_back() };
        let _answer = request.await.is(status);
        nobody_is_at_the_database(service).await;
        fewest.round_trips = fewest.round_trips.min(link.round_trips() - before.round_trips);
        fewest.bytes = fewest.bytes.min(link.bytes_back() - before.bytes);
    }
    fewest
}

/// A service whose every word with the database is counted, and whose workers say none.
pub(crate) async fn counted_service() -> Service {
    builder()
        .behind_a_link()
        // One connection, so that every statement is prepared with the first try.
        .setting("DATABASE_MAX_CONNECTIONS", "1")
        .with_idle_workers()
        .start()
        .await
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
    let service = counted_service().await;
    let customer = service.customer().await;
    let credentials = json!({ "email": customer.email, "password": PASSWORD });
    let mut counted = Vec::new();
    for (route, status, _) in ROUND_TRIPS {
        let request = async || match route {
            "POST /v1/sessions" => service.nobody().post("/v1/sessions").json(&credentials),
            "GET /v1/me" => customer.get("/v1/me"),
            route => unreachable!("{route}"),
        };
        counted.push((route, status, taken(&service, status, request).await.round_trips));
    }
    assert_eq!(counted, ROUND_TRIPS);
}
