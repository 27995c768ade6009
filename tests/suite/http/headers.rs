//! Headers: correlation ids, security headers, CORS, and the responses to HEAD requests. No response header names the
//! software.
use dev::harness::PATH;
use reqwest::Method;
use uuid::Uuid;

use crate::{builder, service};

#[tokio::test]
async fn an_invalid_correlation_id_is_replaced() {
    let service = service().await;
    let correlation_id_for = async |id: &str| {
        let response =
            service.anonymous().get("/nothing").header("x-correlation-id", id).await.assert_status(404);
        let header = response.header("x-correlation-id").unwrap().to_owned();
        assert_eq!(response.text("correlation_id"), header);
        header
    };
    let longest = "x".repeat(128);
    for valid in ["a", "A-Z_0.9", &longest] {
        assert_eq!(correlation_id_for(valid).await, valid);
    }
    for invalid in ["", "two words", "{\"level\":\"ERROR\"}", "a;b", &"x".repeat(129)] {
        let id = correlation_id_for(invalid).await;
        assert_ne!(id, invalid);
        assert!(Uuid::parse_str(&id).is_ok(), "{id}");
    }
}

#[tokio::test]
async fn every_response_has_security_headers() {
    let service = service().await;
    let customer = service.customer().await;
    for path in ["/v1/me", PATH, "/nothing", "/problems", "/openapi.json"] {
        let response = customer.get(path).await;
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path}: {response}");
        assert_eq!(response.header("cache-control"), Some("no-store"), "{path}: {response}");
        assert!(response.header("content-security-policy").is_some(), "{path}: {response}");
        assert_eq!(response.header("access-control-allow-origin"), None, "{path}: {response}");
    }
}

#[tokio::test]
async fn no_response_names_the_software() {
    let service = service().await;
    let client = dev::http::client(dev::harness::WAIT_TIMEOUT).unwrap();
    let (api, ops) = (service.api_url(), service.ops_url());
    for url in [
        api.join(PATH).unwrap(),
        api.join("/v1/me").unwrap(),
        api.join("/nothing").unwrap(),
        api.join("/docs/").unwrap(),
        ops.join("/readyz").unwrap(),
        ops.join("/nothing").unwrap(),
    ] {
        let response = client.get(url.clone()).send().await.unwrap();
        for name in ["server", "x-powered-by", "via", "x-runtime"] {
            assert!(!response.headers().contains_key(name), "{name} at {url}");
        }
        let text = format!("{:?}", response.headers()).to_lowercase();
        for part in ["axum", "hyper", "tower", "rust", env!("CARGO_PKG_VERSION")] {
            assert!(!text.contains(part), "{part} at {url}: {text}");
        }
    }
}

#[tokio::test]
async fn only_configured_origins_are_allowed_by_cors() {
    let service = builder().setting("CORS_ALLOWED_ORIGINS", "https://shop.example").start().await;
    let preflight = |origin: &str| {
        let request = service.anonymous().request(Method::OPTIONS, PATH).header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,idempotency-key")
    };
    let allowed = preflight("https://shop.example").await.assert_status(200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://shop.example"));
    let headers = allowed.header("access-control-allow-headers").unwrap().to_lowercase();
    assert!(headers.contains("idempotency-key") && headers.contains("authorization"), "{headers}");
    assert_eq!(allowed.header("access-control-allow-credentials"), None, "{allowed}");
    let other = preflight("https://evil.example").await;
    assert_eq!(other.header("access-control-allow-origin"), None, "{other}");
    let rejected =
        service.anonymous().get("/v1/me").header("origin", "https://shop.example").await.assert_status(401);
    assert_eq!(rejected.header("access-control-allow-origin"), Some("https://shop.example"));
    assert!(rejected.header("access-control-expose-headers").unwrap().contains("idempotency-replayed"));
}

#[tokio::test]
async fn head_responds_like_get_without_a_body() {
    let service = service().await;
    let customer = service.customer().await;
    let id = customer.creates().await.assert_status(201).id();
    let paths = ["/v1/me".to_owned(), PATH.to_owned(), format!("{PATH}/{id}"), "/openapi.json".to_owned()];
    for path in paths {
        let head = customer.request(Method::HEAD, &path).await.assert_status(200);
        let get = customer.get(&path).await.assert_status(200);
        assert_eq!(head.text, "", "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
    }
}
