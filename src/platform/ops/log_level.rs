//! Changing what is logged while the process runs.
//!
//! Whoever may turn logging off can hide what comes next, so reading is open to all who reach the listener,
//! and changing is not:
//!
//! - The request must be meant for this listener: its `Host` is loopback or the listener's own address. A web
//!   page in an operator's browser can point its own name at this address (DNS rebinding), and its requests
//!   then come from the operator's machine; but they carry that name.
//! - A caller who is not on loopback shows the operations token; where none is set, only loopback may change it.
//!
//! A change may have an end, after which the default returns: a debug level that was forgotten costs money.
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, Uri, header, uri::Authority},
    routing::get,
};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_path_to_error::Segment;
use subtle::ConstantTimeEq;
use tokio::{task::AbortHandle, time::sleep};

use crate::platform::{
    http::problem::{self, FieldError, Problem},
    telemetry::logs::LogFilter,
    workers::spawn_in_present_context,
};

/// A filter that is longer names more targets than anybody reads.
const BODY_LIMIT: usize = 4 * 1024;

/// A level that is to stay longer belongs into the configuration.
const LONGEST_SECONDS: u64 = 7 * 24 * 60 * 60;

/// The log level of the process, and who may change it. Cheap to clone.
#[derive(Clone)]
pub struct LogLevel(Arc<Inner>);

struct Inner {
    filter: LogFilter,
    address: SocketAddr,
    token: Option<SecretString>,
    temporary: Mutex<Option<Temporary>>,
    tell: Box<dyn Fn(Happened) + Send + Sync>,
}

/// What happened to the log level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// It was changed.
    Changed(Changed),
    /// Somebody wanted to change it who may not.
    Refused {
        /// `foreign_host`, `not_loopback` or `bad_token`.
        reason: &'static str,
    },
}

/// One filter took the place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// `change` if somebody wanted it, `restore` if a change has ended.
    pub action: &'static str,
    /// The filter until now.
    pub before: String,
    /// The filter from now on.
    pub after: String,
    /// After how many seconds it ends, if it does.
    pub ttl_seconds: Option<u64>,
}

/// A change that has an end.
struct Temporary {
    expires_at: DateTime<Utc>,
    end: AbortHandle,
}

/// What is logged.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Level {
    filter: String,
    default: String,
    expires_at: Option<DateTime<Utc>>,
}

/// What is to be logged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    filter: String,
    ttl_seconds: Option<u64>,
}

impl LogLevel {
    /// The log level behind the listener at `address`; `token` opens it to callers who are not on loopback.
    /// `tell` is called with each change and each refusal, in the context of whoever is behind it, and must not wait.
    pub fn new(
        filter: LogFilter,
        address: SocketAddr,
        token: Option<SecretString>,
        tell: impl Fn(Happened) + Send + Sync + 'static,
    ) -> Self {
        let temporary = Mutex::new(None);
        Self(Arc::new(Inner { filter, address, token, temporary, tell: Box::new(tell) }))
    }

    fn level(&self) -> Level {
        let temporary = self.0.temporary();
        Level {
            filter: self.0.filter.current(),
            default: self.0.filter.default_filter().to_owned(),
            expires_at: temporary.as_ref().map(|temporary| temporary.expires_at),
        }
    }

    fn change(&self, change: &Change) -> Result<Level, Problem> {
        let ttl = change.ttl_seconds.map(ttl).transpose()?;
        {
            let mut temporary = self.0.temporary();
            let before = self.0.filter.current();
            self.0.filter.set(&change.filter).map_err(|why| invalid("/filter", why))?;
            if let Some(replaced) = temporary.take() {
                replaced.end.abort();
            }
            *temporary = ttl.map(|ttl| self.temporary(ttl));
            tracing::warn!(
                before,
                after = change.filter,
                ttl_seconds = change.ttl_seconds,
                "log filter was changed"
            );
            (self.0.tell)(Happened::Changed(Changed {
                action: "change",
                before,
                after: change.filter.clone(),
                ttl_seconds: change.ttl_seconds,
            }));
        }
        Ok(self.level())
    }

    fn temporary(&self, ttl: Duration) -> Temporary {
        let level = self.clone();
        let end = sleep(ttl);
        let restoring = spawn_in_present_context(async move {
            end.await;
            level.restore();
        });
        let expires_at = (Utc::now() + TimeDelta::from_std(ttl).unwrap_or_default()).trunc_subsecs(6);
        Temporary { expires_at, end: restoring.abort_handle() }
    }

    fn restore(&self) {
        let mut temporary = self.0.temporary();
        // A newer change may have come between the end of the sleep and the lock: then this task is aborted,
        // but it goes on until it waits next.
        if temporary.as_ref().is_none_or(|temporary| Some(temporary.end.id()) != tokio::task::try_id()) {
            return;
        }
        *temporary = None;
        let default = self.0.filter.default_filter();
        let before = self.0.filter.current();
        match self.0.filter.set(default) {
            Ok(()) => {
                tracing::warn!(before, after = default, "log filter is the default again");
                let after = default.to_owned();
                let restored = Changed { action: "restore", before, after, ttl_seconds: None };
                (self.0.tell)(Happened::Changed(restored));
            }
            Err(why) => tracing::error!(why, "log filter cannot be set to the default again"),
        }
    }

