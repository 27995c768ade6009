//! The client of the payment gateway.
//!
//! The client distinguishes final outcomes from unknown ones. A charge or refund object that matches the request is a
//! final outcome. A timeout, a failed connection, a malformed response and the statuses 3xx, 408, 409, 425, 429 and
//! 5xx leave the outcome unknown. Any other 4xx is a rejection. A rejection is a final outcome only for a charge, and
//! only if no other attempt can have reached the gateway.
mod breaker;
mod listing;
mod metrics;
mod response;

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use secrecy::ExposeSecret;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tracing::{Instrument, Span, field};
use url::Url;

pub use self::listing::{Cursor, PageError, Record};
use self::metrics::GATEWAY_DURATION;
pub use self::metrics::initialize as initialize_metrics;
#[cfg(test)]
pub use self::response::GatewayId;
pub use self::response::{
    Charge, ChargeStatus, GatewayRefund, GatewayRefundStatus, GatewayResponse, SendResult, Unknown,
};
use super::{gateway_key::GatewayKey, settings::Settings};
use platform::{
    alerts::Alerts,
    outbound,
    resilience::{
        breaker::{Breaker, Open, Permit},
        retry::{Backoff, Budget},
    },
    telemetry::traces,
};

/// Name of the gateway in `service` labels and in the breaker.
pub const SERVICE: &str = "payment_gateway";

/// Maximum length of a response body in bytes. The longest expected response, a full page of the listing, is shorter.
/// The rest of a longer response is not read.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Maximum accepted `Retry-After`. A longer one is shortened to this time, so that time arithmetic cannot overflow. A
/// pause of this length exceeds the timeout of a request, and so ends the retries within the request.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Pauses between the attempts of one request.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));

/// Maximum number of retries within one request. After that, recovery takes over.
const MAX_RETRIES: u32 = 3;

/// The gateway's client. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    client: reqwest::Client,
    base: Url,
    timeout: Duration,
    breaker: Breaker,
    budget: Budget,
    /// The bulkhead: a request that waits for the gateway holds one slot, so that a slow gateway blocks only as many
    /// requests as there are slots.
    slots: Arc<Semaphore>,
}

/// Permission to begin a new charge or refund at the gateway. The request holds its slot until its calls to the gateway
/// end.
#[derive(Debug)]
pub struct GatewaySlot {
    /// The breaker's permit for the first call.
    pub permit: Permit,
    /// The slot in the bulkhead.
    pub slot: OwnedSemaphorePermit,
}

/// The reason why no new charge or refund can begin.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The breaker is open, or half-open with all of its probes in flight or succeeded.
    #[error("the circuit breaker of the gateway is open")]
    Open(Open),
    /// All slots for requests that wait for the gateway are in use.
    #[error("too many requests wait for the gateway")]
    Busy,
}

impl SlotError {
    /// Returns the pause in seconds before the client should retry.
    pub fn retry_after_seconds(&self) -> u64 {
        match self {
            Self::Open(open) => open.retry_after_seconds(),
            Self::Busy => 1,
        }
    }
}

impl Gateway {
    /// Creates a client with these settings. At most `max_waiting` requests hold a [`GatewaySlot`] at the same time.
    ///
    /// # Errors
    /// If the client cannot be created, or the API key is not a valid header value.
    pub fn new(settings: &Settings, alerts: &Alerts, max_waiting: usize) -> Result<Self, GatewayError> {
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", settings.gateway_api_key.expose_secret()))
                .map_err(|_| GatewayError::ApiKey)?;
        authorization.set_sensitive(true);
        let client = outbound::client()
            .default_headers(HeaderMap::from_iter([(header::AUTHORIZATION, authorization)]))
            .connect_timeout(settings.gateway_timeout.min(Duration::from_secs(1)))
            .build()
            .map_err(GatewayError::Client)?;
        let base = settings.gateway_url.clone();
        Ok(Self(Arc::new(Inner {
            client,
            base,
            timeout: settings.gateway_timeout,
            breaker: breaker::breaker(alerts),
            budget: Budget::new(20, 10),
            slots: Arc::new(Semaphore::new(max_waiting)),
        })))
    }

