//! The access rules of the console.
use dev::{console::Console, harness::WAIT_TIMEOUT};
use reqwest::{Method, Response};

use super::fixture::console;

async fn send(console: &Console, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let client = dev::http::client(WAIT_TIMEOUT).unwrap();
    let mut request = client.request(method, format!("{}{path}", console.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_foreign_host_name_is_rejected() {
    let console = console().await;
    let port = console.url().rsplit(':').next().unwrap().to_owned();
    let localhost = format!("localhost:{port}");
    for (host, status) in [
        (localhost.as_str(), 200),
        ("rebound.example.com", 403),
        (&format!("rebound.example.com:{port}"), 403),
        ("127.0.0.1", 403),
    ] {
        for path in ["/now", "/api/logs", "/api/stream"] {
            let response = send(&console, Method::GET, path, &[("host", host)]).await;
            assert_eq!(response.status(), status, "{host} {path}");
        }
        if status == 403 {
            let spans = send(&console, Method::POST, "/v1/traces", &[("host", host)]).await;
            assert_eq!(spans.status(), 403, "{host}");
        }
    }
}

#[tokio::test]
async fn a_foreign_origin_is_rejected_and_a_link_is_not() {
    let console = console().await;
    let own = console.url();
    let json = ("content-type", "application/json");
    for (origin, status) in [(own.as_str(), 503), ("http://evil.example.com", 403), ("null", 403)] {
        // The console rejects a foreign origin before it checks the content type. A request from the console's own page
        // gets 415 without a content type. With JSON, this request gets 503, because the console observes no service.
        let response = send(&console, Method::POST, "/api/normal", &[("origin", origin)]).await;
        let without_json = if status == 403 { 403 } else { 415 };
        assert_eq!(response.status(), without_json, "{origin}");
        let client = dev::http::client(WAIT_TIMEOUT).unwrap();
        let request =
            client.post(format!("{own}/api/normal")).header("origin", origin).header(json.0, json.1);
        assert_eq!(request.body("{}").send().await.unwrap().status(), status, "{origin}");
    }
    let embedded =
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
    assert_eq!(send(&console, Method::GET, "/api/logs", &embedded).await.status(), 403);
    let link =
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    assert_eq!(send(&console, Method::GET, "/traces", &link).await.status(), 200);
}

#[tokio::test]
async fn the_console_is_local_and_loads_no_foreign_resource() {
    let console = console().await;
    assert!(console.url().starts_with("http://127.0.0.1:"), "{}", console.url());
    let page = send(&console, Method::GET, "/now", &[]).await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    let text = page.text().await.unwrap();
    assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("<style"), "{text}");
    assert_eq!(send(&console, Method::GET, "/assets/..%2Fmod.rs", &[]).await.status(), 404);
}