    /// Whether this caller may change the level.
    fn admit(&self, peer: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        if !self.0.is_own_name(uri, headers) {
            let detail = "The Host must be loopback or the address of this listener.";
            return Err(self.refuse(peer, "foreign_host", Problem::new(problem::FORBIDDEN).detail(detail)));
        }
        if peer.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let Some(token) = &self.0.token else {
            let detail = "Only loopback may change the log level, because OPS_TOKEN is not set.";
            return Err(self.refuse(peer, "not_loopback", Problem::new(problem::FORBIDDEN).detail(detail)));
        };
        let shown = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_, token)| token)
            .unwrap_or_default();
        if token.expose_secret().as_bytes().ct_eq(shown).into() {
            Ok(())
        } else {
            Err(self.refuse(peer, "bad_token", Problem::new(problem::UNAUTHENTICATED)))
        }
    }

    fn refuse(&self, peer: SocketAddr, reason: &'static str, problem: Problem) -> Problem {
        tracing::warn!(%peer, reason, "log filter was to be changed by somebody who may not");
        (self.0.tell)(Happened::Refused { reason });
        problem
    }
}

impl Inner {
    fn temporary(&self) -> MutexGuard<'_, Option<Temporary>> {
        self.temporary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request names loopback or this listener, and not what somebody's DNS says is here.
    fn is_own_name(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let named = match (uri.authority(), hosts.next(), hosts.next()) {
            (Some(authority), None, None) => Some(authority.clone()),
            (None, Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
            (Some(authority), Some(host), None) if authority.as_str().as_bytes() == host.as_bytes() => {
                Some(authority.clone())
            }
            _ => None,
        };
        let Some(named) = named else { return false };
        let host = named.host().trim_start_matches('[').trim_end_matches(']');
        match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            // A listener on all addresses has each of them; and no DNS can point at a number.
            Ok(address) => {
                address.is_loopback()
                    || address == self.address.ip().to_canonical()
                    || self.address.ip().is_unspecified()
            }
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }
}

fn ttl(seconds: u64) -> Result<Duration, Problem> {
    if (1..=LONGEST_SECONDS).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(invalid("/ttl_seconds", format!("must be between 1 and {LONGEST_SECONDS}")))
    }
}

fn invalid(pointer: &str, message: impl Into<String>) -> Problem {
    Problem::invalid(vec![FieldError::new(pointer, message)])
}

pub(super) fn routes(level: LogLevel) -> Router {
    Router::new()
        .route("/log-level", get(show).put(change))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(level)
}

async fn show(State(level): State<LogLevel>) -> Json<Level> {
    Json(level.level())
}

async fn change(
    State(level): State<LogLevel>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Level>, Problem> {
    level.admit(peer, &uri, &headers)?;
    level.change(&parse(&headers, body)?).map(Json)
}

fn parse(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Change, Problem> {
    let media_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    // A page of another origin can send any text without asking, but not this media type.
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(problem::UNSUPPORTED_MEDIA_TYPE));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(problem::BODY_TOO_LARGE),
        _ => Problem::malformed("The body did not arrive whole."),
    })?;
    let mut reader = serde_json::Deserializer::from_slice(&body);
    let change = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let pointer: String = error.path().iter().filter_map(pointer_segment).collect();
        let cause = error.into_inner();
        if cause.is_data() {
            invalid(&pointer, cause.to_string())
        } else {
            Problem::malformed("The body is not JSON.")
        }
    })?;
    reader.end().map_err(|_| Problem::malformed("The body is not JSON."))?;
    Ok(change)
}

