//! Rejections are problems (RFC 9457) that expose no internals. Each problem type has a page that describes it.
use std::collections::BTreeSet;

use dev::harness::{HttpResponse, PATH, Request, Service, TABLE, User, body};
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use crate::service;

#[tokio::test]
async fn an_unknown_path_gets_a_404_problem() {
    let service = service().await;
    let with_a_slash = format!("{PATH}/");
    for path in
        ["/", "/nothing", "/v1", "/v1/nothing", &with_a_slash, "/v2/users", "/problems/nothing", "/%00"]
    {
        let rejected = service.anonymous().get(path).await;
        assert_eq!(rejected.status, 404, "{path}: {rejected}");
        let rejected = rejected.assert_problem(404, "not-found");
        assert_eq!(rejected.text("instance"), path);
        assert_eq!(rejected.header("x-correlation-id"), Some(rejected.text("correlation_id").as_str()));
    }
}

#[tokio::test]
async fn a_405_lists_the_allowed_methods() {
    let service = service().await;
    for (method, path, allowed) in [
        ("DELETE", PATH, &["GET", "HEAD", "POST"][..]),
        ("GET", "/v1/users", &["POST"]),
        ("GET", "/v1/sessions/current", &["DELETE"]),
        ("BREW", "/v1/me", &["GET", "HEAD"]),
        ("POST", "/openapi.json", &["GET", "HEAD"]),
        ("POST", "/problems", &["GET", "HEAD"]),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let rejected = service.anonymous().request(method.clone(), path).await;
        assert_eq!(rejected.status, 405, "{method} {path}: {rejected}");
        let rejected = rejected.assert_problem(405, "method-not-allowed");
        let mut allow: Vec<_> = rejected.header("allow").unwrap().split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow, allowed, "{method} {path}");
    }
}

fn create_with(customer: &User, body: impl Into<Vec<u8>>) -> Request {
    customer.post(PATH).new_key().header("content-type", "application/json").body(body)
}

#[tokio::test]
async fn a_body_that_is_not_json_is_malformed() {
    let service = service().await;
    let customer = service.customer().await;
    let deep = [b"[".repeat(10_000), b"]".repeat(10_000)].concat();
    for body in [
        &b""[..],
        b"{",
        b"items=1",
        br#"{"items":[],}"#,
        br#"{"items":[]} and more"#,
        b"{\"items\":[\xff]}",
        br#"{"items":"\ud800"}"#,
        &deep,
    ] {
        let rejected = create_with(&customer, body).await;
        assert_eq!(rejected.status, 400, "{:?}: {rejected}", String::from_utf8_lossy(body));
        let _rejected = rejected.assert_problem(400, "malformed-request");
    }
    assert_eq!(service.metric("panics_total").await, 0);
}

#[tokio::test]
async fn a_body_requires_a_json_media_type() {
    let service = service().await;
    let customer = service.customer().await;
    let body = body().to_string();
    for accepted in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/merge-patch+json",
    ] {
        let _placed =
            create_with(&customer, body.clone()).header("content-type", accepted).await.assert_status(201);
    }
    for other in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json", ""] {
        let rejected = create_with(&customer, body.clone()).header("content-type", other).await;
        let _rejected = rejected.assert_problem(415, "unsupported-media-type");
    }
    let rejected = create_with(&customer, body).without_header("content-type").await;
    let _rejected = rejected.assert_problem(415, "unsupported-media-type");
}

#[tokio::test]
async fn a_client_that_does_not_accept_json_gets_406() {
    let service = service().await;
    let customer = service.customer().await;
    for accepted in ["*/*", "application/*", "application/json", "text/html, application/json;q=0.1"] {
        let _served = customer.lists().header("accept", accepted).await.assert_status(200);
    }
    for other in ["text/html", "application/xml", "application/json;q=0", "image/*"] {
        let _rejected = customer.lists().header("accept", other).await.assert_problem(406, "not-acceptable");
    }
    let _page = service.anonymous().get("/docs/").header("accept", "text/html").await.assert_status(200);
}

#[tokio::test]
async fn an_oversized_body_is_rejected_with_or_without_length() {
    let service = service().await;
    let customer = service.customer().await;
    let body_of_length = |bytes: usize| {
        let text = body().to_string();
        let padding = " ".repeat(bytes - text.len());
        text + &padding
    };
    let _fits = create_with(&customer, body_of_length(65_536)).await.assert_status(201);
    let _too_large =
        create_with(&customer, body_of_length(65_537)).await.assert_problem(413, "body-too-large");

    for (bytes, expected) in [(65_536, "HTTP/1.1 201"), (65_537, "HTTP/1.1 413"), (1_000_000, "HTTP/1.1 413")]
    {
        let response = send_in_chunks(&service, &customer, &body_of_length(bytes)).await;
        assert!(response.starts_with(expected), "{bytes} bytes in chunks: {response}");
        assert!(expected.ends_with("201") || response.contains("/problems/body-too-large"), "{response}");
    }
}