    /// Returns the time limit for all attempts of one request together.
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// Returns the breaker of all calls except readiness checks.
    pub fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    /// Acquires the permission to begin a new charge or refund. The attempt also earns a fraction of a retry for the
    /// retry budget.
    ///
    /// # Errors
    /// If the breaker rejects the call, or too many requests wait for the gateway.
    pub fn acquire_slot(&self) -> Result<GatewaySlot, SlotError> {
        let slot = Arc::clone(&self.0.slots).try_acquire_owned().map_err(|_| SlotError::Busy)?;
        self.0.budget.earn();
        let permit = self.0.breaker.acquire().map_err(SlotError::Open)?;
        Ok(GatewaySlot { permit, slot })
    }

    /// Spends one retry of the retry budget, and returns the pause before that retry. `attempts` is the number of
    /// attempts so far. Returns `None` after the last retry, or if the budget is used up, because retries must not keep
    /// an overloaded gateway down.
    pub fn pause_before_retry(&self, attempts: i32, unknown: &Unknown) -> Option<Duration> {
        let retry = u32::try_from(attempts).ok()?.checked_sub(1)?;
        if retry >= MAX_RETRIES || !self.0.budget.spend() {
            return None;
        }
        Some(unknown.retry_after().unwrap_or_default().max(BACKOFF.pause(retry)))
    }

    /// Sends a charge with exactly this body, under the payment's gateway key.
    pub async fn charge(
        &self,
        key: GatewayKey,
        body: &str,
        permit: Permit,
        until: Instant,
    ) -> SendResult<Charge> {
        self.send(&["v1", "charges"], key, body, permit, until).await
    }

    /// Sends a refund of a charge with exactly this body, under the refund's gateway key.
    pub async fn refund(
        &self,
        charge_id: &str,
        key: GatewayKey,
        body: &str,
        permit: Permit,
        until: Instant,
    ) -> SendResult<GatewayRefund> {
        self.send(&["v1", "charges", charge_id, "refunds"], key, body, permit, until).await
    }

    /// Returns the charges that the gateway lists for the reference of a payment.
    ///
    /// # Errors
    /// If the gateway rejects the request, or there is no usable response.
    pub async fn charges(&self, key: GatewayKey, until: Instant) -> Result<Vec<Charge>, Unknown> {
        self.list("charges", key, |charge: &Charge| charge.reference, until).await
    }

    /// Returns the refunds that the gateway lists for the reference of a stored refund.
    ///
    /// # Errors
    /// If the gateway rejects the request, or there is no usable response.
    pub async fn refunds(&self, key: GatewayKey, until: Instant) -> Result<Vec<GatewayRefund>, Unknown> {
        self.list("refunds", key, |refund: &GatewayRefund| refund.reference, until).await
    }

    /// Checks that the gateway responds, for readiness. The check bypasses the breaker. Otherwise readiness checks
    /// would use up the probes of a half-open breaker.
    ///
    /// # Errors
    /// If the gateway is unreachable, or responds with an error.
    pub async fn ping(&self) -> Result<(), Unknown> {
        let url = self.url(&["healthz"]);
        let response = self.0.client.get(url).timeout(self.0.timeout).send().await.map_err(from_reqwest)?;
        if response.status().is_success() { Ok(()) } else { Err(from_status(&response)) }
    }

    /// Builds a URL segment by segment, so that an id of the gateway in a segment cannot change the path.
    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.0.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    async fn send<T: DeserializeOwned>(
        &self,
        path: &[&str],
        key: GatewayKey,
        body: &str,
        permit: Permit,
        until: Instant,
    ) -> SendResult<T> {
        let url = self.url(path);
        let request = self
            .0
            .client
            .post(url.clone())
            .header("idempotency-key", key.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_owned());
        self.call(request, "POST", url, permit, until).await
    }