/// As RFC 6901 writes it. A change has no arrays.
fn pointer_segment(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, Response},
    };
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::{config::Environment, platform::telemetry::logs::reloadable};

    /// The filter lives as long as the layer that it is in, which a test does not log through.
    fn filter() -> LogFilter {
        let (layer, filter) = reloadable(Environment::Production, None).unwrap();
        Box::leak(Box::new(layer));
        filter
    }

    const TOKEN: &str = "a-token-of-operations";
    const LOOPBACK: &str = "127.0.0.1:50000";
    const ELSEWHERE: &str = "192.0.2.7:50000";

    fn with_token(token: Option<&str>) -> Router {
        told_to(token, |_| {})
    }

    fn told_to(token: Option<&str>, tell: impl Fn(Happened) + Send + Sync + 'static) -> Router {
        let address = "10.1.2.3:9000".parse().unwrap();
        routes(LogLevel::new(filter(), address, token.map(SecretString::from), tell))
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

    async fn shown(router: &Router) -> Value {
        let request = Request::get("/log-level").body(Body::empty()).unwrap();
        json_of(router.clone().oneshot(request).await.unwrap()).await
    }

    async fn status_of(router: &Router, request: Request<Body>) -> u16 {
        router.clone().oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn a_change_is_answered_with_what_is_now_logged() {
        let router = with_token(None);
        assert_eq!(shown(&router).await, json!({ "filter": "info", "default": "info", "expires_at": null }));
        let request = put(LOOPBACK, "localhost:9000", &json!({ "filter": "app=debug" }));
        let answer = json_of(router.clone().oneshot(request).await.unwrap()).await;
        assert_eq!(answer, json!({ "filter": "app=debug", "default": "info", "expires_at": null }));
        assert_eq!(shown(&router).await, answer);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_with_an_end_ends_and_a_newer_one_replaces_it() {
        let (told, mut changes) = tokio::sync::mpsc::unbounded_channel();
        let router = told_to(None, move |happened| told.send(happened).unwrap());
        let change = |filter, seconds: Option<u64>| {
            put(LOOPBACK, "localhost", &json!({ "filter": filter, "ttl_seconds": seconds }))
        };
        assert_eq!(status_of(&router, change("debug", Some(60))).await, 200);
        assert!(shown(&router).await["expires_at"].is_string());
        sleep(Duration::from_secs(50)).await;
        assert_eq!(status_of(&router, change("trace", Some(60))).await, 200);
        sleep(Duration::from_secs(50)).await;
        assert_eq!(shown(&router).await["filter"], "trace");
        sleep(Duration::from_secs(11)).await;
        assert_eq!(shown(&router).await, json!({ "filter": "info", "default": "info", "expires_at": null }));

        assert_eq!(status_of(&router, change("debug", Some(60))).await, 200);
        assert_eq!(status_of(&router, change("warn", None)).await, 200);
        sleep(Duration::from_secs(61)).await;
        assert_eq!(shown(&router).await, json!({ "filter": "warn", "default": "info", "expires_at": null }));

        let changes: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok())
            .map(|happened| match happened {
                Happened::Changed(now) => (now.action, now.before, now.after, now.ttl_seconds),
                Happened::Refused { reason } => panic!("refused: {reason}"),
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
    async fn only_loopback_and_the_token_may_change_it() {
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
            (&open, ELSEWHERE, None, 401),
            (&open, ELSEWHERE, Some("Bearer a-token-of-operation"), 401),
            (&open, ELSEWHERE, Some("Basic a-token-of-operations"), 401),
            (&open, ELSEWHERE, Some(TOKEN), 401),
            (&open, ELSEWHERE, Some(bearer.as_str()), 200),
            (&closed, LOOPBACK, None, 200),
            (&closed, ELSEWHERE, None, 403),
            (&closed, ELSEWHERE, Some(bearer.as_str()), 403),
            (&closed, ELSEWHERE, Some("Bearer "), 403),
        ] {
            assert_eq!(status_of(router, request(peer, token)).await, status, "{peer} {token:?}");
        }
    }

    #[tokio::test]
    async fn whoever_may_not_change_it_is_told_of() {
        for (token, peer, host, reason) in [
            (Some(TOKEN), LOOPBACK, "evil.example", "foreign_host"),
            (Some(TOKEN), ELSEWHERE, "10.1.2.3:9000", "bad_token"),
            (None, ELSEWHERE, "10.1.2.3:9000", "not_loopback"),
        ] {
            let (told, mut refusals) = tokio::sync::mpsc::unbounded_channel();
            let router = told_to(token, move |happened| told.send(happened).unwrap());
            let refused = status_of(&router, put(peer, host, &json!({ "filter": "off" }))).await;
            assert!(matches!(refused, 401 | 403), "{reason}");
            assert_eq!(refusals.try_recv(), Ok(Happened::Refused { reason }));
            assert!(refusals.try_recv().is_err(), "it is told once");
        }
    }

    #[tokio::test]
    async fn a_name_that_somebody_else_chose_is_refused() {
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
    async fn what_is_not_a_change_is_refused_and_changes_nothing() {
        let router = with_token(None);
        for (body, pointer) in [
            (json!({ "filter": "app=loud" }), "/filter"),
            (json!({ "filter": 3 }), "/filter"),
            (json!({ "filter": "off", "ttl_seconds": 0 }), "/ttl_seconds"),
            (json!({ "filter": "off", "ttl_seconds": LONGEST_SECONDS + 1 }), "/ttl_seconds"),
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
        let large = json!({ "filter": "o".repeat(BODY_LIMIT) });
        assert_eq!(status_of(&router, put(LOOPBACK, "localhost", &large)).await, 413);
        let mut untyped = put(LOOPBACK, "localhost", &json!({ "filter": "off" }));
        untyped.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        assert_eq!(status_of(&router, untyped).await, 415);
        assert_eq!(shown(&router).await["filter"], "info");
    }
}
