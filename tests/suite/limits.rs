//! What a request may cost: time, connections, a place among the others. Each limit says when to come back.
use std::time::Duration;

use dev::harness::{Answer, MUG, Request, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{builder, problems::tells_nothing_of_the_inside};

#[tokio::test]
async fn a_database_that_is_too_slow_is_an_outage_that_passes() {
    let service = builder().setting("DATABASE_STATEMENT_TIMEOUT_MS", "1000").start().await;
    let customer = service.customer().await;
    let held = service.database().hold("lock table orders in access exclusive mode").await;
    let order = customer.orders(&[(MUG, 1)]);
    let read = customer.get("/v1/orders").await.is_problem(503, "unavailable");
    let write = order.clone().await.is_problem(503, "unavailable");
    for refused in [read, write] {
        assert!(refused.header("retry-after").is_some(), "{refused}");
        tells_nothing_of_the_inside(&refused);
    }
    held.release().await;
    let _read = customer.get("/v1/orders").await.is(200);
    assert!(!order.await.is(201).is_replayed());
}

#[tokio::test]
async fn a_pool_without_a_free_connection_is_an_outage_that_passes() {
    let service = builder()
        .setting("DATABASE_MAX_CONNECTIONS", "1")
        .setting("DATABASE_ACQUIRE_TIMEOUT_MS", "1000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().hold("lock table products in access exclusive mode").await;
    let waiting = service.nobody().get("/v1/products").in_background();
    let refused = eventually("there is no connection left", async || {
        let answer = customer.get("/v1/me").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    let refused = refused.is_problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    assert!(service.metric("db_connection_acquire_timeouts_total").await >= 1);
    held.release().await;
    let _served = waiting.answer().await.is(200);
    let _well_again = customer.get("/v1/me").await.is(200);
}

#[tokio::test]
async fn a_request_has_a_deadline() {
    let service =
        builder().setting("REQUEST_TIMEOUT_MS", "1000").setting("GATEWAY_TIMEOUT_MS", "900").start().await;
    let held = service.database().hold("lock table products in access exclusive mode").await;
    let late = service.nobody().get("/v1/products").await.is_problem(504, "timeout");
    tells_nothing_of_the_inside(&late);
    held.release().await;
    let _well_again = service.nobody().get("/v1/products").await.is(200);
}

#[tokio::test]
async fn an_overloaded_service_says_so_at_once() {
    let service = builder().setting("MAX_REQUESTS_IN_FLIGHT", "2").start().await;
    let held = service.database().hold("lock table products in access exclusive mode").await;
    let waiting = [(); 2].map(|()| service.nobody().get("/v1/products").in_background());
    let refused = eventually("the service is full", async || {
        let answer = service.nobody().get("/problems").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    let refused = refused.is_problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    held.release().await;
    for request in waiting {
        let _served = request.answer().await.is(200);
    }
}

/// Sends the same request until it is refused; how often it was let through before.
async fn until_refused(request: Request) -> (usize, Answer) {
    for sent in 0..100 {
        let answer = request.clone().await;
        if answer.status != 200 {
            return (sent, answer);
        }
    }
    panic!("it is never refused: {request:?}");
}

#[tokio::test]
async fn whoever_sends_too_much_is_told_when_to_come_back() {
    for (setting, everybody_at_the_address) in
        [("RATE_LIMIT_CALLER_PER_SECOND", false), ("RATE_LIMIT_ADDRESS_PER_SECOND", true)]
    {
        let service = builder().setting(setting, "1").start().await;
        let customer = service.customer().await;
        let (let_through, refused) = until_refused(customer.get("/v1/me")).await;
        assert!(let_through >= 7, "{setting}: a burst of ten is let through, not of {let_through}");
        let refused = refused.is_problem(429, "too-many-requests");
        assert_eq!(refused.header("retry-after"), Some("1"));
        let somebody_else = service.nobody().get("/v1/products");
        if everybody_at_the_address {
            let _refused = until_refused(somebody_else).await.1.is_problem(429, "too-many-requests");
        } else {
            let _served = somebody_else.await.is(200);
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_too_long_over_its_headers_is_cut_off() {
    let service = builder().setting("HEADER_TIMEOUT_MS", "1000").start().await;
    let address = service.api_url().socket_addrs(|| None).unwrap()[0];
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /v1/products HTTP/1.1\r\nhost: ").await.unwrap();
    let mut answer = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut answer)).await;
    assert!(cut.is_ok(), "the connection is still open");
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
}
