use axum::{
    body::Body,
    http::{Request, Response},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::{settings::Environment, telemetry::logs::reloadable};

/// Returns a filter, and leaks its layer, because the filter works only as long as the layer exists.
fn filter() -> LogFilter {
    let (layer, filter) = reloadable(Environment::Production, None).unwrap();
    Box::leak(Box::new(layer));
    filter
}

const TOKEN: &str = "a-token-of-operations";
const LOOPBACK: &str = "127.0.0.1:50000";
const REMOTE: &str = "192.0.2.7:50000";

fn with_token(token: Option<&str>) -> Router {
    router_with(token, |_| {})
}

fn router_with(token: Option<&str>, on_event: impl Fn(LogLevelEvent) + Send + Sync + 'static) -> Router {
    let address = "10.1.2.3:9000".parse().unwrap();
    routes(LogLevel::new(filter(), address, token.map(SecretString::from), on_event))
}

fn put(peer: &str, host: &str, body: &Value) -> Request<Body> {
    let peer: SocketAddr = peer.parse().unwrap();
    Request::put("/log-level")
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .extension(ConnectInfo(peer))
        .body(Body::from(body.to_string()))
        .unwrap()
}

async fn json_of(response: Response<Body>) -> Value {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

async fn current_level(router: &Router) -> Value {
    let request = Request::get("/log-level").body(Body::empty()).unwrap();
    json_of(router.clone().oneshot(request).await.unwrap()).await
}

async fn status_of(router: &Router, request: Request<Body>) -> u16 {
    router.clone().oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_change_returns_the_new_filter() {
    let router = with_token(None);
    assert_eq!(
        current_level(&router).await,
        json!({ "filter": "info", "default": "info", "expires_at": null })
    );
    let request = put(LOOPBACK, "localhost:9000", &json!({ "filter": "app=debug" }));
    let response = json_of(router.clone().oneshot(request).await.unwrap()).await;
    assert_eq!(response, json!({ "filter": "app=debug", "default": "info", "expires_at": null }));
    assert_eq!(current_level(&router).await, response);
}

#[tokio::test(start_paused = true)]
async fn a_temporary_change_ends_or_is_replaced_by_a_newer_one() {
    let (sender, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let router = router_with(None, move |event| sender.send(event).unwrap());
    let change = |filter, seconds: Option<u64>| {
        put(LOOPBACK, "localhost", &json!({ "filter": filter, "ttl_seconds": seconds }))
    };
    assert_eq!(status_of(&router, change("debug", Some(60))).await, 200);
    assert!(current_level(&router).await["expires_at"].is_string());
    sleep(Duration::from_secs(50)).await;
    assert_eq!(status_of(&router, change("trace", Some(60))).await, 200);
    sleep(Duration::from_secs(50)).await;
    assert_eq!(current_level(&router).await["filter"], "trace");
    sleep(Duration::from_secs(11)).await;
    assert_eq!(
        current_level(&router).await,
        json!({ "filter": "info", "default": "info", "expires_at": null })
    );

    assert_eq!(status_of(&router, change("debug", Some(60))).await, 200);
    assert_eq!(status_of(&router, change("warn", None)).await, 200);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(
        current_level(&router).await,
        json!({ "filter": "warn", "default": "info", "expires_at": null })
    );

    let changes: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok())
        .map(|event| match event {
            LogLevelEvent::Changed(now) => (now.action, now.before, now.after, now.ttl_seconds),
            LogLevelEvent::Rejected { reason } => panic!("rejected: {reason}"),
        })
        .collect();
    let expected = [
        ("change", "info", "debug", Some(60)),
        ("change", "debug", "trace", Some(60)),
        ("restore", "trace", "info", None),
        ("change", "info", "debug", Some(60)),
        ("change", "debug", "warn", None),
    ];
    assert_eq!(
        changes,
        expected.map(|(action, before, after, ttl)| (action, before.to_owned(), after.to_owned(), ttl))
    );
}

#[tokio::test]
async fn only_loopback_and_token_holders_may_change_the_filter() {
    let body = json!({ "filter": "off" });
    let request = |peer, token: Option<&str>| {
        let mut request = put(peer, "10.1.2.3:9000", &body);
        if let Some(token) = token {
            request.headers_mut().insert(header::AUTHORIZATION, token.parse().unwrap());
        }
        request
    };
    let bearer = format!("Bearer {TOKEN}");
    let (open, closed) = (with_token(Some(TOKEN)), with_token(None));
    for (router, peer, token, status) in [
        (&open, LOOPBACK, None, 200),
        (&open, "[::1]:50000", None, 200),
        (&open, "[::ffff:127.0.0.1]:50000", None, 200),
        (&open, REMOTE, None, 401),
        (&open, REMOTE, Some("Bearer a-token-of-operation"), 401),
        (&open, REMOTE, Some("Basic a-token-of-operations"), 401),
        (&open, REMOTE, Some(TOKEN), 401),
        (&open, REMOTE, Some(bearer.as_str()), 200),
        (&closed, LOOPBACK, None, 200),
        (&closed, REMOTE, None, 403),
        (&closed, REMOTE, Some(bearer.as_str()), 403),
        (&closed, REMOTE, Some("Bearer "), 403),
    ] {
        assert_eq!(status_of(router, request(peer, token)).await, status, "{peer} {token:?}");
    }
}

#[tokio::test]
async fn an_unauthorized_change_is_reported() {
    for (token, peer, host, reason) in [
        (Some(TOKEN), LOOPBACK, "evil.example", "foreign_host"),
        (Some(TOKEN), REMOTE, "10.1.2.3:9000", "bad_token"),
        (None, REMOTE, "10.1.2.3:9000", "not_loopback"),
    ] {
        let (sender, mut rejections) = tokio::sync::mpsc::unbounded_channel();
        let router = router_with(token, move |event| sender.send(event).unwrap());
        let rejected = status_of(&router, put(peer, host, &json!({ "filter": "off" }))).await;
        assert!(matches!(rejected, 401 | 403), "{reason}");
        assert_eq!(rejections.try_recv(), Ok(LogLevelEvent::Rejected { reason }));
        assert!(rejections.try_recv().is_err(), "reported the rejection twice: {reason}");
    }
}

#[tokio::test]
async fn a_foreign_host_name_is_rejected() {
    let router = with_token(None);
    let body = json!({ "filter": "off" });
    for (host, status) in [
        ("localhost", 200),
        ("LocalHost:1234", 200),
        ("127.0.0.1:9000", 200),
        ("127.8.9.1", 200),
        ("[::1]:9000", 200),
        ("10.1.2.3:9000", 200),
        ("10.1.2.4:9000", 403),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:9000", 403),
        ("localhost@evil.example", 403),
        ("", 403),
    ] {
        assert_eq!(status_of(&router, put(LOOPBACK, host, &body)).await, status, "{host}");
    }
    let mut without = put(LOOPBACK, "localhost", &body);
    without.headers_mut().remove(header::HOST);
    assert_eq!(status_of(&router, without).await, 403);
    let mut twice = put(LOOPBACK, "localhost", &body);
    twice.headers_mut().append(header::HOST, "evil.example".parse().unwrap());
    assert_eq!(status_of(&router, twice).await, 403);
}

#[tokio::test]
async fn an_invalid_change_is_rejected() {
    let router = with_token(None);
    for (body, pointer) in [
        (json!({ "filter": "app=loud" }), "/filter"),
        (json!({ "filter": 3 }), "/filter"),
        (json!({ "filter": "off", "ttl_seconds": 0 }), "/ttl_seconds"),
        (json!({ "filter": "off", "ttl_seconds": MAX_SECONDS + 1 }), "/ttl_seconds"),
        (json!({ "filter": "off", "ttl_seconds": -1 }), "/ttl_seconds"),
        (json!({ "filter": "off", "ttl": 1 }), "/ttl"),
        (json!({ "filter": "off", "a/b~c": 1 }), "/a~1b~0c"),
        (json!({ "ttl_seconds": 1 }), ""),
    ] {
        let response = router.clone().oneshot(put(LOOPBACK, "localhost", &body)).await.unwrap();
        assert_eq!(response.status(), 422, "{body}");
        assert_eq!(json_of(response).await["errors"][0]["pointer"], pointer, "{body}");
    }
    for (body, status) in [("{\"filter\":", 400), ("{\"filter\":\"off\"} {}", 400), ("", 400)] {
        let request = put(LOOPBACK, "localhost", &json!(null)).map(|_| Body::from(body));
        assert_eq!(status_of(&router, request).await, status, "{body}");
    }
    let large = json!({ "filter": "o".repeat(MAX_BODY_BYTES) });
    assert_eq!(status_of(&router, put(LOOPBACK, "localhost", &large)).await, 413);
    let mut untyped = put(LOOPBACK, "localhost", &json!({ "filter": "off" }));
    untyped.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    assert_eq!(status_of(&router, untyped).await, 415);
    assert_eq!(current_level(&router).await["filter"], "info");
}
