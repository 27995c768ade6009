//! The number of database round trips of the login and of `GET /v1/me`, counted by a proxy. Round trips dominate the
//! time that a request spends on the database. Unlike time, their number is the same on every machine.
//!
//! A statement is one round trip, and so are `begin` and `commit`. After a complete statement, the service returns its
//! connection with `Connection::release`. A connection that is dropped instead, for example because its request was
//! cancelled, is pinged before it returns to the pool. The ping is another round trip.
use dev::harness::{PASSWORD, Request, Service, eventually};
use serde_json::json;

use crate::builder;

/// Routes with their expected status and number of round trips. A change that raises a number makes the route more
/// expensive, and must state the reason here.
const ROUND_TRIPS: [(&str, u16, usize); 2] = [("POST /v1/sessions", 201, 4), ("GET /v1/me", 200, 2)];

/// Number of measurements of each request. Even idle workers use the connection occasionally, and the first use of a
/// statement prepares it. Both only add round trips, so the minimum of several measurements is the number of round
/// trips of the request itself.
const MEASUREMENTS: usize = 5;

/// The database cost of a request.
#[derive(Debug, PartialEq)]
pub(crate) struct DatabaseCost {
    pub(crate) round_trips: usize,
    /// Number of bytes that the database sent.
    pub(crate) bytes: usize,
}

/// Measures the database cost of a request. Panics if the response does not have this status.
pub(crate) async fn measure_cost(
    service: &Service,
    status: u16,
    request: impl AsyncFn() -> Request,
) -> DatabaseCost {
    let proxy = service.database_proxy();
    let mut minimum = DatabaseCost { round_trips: usize::MAX, bytes: usize::MAX };
    for _ in 0..MEASUREMENTS {
        let request = request().await;
        wait_until_pool_is_idle(service).await;
        let before = DatabaseCost { round_trips: proxy.round_trips(), bytes: proxy.bytes_back() };
        let _response = request.await.assert_status(status);
        wait_until_pool_is_idle(service).await;
        minimum.round_trips = minimum.round_trips.min(proxy.round_trips() - before.round_trips);
        minimum.bytes = minimum.bytes.min(proxy.bytes_back() - before.bytes);
    }
    minimum
}

/// Starts a service whose database traffic is counted, and whose workers are idle.
pub(crate) async fn counted_service() -> Service {
    builder()
        .with_database_proxy()
        // With a single connection, the first measurement prepares every statement.
        .setting("DATABASE_MAX_CONNECTIONS", "1")
        .with_idle_workers()
        .start()
        .await
}

/// Waits until the pool is idle. A dropped connection counts as active until its ping has succeeded.
async fn wait_until_pool_is_idle(service: &Service) {
    eventually("the pool is idle", async || {
        (service.metric("db_connections_active").await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn hot_routes_make_the_stated_number_of_round_trips() {
    let service = counted_service().await;
    let customer = service.customer().await;
    let credentials = json!({ "email": customer.email, "password": PASSWORD });
    let mut counted = Vec::new();
    for (route, status, _) in ROUND_TRIPS {
        let request = async || match route {
            "POST /v1/sessions" => service.anonymous().post("/v1/sessions").json(&credentials),
            "GET /v1/me" => customer.get("/v1/me"),
            route => unreachable!("{route}"),
        };
        counted.push((route, status, measure_cost(&service, status, request).await.round_trips));
    }
    assert_eq!(counted, ROUND_TRIPS);
}