/// Sends a body without a declared length. Returns the response as sent on the wire.
async fn send_in_chunks(service: &Service, customer: &User, body: &str) -> String {
    let address = service.api_url().socket_addrs(|| None).unwrap()[0];
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\nidempotency-key: {}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        customer.token,
        Uuid::now_v7()
    );
    let chunks: Vec<_> = body
        .as_bytes()
        .chunks(1000)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap()))
        .collect();
    let sending = async {
        write.write_all(head.as_bytes()).await?;
        write.write_all(chunks.concat().as_bytes()).await?;
        write.write_all(b"0\r\n\r\n").await
    };
    let mut response = Vec::new();
    // The service may respond and close the connection before it has read the whole body, so the test ignores write
    // and read errors.
    let (_sent, _read) = tokio::join!(sending, read.read_to_end(&mut response));
    String::from_utf8(response).unwrap()
}

#[tokio::test]
async fn a_malformed_query_gets_400() {
    let service = service().await;
    let customer = service.customer().await;
    for query in [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=ten",
        "limit=1.5",
        "limit=",
        "limit=1&limit=2",
        "cursor=nonsense",
        "cursor=",
        "cursor=AAAA",
    ] {
        let rejected = customer.get(format!("{PATH}?{query}")).await;
        assert_eq!(rejected.status, 400, "{query}: {rejected}");
        let _rejected = rejected.assert_problem(400, "malformed-request");
    }
}

#[tokio::test]
async fn an_invalid_id_gets_404() {
    let service = service().await;
    let customer = service.customer().await;
    for id in ["7", "me", "00000000-0000-0000-0000-00000000000g", "%00", "..%2f..%2fetc"] {
        let rejected = customer.get(format!("{PATH}/{id}")).await;
        assert_eq!(rejected.status, 404, "{id}: {rejected}");
        let _rejected = rejected.assert_problem(404, "not-found");
    }
}

#[tokio::test]
async fn every_problem_type_has_its_page() {
    let service = service().await;
    let anonymous = service.anonymous();
    let all = anonymous.get("/problems").await.assert_status(200).json();
    let all = all["data"].as_array().unwrap();
    let statuses: BTreeSet<_> = all.iter().map(|kind| kind["status"].as_u64().unwrap()).collect();
    let expected = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 429, 500, 503, 504];
    assert_eq!(statuses.into_iter().collect::<Vec<_>>(), expected);
    for kind in all {
        let page = anonymous.get(kind["type"].as_str().unwrap()).await.assert_status(200).json();
        assert_eq!(&page, kind);
        assert!(page["about"].as_str().unwrap().len() > 20 && !page["title"].as_str().unwrap().is_empty());
    }
}

/// The members of a problem.
const MEMBERS: [&str; 8] =
    ["type", "title", "status", "detail", "instance", "correlation_id", "trace_id", "errors"];

/// Panics if a rejection exposes internals.
pub fn exposes_no_internals(response: &HttpResponse) {
    let text = response.text.to_lowercase();
    for word in ["select ", "relation ", "column ", "sql", "postgres", "panic", "src/", ".rs", "127.0.0.1"] {
        assert!(!text.contains(word), "{word}: {response}");
    }
    let body = response.json();
    for member in body.as_object().unwrap().keys() {
        assert!(MEMBERS.contains(&member.as_str()), "{member}: {response}");
    }
    assert!(response.header("server").is_none(), "{response}");
}

#[tokio::test]
async fn an_internal_error_is_logged_and_hidden_from_the_caller() {
    let service = service().await;
    let customer = service.customer().await;
    service.database().execute(format!("revoke select on {TABLE} from app_runtime")).await;
    let failed = customer.lists().header("x-correlation-id", "what-happened").await;
    let failed = failed.assert_problem(500, "internal-error");
    exposes_no_internals(&failed);
    assert_eq!(failed.text("correlation_id"), "what-happened");
    let cause = service
        .wait_for_log("the cause with the correlation id", |line| {
            line["level"] == "ERROR" && line["correlation_id"] == "what-happened"
        })
        .await;
    assert!(cause.to_string().contains(TABLE), "{cause}");
}