    /// Lists the gateway's objects with a reference. If an object has another reference, the breaker counts a failure
    /// of the gateway, and the list still contains the object. If an object is unreadable, the call fails with
    /// [`Unknown::Unreadable`], which the breaker does not count as a failure (see [`Unknown::is_outage`]).
    ///
    /// Only recovery and reconciliation list objects, as background calls. While the breaker is half-open, a background
    /// call does not use up the probes of customers' requests.
    async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        reference: GatewayKey,
        reference_of: impl Fn(&T) -> GatewayKey,
        until: Instant,
    ) -> Result<Vec<T>, Unknown> {
        #[derive(Deserialize)]
        struct List<T> {
            data: Vec<T>,
        }
        let permit = self.0.breaker.acquire_in_background().map_err(|_| Unknown::NotCalled)?;
        let mut url = self.url(&["v1", path]);
        url.query_pairs_mut().append_pair("reference", &reference.to_string());
        match self.call::<List<T>>(self.0.client.get(url.clone()), "GET", url, permit, until).await {
            SendResult::Response(response) => {
                let matches_reference = |object: &T| reference_of(object) == reference;
                let (list, _) =
                    response.check(|list| list.data.iter().all(matches_reference).then_some(()).ok_or(()));
                Ok(list.data)
            }
            SendResult::Rejected(status) => Err(Unknown::Status { status, retry_after: None }),
            SendResult::Conflict => Err(Unknown::Status { status: StatusCode::CONFLICT, retry_after: None }),
            SendResult::Unknown(unknown) => Err(unknown),
        }
    }

    /// Makes one call that ends at `until` at the latest, measures it, and sends the trace context. In the breaker,
    /// this function records a rejection as a success, and an outage as a failure. If the gateway returned an object,
    /// the caller records the result when it checks the object.
    async fn call<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        method: &'static str,
        url: Url,
        permit: Permit,
        until: Instant,
    ) -> SendResult<T> {
        let started = Instant::now();
        let remaining = until.saturating_duration_since(started);
        if remaining.is_zero() {
            // `timeout` polls the call before it checks the time, so a call without remaining time could still be sent.
            return SendResult::Unknown(Unknown::NotCalled);
        }
        let span = self.open_span(method, &url);
        let reply = async {
            let mut headers = HeaderMap::new();
            traces::inject(&mut headers);
            let reply = tokio::time::timeout(remaining, reply(request.headers(headers))).await;
            reply.unwrap_or(Err(Unknown::TimedOut))
        }
        .instrument(span.clone())
        .await;
        let outcome = match &reply {
            Ok(Reply::Object(..)) => "success",
            Ok(Reply::Rejected(_)) => "refused",
            Err(unknown) if unknown.is_timeout() => "timeout",
            Err(_) => "error",
        };
        GATEWAY_DURATION.observe(&[SERVICE, outcome], started.elapsed());
        record_reply(&span, &reply);
        match reply {
            Ok(Reply::Object(_, object)) => SendResult::Response(GatewayResponse { object, permit }),
            Ok(Reply::Rejected(status)) => {
                permit.succeeded();
                if status == StatusCode::CONFLICT {
                    SendResult::Conflict
                } else {
                    SendResult::Rejected(status)
                }
            }
            Err(unknown) => {
                let cause = &unknown as &dyn std::error::Error;
                span.in_scope(|| tracing::warn!(error = cause, "the outcome of the gateway call is unknown"));
                if unknown.is_outage(method == "GET") {
                    permit.failed();
                }
                SendResult::Unknown(unknown)
            }
        }
    }

    /// Opens a span with the names of OpenTelemetry's stable conventions for HTTP clients. [`record_reply`] sets the
    /// empty fields after the call.
    fn open_span(&self, method: &'static str, url: &Url) -> Span {
        tracing::info_span!(
            "gateway",
            otel.name = method,
            otel.kind = "client",
            otel.status_code = field::Empty,
            http.request.method = method,
            http.response.status_code = field::Empty,
            url.full = %outbound::redacted(url),
            server.address = self.0.base.host_str(),
            // Signed, because the bridge to OpenTelemetry exports unsigned numbers as strings.
            server.port = self.0.base.port_or_known_default().map(i64::from),
            error.type = field::Empty,
        )
    }
}

/// A definite response of the gateway.
enum Reply<T> {
    /// 2xx, with the object of the body.
    Object(StatusCode, T),
    /// 4xx, except 408, 425 and 429. The caller maps 409 to [`SendResult::Conflict`], whose outcome is unknown.
    Rejected(StatusCode),
}

