//! Limits: the duration, the number and the rate of requests, the number and the idle time of connections, and the size
//! of headers. A 429 and a 503 have a `Retry-After`. A malformed request is rejected, counted and logged.
use std::time::Duration;

use dev::harness::{HttpResponse, Request, Service, TABLE, WAIT_TIMEOUT, eventually};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::problems::exposes_no_internals;
use crate::{builder, service};

#[tokio::test]
async fn a_slow_database_gives_503_until_it_is_fast_again() {
    let service = builder().setting("DATABASE_STATEMENT_TIMEOUT_MS", "1000").start().await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let request = customer.creates();
    let read = customer.lists().await.assert_problem(503, "unavailable");
    let write = request.clone().await.assert_problem(503, "unavailable");
    for rejected in [read, write] {
        assert!(rejected.header("retry-after").is_some(), "{rejected}");
        exposes_no_internals(&rejected);
    }
    held.release().await;
    let _read = customer.lists().await.assert_status(200);
    assert!(!request.await.assert_status(201).is_replayed());
}

#[tokio::test]
async fn a_pool_without_a_free_connection_gives_503_for_a_while() {
    let service = builder()
        .setting("DATABASE_MAX_CONNECTIONS", "1")
        .setting("DATABASE_ACQUIRE_TIMEOUT_MS", "1000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let waiting = customer.lists().in_background();
    service.database().wait_for_blocked_statements(1).await;
    let rejected = customer.get("/v1/me").await.assert_problem(503, "unavailable");
    assert!(rejected.header("retry-after").is_some());
    assert!(service.metric("db_connection_acquire_timeouts_total").await >= 1);
    held.release().await;
    let _served = waiting.response().await.assert_status(200);
    let _recovered = customer.get("/v1/me").await.assert_status(200);
}

#[tokio::test]
async fn a_request_has_a_deadline() {
    let service = builder().with_a_deadline_of_ms(1000).start().await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let late = customer.lists().await.assert_problem(504, "timeout");
    exposes_no_internals(&late);
    held.release().await;
    let _recovered = customer.lists().await.assert_status(200);
}

#[tokio::test]
async fn a_cancelled_request_has_no_later_effect() {
    let service =
        builder().setting("DATABASE_MAX_CONNECTIONS", "1").with_a_deadline_of_ms(1000).start().await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let blocking = customer.lists().in_background();
    service.database().wait_for_blocked_statements(1).await;
    let request = customer.creates();
    let _late = request.clone().await.assert_problem(504, "timeout");
    let _late = blocking.response().await.assert_problem(504, "timeout");
    held.release().await;
    assert!(!request.await.assert_status(201).is_replayed(), "the cancelled request had an effect");
}

#[tokio::test]
async fn an_overloaded_service_responds_503_at_once() {
    let service = builder().setting("MAX_REQUESTS_IN_FLIGHT", "2").start().await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let waiting = [(); 2].map(|()| customer.lists().in_background());
    service.database().wait_for_blocked_statements(2).await;
    let rejected = service.anonymous().get("/problems").await.assert_problem(503, "unavailable");
    assert!(rejected.header("retry-after").is_some());
    held.release().await;
    for request in waiting {
        let _served = request.response().await.assert_status(200);
    }
}

/// Sends the same request until it is rejected, at most 100 times. Returns the number of accepted requests, and the
/// rejection.
async fn send_until_rejected(request: Request) -> (usize, HttpResponse) {
    for sent in 0..100 {
        let response = request.clone().await;
        if response.status != 200 {
            return (sent, response);
        }
    }
    panic!("100 requests were accepted: {request:?}");
}

#[tokio::test]
async fn a_429_has_a_retry_after() {
    for (setting, limits_address) in
        [("RATE_LIMIT_CALLER_PER_SECOND", false), ("RATE_LIMIT_ADDRESS_PER_SECOND", true)]
    {
        let service = builder().setting(setting, "1").start().await;
        let customer = service.customer().await;
        let (accepted, rejected) = send_until_rejected(customer.get("/v1/me")).await;
        assert!(accepted >= 7, "{setting}: only {accepted} requests of a burst of ten were accepted");
        let rejected = rejected.assert_problem(429, "too-many-requests");
        assert_eq!(rejected.header("retry-after"), Some("1"));
        let policy = if limits_address { "address" } else { "caller" };
        let value_of = |header: &str| rejected.header(header).unwrap_or_default().to_owned();
        assert_eq!(value_of("ratelimit"), format!("\"{policy}\";r=0;t=1"), "{rejected}");
        assert_eq!(value_of("ratelimit-policy"), format!("\"{policy}\";q=10;w=10"), "{rejected}");
        let another_caller = service.anonymous().get("/problems");
        if limits_address {
            let _rejected =
                send_until_rejected(another_caller).await.1.assert_problem(429, "too-many-requests");
        } else {
            let _served = another_caller.await.assert_status(200);
        }
    }
}

#[tokio::test]
async fn headers_report_the_remaining_requests_of_each_limit() {
    let service = builder()
        .setting("RATE_LIMIT_CALLER_PER_SECOND", "5")
        .setting("RATE_LIMIT_ADDRESS_PER_SECOND", "20")
        .start()
        .await;
    let response = service.customer().await.get("/v1/me").await.assert_status(200);
    let value_of = |header: &str| {
        let values = response.headers.get_all(header).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(value_of("ratelimit-policy"), ["\"caller\";q=50;w=10", "\"address\";q=200;w=10"]);
    let left = value_of("ratelimit");
    assert!(left[0].starts_with("\"caller\";r=49;t="), "{left:?}");
    assert!(left[1].starts_with("\"address\";r=19"), "{left:?}");
}

#[tokio::test]
async fn a_client_cannot_evade_the_limit_by_a_forged_header() {
    let from = |service: &Service, header: &str, value: &str| {
        service.anonymous().get("/problems").header(header, value)
    };
    let direct = builder().setting("RATE_LIMIT_ADDRESS_PER_SECOND", "1").start().await;
    let mut rejected = false;
    for n in 0..40 {
        let header = ["x-forwarded-for", "forwarded", "x-real-ip"][n % 3];
        let value = if header == "forwarded" { format!("for=192.0.2.{n}") } else { format!("192.0.2.{n}") };
        rejected |= from(&direct, header, &value).await.status == 429;
    }
    assert!(rejected, "without a trusted proxy, the limit must apply to the address of the peer");

    let proxied = builder()
        .setting("RATE_LIMIT_ADDRESS_PER_SECOND", "1")
        .setting("TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    let _limited =
        send_until_rejected(from(&proxied, "x-forwarded-for", "192.0.2.1")).await.1.assert_status(429);
    let _another = from(&proxied, "x-forwarded-for", "192.0.2.2").await.assert_status(200);
    for forged in ["198.51.100.1, 192.0.2.1", "198.51.100.2, 192.0.2.1", "\"for=1\", 192.0.2.1"] {
        let _forged_entry_is_ignored = from(&proxied, "x-forwarded-for", forged).await.assert_status(429);
    }
    let _limited =
        send_until_rejected(from(&proxied, "x-forwarded-for", "2001:db8::1")).await.1.assert_status(429);
    let _same_network = from(&proxied, "x-forwarded-for", "2001:db8::ffff").await.assert_status(429);
    let _another = from(&proxied, "x-forwarded-for", "2001:db8:0:1::1").await.assert_status(200);
}

#[tokio::test]
async fn the_client_address_comes_from_the_configured_header() {
    for (written, line, other, forged) in [
        ("x-forwarded-for", "192.0.2.1", "forwarded", "for=198.51.100.66"),
        ("forwarded", "for=\"192.0.2.1:80\"", "x-forwarded-for", "198.51.100.66"),
    ] {
        let service =
            builder().setting("TRUSTED_PROXIES", "127.0.0.0/8").setting("FORWARDED_HEADER", written);
        let service = service.start().await;
        let request = service.anonymous().get("/v1/me").header(written, line).header(other, forged);
        let _rejected = request.header("authorization", "Bearer unknown").await.assert_status(401);
        let audited = service.audit_events("metadata ->> 'reason' = 'bad_token'").await;
        assert_eq!(audited[0]["ip_address"], "192.0.2.1", "{written}");
        let is_access_line = |line: &Value| line["target"] == "access" && line["route"] == "/v1/me";
        let access = service.wait_for_log("the access line", is_access_line).await;
        assert_eq!(access["client_address"], "192.0.2.1", "{written}");
    }
}

/// A raw connection, on which a test can send bytes that no client library would send.
struct RawConnection(TcpStream);

impl RawConnection {
    async fn to(service: &Service) -> Self {
        let address = service.api_url().socket_addrs(|| None).unwrap()[0];
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Returns all bytes until the service closes the connection.
    async fn read_until_closed(&mut self) -> String {
        let mut response = Vec::new();
        let closed = tokio::time::timeout(WAIT_TIMEOUT, self.0.read_to_end(&mut response)).await;
        assert!(closed.is_ok(), "the connection is still open: {}", String::from_utf8_lossy(&response));
        String::from_utf8(response).unwrap()
    }

    async fn wait_for_response(&mut self) {
        let readable_in_time = tokio::time::timeout(WAIT_TIMEOUT, self.0.readable()).await;
        assert!(readable_in_time.is_ok_and(|readable| readable.is_ok()), "there is no response");
    }
}

#[tokio::test]
async fn a_client_with_slow_headers_is_disconnected() {
    let service = builder().setting("HEADER_TIMEOUT_MS", "1000").start().await;
    let mut slow = RawConnection::to(&service).await;
    slow.write("GET /problems HTTP/1.1\r\nhost: ").await;
    assert!(!slow.read_until_closed().await.contains(" 200 "));
}

#[tokio::test]
async fn a_slow_body_gets_a_response_and_is_disconnected() {
    let service = builder().with_a_deadline_of_ms(1000).start().await;
    let mut slow = RawConnection::to(&service).await;
    slow.write("POST /v1/users HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n").await;
    slow.write("content-length: 1000\r\n\r\n{\"email\":").await;
    let response = slow.read_until_closed().await;
    assert!(response.starts_with("HTTP/1.1 504") && response.contains("/problems/timeout"), "{response}");
}

#[tokio::test]
async fn a_slow_body_is_rejected_before_the_deadline() {
    let service = builder().setting("BODY_TIMEOUT_MS", "500").start().await;
    for path in ["/v1/users", "/v1/sessions"] {
        let mut slow = RawConnection::to(&service).await;
        slow.write(&format!("POST {path} HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n"))
            .await;
        slow.write("content-length: 1000\r\n\r\n{\"email\":").await;
        let response = slow.read_until_closed().await;
        assert!(
            response.starts_with("HTTP/1.1 400") && response.contains("Timed out reading the body."),
            "{response}"
        );
    }
}

#[tokio::test]
async fn slow_requests_of_one_address_do_not_starve_others() {
    let service = builder()
        .setting("MAX_REQUESTS_IN_FLIGHT", "3")
        .setting("MAX_REQUESTS_IN_FLIGHT_PER_ADDRESS", "2")
        .setting("TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let from = |address: &str| customer.with_header("x-forwarded-for", address);
    let waiting = [(); 2].map(|()| from("192.0.2.1").get(dev::harness::PATH).in_background());
    service.database().wait_for_blocked_statements(2).await;
    let rejected = from("192.0.2.1").get("/problems").await.assert_problem(429, "too-many-requests");
    assert!(rejected.header("retry-after").is_some(), "{rejected}");
    let _another_address = from("192.0.2.2").get("/problems").await.assert_status(200);
    held.release().await;
    for request in waiting {
        let _served = request.response().await.assert_status(200);
    }
    let _again = from("192.0.2.1").get("/problems").await.assert_status(200);
}

#[tokio::test]
async fn a_client_that_half_closes_its_connection_gets_its_response() {
    let service = service().await;
    let body = r#"{"email":"grace@example.com","password":"correct horse battery staple","name":"Grace"}"#;
    let mut connection = RawConnection::to(&service).await;
    connection.write("POST /v1/users HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n").await;
    connection.write(&format!("content-length: {}\r\n\r\n{body}", body.len())).await;
    connection.0.shutdown().await.unwrap();
    let response = connection.read_until_closed().await;
    assert!(response.starts_with("HTTP/1.1 201") && response.contains("grace@example.com"), "{response}");
}

#[tokio::test]
async fn a_request_without_one_valid_host_is_rejected() {
    let service = service().await;
    for hosts in
        ["", "host: shop\r\nhost: shop\r\n", "host: sh op\r\n", "host: user@shop\r\n", "host: shop:x\r\n"]
    {
        let mut connection = RawConnection::to(&service).await;
        connection.write(&format!("GET /problems HTTP/1.1\r\n{hosts}connection: close\r\n\r\n")).await;
        let response = connection.read_until_closed().await;
        assert!(
            response.starts_with("HTTP/1.1 400") && response.contains("malformed-request"),
            "{hosts}: {response}"
        );
    }
    assert_eq!(
        service.metric("http_requests_total{method=\"GET\",path=\"/problems\",status=\"400\"}").await,
        5
    );
    let mut old = RawConnection::to(&service).await;
    old.write("GET /problems HTTP/1.0\r\n\r\n").await;
    assert!(old.read_until_closed().await.contains(" 200 "), "HTTP/1.0 must not require a Host");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let service = builder().setting("WRITE_TIMEOUT_MS", "1000").start().await;
    let mut connection = RawConnection::to(&service).await;
    // The responses to these requests exceed the kernel's buffers for the connection, so the service cannot write them.
    let request = "GET /openapi.json HTTP/1.1\r\nhost: shop\r\n\r\n";
    let writing = async { while connection.0.write_all(request.repeat(100).as_bytes()).await.is_ok() {} };
    let closed = tokio::time::timeout(WAIT_TIMEOUT, writing).await;
    assert!(closed.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn an_idle_http_2_connection_is_closed() {
    let service = builder().setting("IDLE_TIMEOUT_MS", "1000").start().await;
    let stream = TokioIo::new(RawConnection::to(&service).await.0);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake::<_, _, String>(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let url = service.api_url().join("/problems").unwrap();
    let request = hyper::Request::get(url.as_str()).body(String::new()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    assert!(tokio::time::timeout(WAIT_TIMEOUT, connection).await.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn connections_of_one_address_do_not_starve_others() {
    let service = builder().setting("MAX_CONNECTIONS_PER_ADDRESS", "2").start().await;
    let address = service.api_url().socket_addrs(|| None).unwrap()[0];
    let connect = async |from: [u8; 4]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        RawConnection(socket.connect(address).await.unwrap())
    };
    let request = "GET /problems HTTP/1.1\r\nhost: shop\r\n\r\n";
    let mut open = [connect([127, 0, 0, 2]).await, connect([127, 0, 0, 2]).await];
    for connection in &mut open {
        connection.write(request).await;
        connection.wait_for_response().await;
    }
    assert_eq!(connect([127, 0, 0, 2]).await.read_until_closed().await, "");
    assert_eq!(service.metric("connections_refused_total").await, 1);
    let mut another = connect([127, 0, 0, 3]).await;
    another.write(request).await;
    another.wait_for_response().await;
    drop(open);
    eventually("the address may connect again", async || {
        let mut connection = connect([127, 0, 0, 2]).await;
        let _closed = connection.0.write_all(request.as_bytes()).await;
        let mut first = [0; 1];
        matches!(connection.0.read(&mut first).await, Ok(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn too_large_or_too_many_headers_are_rejected() {
    let service = service().await;
    for headers in [format!("cookie: {}\r\n", "c".repeat(32 * 1024)), "x: y\r\n".repeat(101)] {
        let mut connection = RawConnection::to(&service).await;
        connection.write(&format!("GET /problems HTTP/1.1\r\nhost: shop\r\n{headers}\r\n")).await;
        assert!(connection.read_until_closed().await.starts_with("HTTP/1.1 431"));
    }
    let _others_are_served = service.anonymous().get("/problems").await.assert_status(200);
}

#[tokio::test]
async fn malformed_requests_are_counted_and_logged() {
    let service = service().await;
    let too_large = format!("GET / HTTP/1.1\r\nhost: shop\r\ncookie: {}\r\n\r\n", "c".repeat(32 * 1024));
    let invalid = "GET / HTTP/1.1\r\nhost: shop\r\nno header\r\n\r\n".to_owned();
    for (request, status, reason) in [(invalid, 400, "invalid"), (too_large, 431, "too_large")] {
        let series = format!("http_malformed_requests_total{{reason=\"{reason}\"}}");
        assert_eq!(service.metric(&series).await, 0);
        let mut connection = RawConnection::to(&service).await;
        connection.write(&request).await;
        assert!(connection.read_until_closed().await.starts_with(&format!("HTTP/1.1 {status}")));
        eventually("the request is counted", async || (service.metric(&series).await == 1).then_some(()))
            .await;
        let logged = service
            .wait_for_log("the request is logged", |line| {
                line["message"] == "rejected a malformed request" && line["reason"] == reason
            })
            .await;
        assert!(logged["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{logged:#}");
    }
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_and_probes_do_not() {
    let service = builder().setting("MAX_CONNECTIONS", "2").start().await;
    let request = "GET /problems HTTP/1.1\r\nhost: shop\r\n\r\n";
    let mut open = [RawConnection::to(&service).await, RawConnection::to(&service).await];
    for connection in &mut open {
        connection.write(request).await;
        connection.wait_for_response().await;
    }
    let mut third = RawConnection::to(&service).await;
    third.write(request).await;
    assert!(tokio::time::timeout(Duration::from_millis(500), third.0.readable()).await.is_err());
    assert_eq!(service.ops("/readyz").await.0, 200, "the operations listener must have a limit of its own");
    drop(open);
    third.wait_for_response().await;
}

#[tokio::test]
async fn http_2_without_tls_is_supported_and_limited() {
    let service = builder().setting("RATE_LIMIT_ADDRESS_PER_SECOND", "1").start().await;
    let stream = TokioIo::new(RawConnection::to(&service).await.0);
    let (client, connection) =
        hyper::client::conn::http2::handshake::<_, _, String>(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let url = service.api_url().join("/problems").unwrap();
    let responses = (0..20).map(|_| {
        let request = hyper::Request::get(url.as_str()).body(String::new()).unwrap();
        client.clone().send_request(request)
    });
    let mut statuses = Vec::new();
    for response in responses.collect::<Vec<_>>() {
        let response = response.await.unwrap();
        assert_eq!(response.version(), hyper::Version::HTTP_2);
        statuses.push(response.status().as_u16());
    }
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
}
