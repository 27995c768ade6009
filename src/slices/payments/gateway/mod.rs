//! The client of the payment gateway.
//!
//! It says what the gateway answered, and above all what an answer does **not** say. Only a charge or refund
//! object is an outcome. A timeout, a cut connection, a 5xx, a 429 and anything malformed leave it unknown.
mod answers;
mod breaker;
mod metrics;

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

#[cfg(test)]
pub use self::answers::GatewayId;
pub use self::answers::{Answer, Charge, ChargeStatus, GatewayRefund, GatewayRefundStatus, Sent, Unknown};
use self::metrics::GATEWAY_DURATION;
pub use self::metrics::initialize as initialize_metrics;
use super::{gateway_key::GatewayKey, settings::Settings};
use platform::{
    alerts::Alerts,
    resilience::{
        breaker::{Breaker, Open, Permit},
        retry::{Backoff, Budget},
    },
    telemetry::traces,
};

/// In `service` labels and in the breaker's name.
pub const SERVICE: &str = "payment_gateway";

/// No answer of the gateway is nearly as long. A longer one is not read.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The longest pause that a `Retry-After` of the gateway can ask for. It ends every retry within a request, and no
/// number from outside reaches the arithmetic of times.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Between two attempts of one request.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));

/// More attempts within one request are recovery's.
const MOST_RETRIES: u32 = 3;

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    client: reqwest::Client,
    base: Url,
    timeout: Duration,
    breaker: Breaker,
    budget: Budget,
    /// A bulkhead: a slow gateway takes this many requests with it, and the others go on.
    slots: Arc<Semaphore>,
}

/// Leave to begin something new at the gateway; kept until that is done with.
#[derive(Debug)]
pub struct Admission {
    /// For the first call.
    pub permit: Permit,
    /// The place in the bulkhead.
    pub slot: OwnedSemaphorePermit,
}

/// Why nothing new is begun.
#[derive(Debug)]
pub enum NotAdmitted {
    /// The breaker is open.
    Open(Open),
    /// As many requests as may wait for the gateway do.
    Busy,
}

impl NotAdmitted {
    /// When to come back.
    pub fn retry_after_seconds(&self) -> u64 {
        match self {
            Self::Open(open) => open.retry_after_seconds(),
            Self::Busy => 1,
        }
    }
}

impl Gateway {
    /// A client for the gateway of these settings, for which at most `most_waiting` requests wait at once.
    ///
    /// # Errors
    /// When the client cannot be set up, or the API key cannot stand in a header.
    pub fn new(settings: &Settings, alerts: &Alerts, most_waiting: usize) -> Result<Self, GatewayError> {
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", settings.gateway_api_key.expose_secret()))
                .map_err(|_| GatewayError::ApiKey)?;
        authorization.set_sensitive(true);
        let client = reqwest::Client::builder()
            .default_headers(HeaderMap::from_iter([(header::AUTHORIZATION, authorization)]))
            .connect_timeout(settings.gateway_timeout.min(Duration::from_secs(1)))
            // A redirected charge would be sent somewhere that nobody configured.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(GatewayError::Client)?;
        let base = settings.gateway_url.clone();
        Ok(Self(Arc::new(Inner {
            client,
            base,
            timeout: settings.gateway_timeout,
            breaker: breaker::breaker(alerts),
            budget: Budget::new(20, 10),
            slots: Arc::new(Semaphore::new(most_waiting)),
        })))
    }

    /// How long all attempts of one request may take together.
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// The breaker that every call goes through.
    pub fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    /// Leave to begin something new.
    ///
    /// # Errors
    /// When the gateway is known to be away, or too many wait for it already; says when to come back.
    pub fn admit(&self) -> Result<Admission, NotAdmitted> {
        let slot = Arc::clone(&self.0.slots).try_acquire_owned().map_err(|_| NotAdmitted::Busy)?;
        self.0.budget.earn();
        let permit = self.0.breaker.acquire().map_err(NotAdmitted::Open)?;
        Ok(Admission { permit, slot })
    }

    /// How long to wait before asking again within one request, or `None` if it should not be asked again: there
    /// were enough attempts, or too many of late (retries must not be what keeps a gateway down).
    pub fn pause_before_retry(&self, attempts: i32, unknown: &Unknown) -> Option<Duration> {
        let retry = u32::try_from(attempts).ok()?.checked_sub(1)?;
        if retry >= MOST_RETRIES || !self.0.budget.spend() {
            return None;
        }
        Some(unknown.retry_after().unwrap_or_default().max(BACKOFF.pause(retry)))
    }