/// Records the result of a call in its span. In OpenTelemetry's conventions for client spans, a 4xx is an error too.
fn record_reply<T>(span: &Span, reply: &Result<Reply<T>, Unknown>) {
    let status = match reply {
        Ok(Reply::Object(status, _) | Reply::Rejected(status)) | Err(Unknown::Status { status, .. }) => {
            Some(*status)
        }
        Err(_) => None,
    };
    if let Some(status) = status {
        span.record("http.response.status_code", i64::from(status.as_u16()));
    }
    let error = match reply {
        Ok(Reply::Object(..)) => return,
        Ok(Reply::Rejected(status)) | Err(Unknown::Status { status, .. }) => status.as_str(),
        Err(unknown) if unknown.is_timeout() => "timeout",
        Err(Unknown::TimedOut | Unknown::NotConnected(_) | Unknown::Connection(_)) => "connection",
        Err(Unknown::Malformed(_)) => "malformed",
        Err(Unknown::Unreadable(_)) => "unreadable",
        Err(Unknown::NotCalled) => "not_called",
    };
    span.record("otel.status_code", "error");
    span.record("error.type", error);
}

/// Error of creating the client.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The API key is not a valid header value.
    #[error("GATEWAY_API_KEY has characters that are invalid in a header")]
    ApiKey,
    /// The HTTP client could not be created.
    #[error("failed to create the HTTP client for the payment gateway: {0}")]
    Client(#[source] reqwest::Error),
}

/// Sends the request and parses the response. Returns [`Unknown`] if there is no response, if its status leaves the
/// outcome unknown, or if its body is not the expected object.
async fn reply<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<Reply<T>, Unknown> {
    let mut response = request.send().await.map_err(from_reqwest)?;
    if is_inconclusive(response.status()) {
        return Err(from_status(&response));
    }
    if !response.status().is_success() {
        return Ok(Reply::Rejected(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(from_reqwest)? {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(Unknown::Malformed("the body is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    match serde_json::from_slice(&body) {
        Ok(object) => Ok(Reply::Object(response.status(), object)),
        // `IgnoredAny` accepts all JSON, because it does not decode strings. A lone surrogate in a string fails the
        // first parse, although the body is JSON.
        Err(error) if serde_json::from_slice::<IgnoredAny>(&body).is_ok() => {
            Err(Unknown::Unreadable(error.to_string()))
        }
        Err(error) => Err(Unknown::Malformed(error.to_string())),
    }
}

fn from_reqwest(error: reqwest::Error) -> Unknown {
    // The log must not have the URL's query (see `outbound::redacted`). The span of the call has the redacted URL.
    let error = error.without_url();
    if error.is_connect() {
        Unknown::NotConnected(error)
    } else if error.is_timeout() {
        Unknown::TimedOut
    } else {
        Unknown::Connection(error)
    }
}

/// Returns whether a response with this status counts like a missing response. A 409 also leaves the outcome unknown,
/// but [`Gateway::call`] returns it as [`SendResult::Conflict`].
fn is_inconclusive(status: StatusCode) -> bool {
    status.is_server_error()
        || status.is_redirection()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY
        )
}

fn from_status(response: &reqwest::Response) -> Unknown {
    let header = response.headers().get(header::RETRY_AFTER);
    let retry_after = header.and_then(|value| parse_retry_after(value.to_str().ok()?));
    Unknown::Status { status: response.status(), retry_after }
}

/// Parses a whole number of seconds, at most [`MAX_RETRY_AFTER`]. The header's other form, a date, is ignored.
fn parse_retry_after(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_status_is_conclusive_only_for_a_success_or_a_rejection() {
        for (status, inconclusive) in [
            (200, false),
            (201, false),
            (302, true),
            (307, true),
            (400, false),
            (402, false),
            (404, false),
            (408, true),
            (409, false),
            (422, false),
            (425, true),
            (429, true),
            (500, true),
            (503, true),
        ] {
            assert_eq!(is_inconclusive(StatusCode::from_u16(status).unwrap()), inconclusive, "{status}");
        }
    }

    /// Returns the client of a gateway that is never called.
    fn gateway(max_waiting: usize) -> Gateway {
        gateway_at("https://gateway.example", max_waiting)
    }

    /// Returns the client of a gateway that sends this body in every response.
    async fn gateway_with_response(body: String) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().fallback(async || body);
        tokio::spawn(async { axum::serve(listener, routes).await });
        gateway_at(&url, 1)
    }

    fn gateway_at(url: &str, max_waiting: usize) -> Gateway {
        let settings = Settings {
            gateway_url: Url::parse(url).unwrap(),
            allow_plaintext: false,
            gateway_api_key: "sk_12345".into(),
            webhook_secrets: Vec::new(),
            gateway_timeout: Duration::from_secs(3),
            recovery_interval: Duration::from_secs(5),
            reconciliation_interval: Duration::from_secs(15),
            park_after: Duration::from_hours(23),
        };
        Gateway::new(&settings, &Alerts::without_receivers(), max_waiting).unwrap()
    }

    #[tokio::test]
    async fn retries_are_few_and_never_before_the_requested_pause() {
        let gateway = gateway(1);
        let pause = |attempts| gateway.pause_before_retry(attempts, &Unknown::TimedOut);
        for attempts in 1..=3 {
            assert!(pause(attempts).unwrap() <= Duration::from_millis(500), "{attempts}");
        }
        for attempts in [-1, 0, 4, 5] {
            assert_eq!(pause(attempts), None, "{attempts}");
        }
        let requested = Some(Duration::from_secs(7));
        let limited = Unknown::Status { status: StatusCode::TOO_MANY_REQUESTS, retry_after: requested };
        assert_eq!(gateway.pause_before_retry(1, &limited), requested);

        let retries = || (0..20).filter(|_| pause(1).is_some()).count();
        assert_eq!(retries(), 6, "the budget must allow ten retries in total");
        (0..5).for_each(|_| drop(gateway.acquire_slot().unwrap()));
        assert_eq!(retries(), 1, "five new operations must earn one retry");
    }

    #[tokio::test]
    async fn requests_beyond_the_slots_are_rejected() {
        let gateway = gateway(2);
        let held = [gateway.acquire_slot().unwrap(), gateway.acquire_slot().unwrap()];
        let rejected = gateway.acquire_slot().unwrap_err();
        assert!(matches!(rejected, SlotError::Busy));
        assert_eq!(rejected.retry_after_seconds(), 1);
        drop(held);
        assert!(gateway.acquire_slot().is_ok());
    }

    #[tokio::test]
    async fn an_open_breaker_admits_no_operation_until_it_probes() {
        let gateway = gateway(1);
        (0..10).for_each(|_| gateway.acquire_slot().unwrap().permit.failed());
        let rejected = gateway.acquire_slot().unwrap_err();
        assert!(matches!(rejected, SlotError::Open(_)));
        assert_eq!(rejected.retry_after_seconds(), 5);
    }

    #[tokio::test]
    async fn an_unreadable_object_opens_the_breaker_only_after_a_charge() {
        let gateway = gateway_with_response("{}".to_owned()).await;
        let key = GatewayKey(Uuid::nil());
        let until = Instant::now() + Duration::from_mins(1);
        for _ in 0..10 {
            assert!(matches!(gateway.charges(key, until).await, Err(Unknown::Unreadable(_))));
        }
        for _ in 0..10 {
            let permit = gateway.acquire_slot().unwrap().permit;
            let result = gateway.charge(key, "{}", permit, until).await;
            assert!(matches!(result, SendResult::Unknown(Unknown::Unreadable(_))));
        }
        assert!(matches!(gateway.acquire_slot(), Err(SlotError::Open(_))));
    }

    #[tokio::test]
    async fn a_response_body_has_a_maximum_length() {
        let until = Instant::now() + Duration::from_mins(1);
        for (length, is_read) in [(MAX_RESPONSE_BYTES, true), (MAX_RESPONSE_BYTES + 1, false)] {
            let list = r#"{"data":[]}"#;
            let gateway = gateway_with_response(list.to_owned() + &" ".repeat(length - list.len())).await;
            let charges = gateway.charges(GatewayKey(Uuid::nil()), until).await;
            assert_eq!(charges.is_ok(), is_read, "{length}: {charges:?}");
        }
    }

    #[test]
    fn no_retry_after_of_the_gateway_is_longer_than_the_maximum() {
        let seconds = |text| parse_retry_after(text).map(|pause| pause.as_secs());
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds("7"), Some(7));
        assert_eq!(seconds("18446744073709551615"), Some(3600));
        assert_eq!(seconds("99999999999999999999999999"), Some(3600));
        for text in ["", "-1", "+1", "1.5", " 1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(seconds(text), None, "{text:?}");
        }
    }
}