    /// Sends a charge: exactly these bytes, under the payment's key.
    pub async fn charge(&self, key: GatewayKey, body: &str, permit: Permit, until: Instant) -> Sent<Charge> {
        self.send(&["v1", "charges"], key, body, permit, until).await
    }

    /// Sends a refund of a charge: exactly these bytes, under the refund's key.
    pub async fn refund(
        &self,
        charge_id: &str,
        key: GatewayKey,
        body: &str,
        permit: Permit,
        until: Instant,
    ) -> Sent<GatewayRefund> {
        self.send(&["v1", "charges", charge_id, "refunds"], key, body, permit, until).await
    }

    /// The charges that the gateway has for a payment.
    ///
    /// # Errors
    /// Whatever keeps us from knowing.
    pub async fn charges(&self, key: GatewayKey, until: Instant) -> Result<Vec<Charge>, Unknown> {
        self.list("charges", key, |charge: &Charge| charge.reference, until).await
    }

    /// The refunds that the gateway has for one of ours.
    ///
    /// # Errors
    /// Whatever keeps us from knowing.
    pub async fn refunds(&self, key: GatewayKey, until: Instant) -> Result<Vec<GatewayRefund>, Unknown> {
        self.list("refunds", key, |refund: &GatewayRefund| refund.reference, until).await
    }

    /// Whether it answers, for readiness. It does not go through the breaker: a probe must not use up its trials.
    ///
    /// # Errors
    /// Whatever keeps it from saying that it is well.
    pub async fn is_well(&self) -> Result<(), Unknown> {
        let url = self.url(&["healthz"]);
        let response = self.0.client.get(url).timeout(self.0.timeout).send().await.map_err(from_reqwest)?;
        if response.status().is_success() { Ok(()) } else { Err(status(&response)) }
    }

    /// Segment by segment, so that an id from outside cannot lead to another path.
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
    ) -> Sent<T> {
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

    /// Lists what the gateway has for a reference. A response about another reference is the gateway's failure; its
    /// record of this one is not, however wrong (see [`Unknown::is_outage`]).
    ///
    /// Only recovery lists, as a background call: while the breaker is half-open, it takes no probe of a customer.
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
            Sent::Made(answer) => {
                let is_about_it = |found: &T| reference_of(found) == reference;
                let (list, _) =
                    answer.judge(|list| list.data.iter().all(is_about_it).then_some(()).ok_or(()));
                Ok(list.data)
            }
            Sent::Refused(status) => Err(Unknown::Status { status, retry_after: None }),
            Sent::Conflict => Err(Unknown::Status { status: StatusCode::CONFLICT, retry_after: None }),
            Sent::Unknown(unknown) => Err(unknown),
        }
    }

    /// One call: with the trace and the correlation id on it, and timed. What is certain about the gateway already
    /// is told to the breaker; the rest is with whoever judges the object.
    async fn call<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        method: &'static str,
        url: Url,
        permit: Permit,
        until: Instant,
    ) -> Sent<T> {
        let started = Instant::now();
        let left = until.saturating_duration_since(started);
        if left.is_zero() {
            // A future that is polled once may send the request before its time-out is looked at.
            return Sent::Unknown(Unknown::NotCalled);
        }
        let span = self.open_span(method, &url);
        let reply = async {
            let mut headers = HeaderMap::new();
            traces::inject(&mut headers);
            let reply = tokio::time::timeout(left, reply(request.headers(headers))).await;
            reply.unwrap_or(Err(Unknown::TimedOut))
        }
        .instrument(span.clone())
        .await;
        let outcome = match &reply {
            Ok(Reply::Object(..)) => "success",
            Ok(Reply::Refused(_)) => "refused",
            Err(unknown) if unknown.is_timeout() => "timeout",
            Err(_) => "error",
        };
        GATEWAY_DURATION.observe(&[SERVICE, outcome], started.elapsed());
        record_reply(&span, &reply);
        match reply {
            Ok(Reply::Object(_, object)) => Sent::Made(Answer { object, permit }),
            Ok(Reply::Refused(status)) => {
                permit.succeeded();
                if status == StatusCode::CONFLICT { Sent::Conflict } else { Sent::Refused(status) }
            }
            Err(unknown) => {
                let cause = &unknown as &dyn std::error::Error;
                span.in_scope(|| tracing::warn!(error = cause, "the gateway call has no certain outcome"));
                if unknown.is_outage(method == "GET") {
                    permit.failed();
                }
                Sent::Unknown(unknown)
            }
        }
    }

    /// By the stable semantic conventions for HTTP clients. What is declared empty is recorded at the end.
    fn open_span(&self, method: &'static str, url: &Url) -> Span {
        tracing::info_span!(
            "gateway",
            otel.name = method,
            otel.kind = "client",
            otel.status_code = field::Empty,
            http.request.method = method,
            http.response.status_code = field::Empty,
            url.full = %url,
            server.address = self.0.base.host_str(),
            // Signed: the bridge to OpenTelemetry writes unsigned numbers as texts.
            server.port = self.0.base.port_or_known_default().map(i64::from),
            error.type = field::Empty,
        )
    }
}

/// What the gateway replied, where that says something.
enum Reply<T> {
    /// 2xx, and the object in it.
    Object(StatusCode, T),
    /// 4xx.
    Refused(StatusCode),
}

/// A client's span has failed wherever it was not given what it asked for: by a 4xx, too.
fn record_reply<T>(span: &Span, reply: &Result<Reply<T>, Unknown>) {
    let status = match reply {
        Ok(Reply::Object(status, _) | Reply::Refused(status)) | Err(Unknown::Status { status, .. }) => {
            Some(*status)
        }
        Err(_) => None,
    };
    if let Some(status) = status {
        span.record("http.response.status_code", i64::from(status.as_u16()));
    }
    let error = match reply {
        Ok(Reply::Object(..)) => return,
        Ok(Reply::Refused(status)) | Err(Unknown::Status { status, .. }) => status.as_str(),
        Err(unknown) if unknown.is_timeout() => "timeout",
        Err(Unknown::TimedOut | Unknown::NotConnected(_) | Unknown::Connection(_)) => "connection",
        Err(Unknown::Malformed(_)) => "malformed",
        Err(Unknown::Unreadable(_)) => "unreadable",
        Err(Unknown::NotCalled) => "not_called",
    };
    span.record("otel.status_code", "error");
    span.record("error.type", error);
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The API key cannot stand in a header.
    #[error("GATEWAY_API_KEY has characters that cannot stand in a header")]
    ApiKey,
    /// The client cannot be set up.
    #[error("the client of the payment gateway could not be set up: {0}")]
    Client(#[source] reqwest::Error),
}

/// The object or the refusal; [`Unknown`] for whatever promises nothing, and for what is no such object.
async fn reply<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<Reply<T>, Unknown> {
    let mut response = request.send().await.map_err(from_reqwest)?;
    let promises_nothing = response.status().is_server_error()
        || response.status().is_redirection()
        || matches!(
            response.status(),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY
        );
    if promises_nothing {
        return Err(status(&response));
    }
    if !response.status().is_success() {
        return Ok(Reply::Refused(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(from_reqwest)? {
        if body.len() + chunk.len() > LONGEST_ANSWER {
            return Err(Unknown::Malformed("it is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    match serde_json::from_slice(&body) {
        Ok(object) => Ok(Reply::Object(response.status(), object)),
        // `IgnoredAny` does not look into texts: a lone surrogate makes a text unreadable, and the body is still JSON.
        Err(error) if serde_json::from_slice::<IgnoredAny>(&body).is_ok() => {
            Err(Unknown::Unreadable(error.to_string()))
        }
        Err(error) => Err(Unknown::Malformed(error.to_string())),
    }
}

fn from_reqwest(error: reqwest::Error) -> Unknown {
    // The URL holds our references; the log has them already, in fields of their own.
    let error = error.without_url();
    if error.is_connect() {
        Unknown::NotConnected(error)
    } else if error.is_timeout() {
        Unknown::TimedOut
    } else {
        Unknown::Connection(error)
    }
}

fn status(response: &reqwest::Response) -> Unknown {
    let header = response.headers().get(header::RETRY_AFTER);
    let retry_after = header.and_then(|value| parse_retry_after(value.to_str().ok()?));
    Unknown::Status { status: response.status(), retry_after }
}

/// Whole seconds, at most [`MAX_RETRY_AFTER`]. A date, the other form of the header, is ignored.
fn parse_retry_after(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

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
