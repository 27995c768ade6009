//! Observability of every request to the API: its correlation id, a span, the `http_*` metrics, and one access log
//! line.
//!
//! This middleware wraps every layer that can reject a request, so rejections are recorded like other responses. Metric
//! labels are the matched route, a known method and the status, never text from the client. Otherwise a client could
//! create any number of series.
//!
//! When a client disconnects, its request's future is dropped. The request is then recorded with status 499, because
//! many abandoned requests can mean that the service is too slow.
use std::{fmt::Display, thread, time::Instant};

use axum::{
    body::HttpBody,
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, Span, field};

use super::client_address::ClientAddress;
use crate::telemetry::{
    correlation::{Context, CorrelationId},
    logs, traces,
};

const BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

crate::metrics! {
    /// Requests completed, by status; 499 means that the client disconnected.
    static REQUESTS: counter = "http_requests_total" { method, path, status };
    /// Time from the end of the request's headers to the start of the response.
    static DURATION: histogram(BUCKETS) = "http_request_duration_seconds" { method, path };
    /// Requests in progress.
    static IN_FLIGHT: gauge = "http_requests_in_flight";
}

static CORRELATION_ID: HeaderName = HeaderName::from_static(traces::CORRELATION_HEADER);

/// The `path` label of a request that matched no route.
const UNMATCHED: &str = "unmatched";

/// Maximum length, in bytes, of recorded text that the client chose.
const MAX_TEXT_BYTES: usize = 256;

/// Creates the series of a route before the first scrape, because `rate` in `PromQL` misses the first event of a new
/// series. The series are the duration, the success status, and 500, 503 and 504, which alert rules count as failures.
pub fn declare_series(method: &Method, route: &str, success: StatusCode) {
    let method = label(method);
    let failures =
        [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
    for status in failures.into_iter().chain([success]) {
        REQUESTS.with_label_values(&[method, route, status.as_str()]);
    }
    DURATION.declare(&[method, route]);
    initialize();
}

/// Records a request. Only the middleware that finds the client's address runs before this one. `Router::layer` adds
/// this middleware, so the route is already matched.
pub async fn record_request(request: Request, next: Next) -> Response {
    let exchange = Exchange::begin(&request);
    let (span, context) = (exchange.span.clone(), exchange.context.clone());
    let mut response = context.scope(next.run(request).instrument(span)).await;
    exchange.end(&mut response);
    response
}

/// A request in flight, which is recorded when this value is dropped. A request without a response is recorded as
/// abandoned by its client, or as panicked.
struct Exchange {
    started: Instant,
    method: &'static str,
    route: Option<MatchedPath>,
    user_agent: Option<HeaderValue>,
    context: Context,
    span: Span,
    status: Option<StatusCode>,
    response_bytes: Option<u64>,
}

impl Exchange {
    fn begin(request: &Request) -> Self {
        IN_FLIGHT.inc();
        let headers = request.headers();
        let client = request.extensions().get::<ClientAddress>().copied();
        let context = Context::for_request(
            correlation_id(headers),
            request.uri().path(),
            client.map(|client| client.address),
        );
        let mut exchange = Self {
            started: Instant::now(),
            method: label(request.method()),
            route: request.extensions().get::<MatchedPath>().cloned(),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            context,
            span: Span::none(),
            status: None,
            response_bytes: None,
        };
        exchange.span = exchange.open_span(request, client.map_or("http", |client| client.scheme));
        let trusted = client.is_some_and(|client| client.through_trusted_proxy);
        traces::join_or_link(headers, &exchange.span, trusted);
        exchange
    }

    /// Opens a span with the attributes of the stable OpenTelemetry semantic conventions for HTTP servers. Fields that
    /// are declared empty are recorded when the request ends.
    ///
    /// `url.query` is left out, because clients put tokens and personal data into queries by mistake, even as parameter
    /// names without a value. Trace stores have neither the access rules nor the retention of the audit log.
    fn open_span(&self, request: &Request, scheme: &'static str) -> Span {
        let server = server(request);
        let route = self.route.as_ref().map(MatchedPath::as_str);
        let original = (self.method == "_OTHER").then(|| shortened(request.method().as_str()));
        tracing::info_span!(
            "request",
            otel.name = field::display(Name { method: self.method, route }),
            otel.kind = "server",
            otel.status_code = field::Empty,
            correlation_id = self.context.correlation_id().as_str(),
            http.request.method = self.method,
            http.request.method_original = original,
            http.route = route,
            http.response.status_code = field::Empty,
            url.scheme = scheme,
            url.path = shortened(request.uri().path()),
            server.address = server.as_ref().map(address),
            server.port = server.as_ref().map(|server| port(server, scheme)),
            network.protocol.version = version(request.version()),
            client.address = self.context.client_address().map(field::display),
            user_agent.original = self.user_agent(),
            error.r#type = field::Empty,
        )
    }

    fn end(mut self, response: &mut Response) {
        self.status = Some(response.status());
        self.response_bytes = response.body().size_hint().exact();
        if let Ok(id) = HeaderValue::from_str(self.context.correlation_id().as_str()) {
            response.headers_mut().insert(CORRELATION_ID.clone(), id);
        }
    }

    fn user_agent(&self) -> Option<&str> {
        self.user_agent.as_ref().and_then(|value| value.to_str().ok()).map(shortened)
    }

    /// Returns the status to record. A request without a response was abandoned by its client (499), or its handler
    /// panicked (500).
    fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| {
            if thread::panicking() {
                StatusCode::INTERNAL_SERVER_ERROR
            } else {
                StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
            }
        })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let status = self.status();
        let route = self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);

        IN_FLIGHT.dec();
        REQUESTS.with_label_values(&[self.method, route, status.as_str()]).inc();
        // Observed inside the span, because the histogram stores the span's trace as an exemplar.
        self.span.in_scope(|| DURATION.observe(&[self.method, route], elapsed));

        // The status is signed, because the OpenTelemetry bridge exports unsigned numbers as strings.
        self.span.record("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            self.span.record("otel.status_code", "error");
            self.span.record("error.type", status.as_str());
        }

        // Logged inside the context, because the access log line includes the authenticated user.
        let line = || {
            tracing::info!(
                target: "access",
                method = self.method,
                route,
                path = self.context.path().map(shortened),
                status = status.as_u16(),
                duration_ms = logs::milliseconds(elapsed),
                response_bytes = self.response_bytes,
                client_address = self.context.client_address().map(field::display),
                user_agent = self.user_agent(),
                "request",
            );
        };
        self.context.clone().sync_scope(|| self.span.in_scope(line));
    }
}

/// Returns the host and port that the client addressed: those of the URI (`:authority` on HTTP/2), otherwise `Host`.
fn server(request: &Request) -> Option<Authority> {
    let host = || request.headers().get(header::HOST)?.to_str().ok()?.parse().ok();
    request.uri().authority().cloned().or_else(host)
}

/// Returns the host without the brackets of an IPv6 address, shortened to [`MAX_TEXT_BYTES`].
fn address(server: &Authority) -> &str {
    let host = server.host();
    shortened(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host))
}

/// Returns the port, or the default of the scheme. The number is signed, because the OpenTelemetry bridge exports
/// unsigned numbers as strings.
fn port(server: &Authority, scheme: &str) -> i64 {
    server.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 }).into()
}

/// Returns the client's correlation id, or a new one if the client's is missing or malformed. A malformed id is no
/// reason to reject the request.
fn correlation_id(headers: &HeaderMap) -> CorrelationId {
    let sent = headers.get(&CORRELATION_ID).and_then(|value| value.to_str().ok());
    sent.and_then(CorrelationId::parse).unwrap_or_else(CorrelationId::generate)
}

/// Returns the method as a label: known methods by name, all others as `_OTHER`.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => "_OTHER",
    }
}

/// The span's name: `GET /v1/things/{id}`, or the method alone if no route matched. `HTTP` replaces an unknown method.
struct Name<'a> {
    method: &'static str,
    route: Option<&'a str>,
}

impl Display for Name<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if self.method == "_OTHER" { "HTTP" } else { self.method })?;
        self.route.map_or(Ok(()), |route| write!(formatter, " {route}"))
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// Returns the beginning of the text, at most [`MAX_TEXT_BYTES`] bytes.
fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT_BYTES)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware, routing::get};
    use tower::ServiceExt as _;

    use super::*;
    use crate::telemetry::correlation;

    fn app() -> Router {
        let id = async || correlation::current_id().to_string();
        let never = async || std::future::pending::<()>().await;
        Router::new()
            .route("/observed/{id}", get(id))
            .route("/never", get(never))
            .layer(middleware::from_fn(record_request))
    }

    async fn response(method: &str, path: &str, id: &str) -> Response {
        let request = Request::builder().method(method).uri(path).header("x-correlation-id", id);
        app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    fn counted(method: &str, route: &str, status: &str) -> u64 {
        REQUESTS.with_label_values(&[method, route, status]).get()
    }

    #[tokio::test]
    async fn a_valid_correlation_id_is_echoed_and_others_are_replaced() {
        let echoed = async |id: &str| {
            let response = response("GET", "/observed/1", id).await;
            let header = response.headers()["x-correlation-id"].to_str().unwrap().to_owned();
            let body = axum::body::to_bytes(response.into_body(), 1_000).await.unwrap();
            assert_eq!(body, header.as_bytes(), "the handler and the client have different ids");
            header
        };
        assert_eq!(echoed("order-7").await, "order-7");
        let replaced = echoed("order 7{\"forged\":true}").await;
        assert!(uuid::Uuid::parse_str(&replaced).is_ok(), "{replaced}");
    }

    #[tokio::test]
    async fn unknown_routes_and_methods_share_one_series() {
        response("BREW", "/teapot/1", "").await;
        response("STEEP", "/teapot/2", "").await;
        assert_eq!(counted("_OTHER", "unmatched", "404"), 2);
        response("DELETE", "/observed/1", "").await;
        assert_eq!(counted("DELETE", "/observed/{id}", "405"), 1);
    }

    #[tokio::test]
    async fn a_client_disconnect_is_counted() {
        let waited = std::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(waited, response("GET", "/never", "")).await.is_err());
        assert_eq!(counted("GET", "/never", "499"), 1);
    }

    #[test]
    fn a_route_has_its_series_before_its_first_request() {
        declare_series(&Method::POST, "/expected", StatusCode::CREATED);
        let (_, text) = crate::telemetry::metrics::render(&HeaderMap::new()).unwrap();
        for status in ["201", "500", "503", "504"] {
            let series =
                format!("http_requests_total{{method=\"POST\",path=\"/expected\",status=\"{status}\"}} 0");
            assert!(text.contains(&series), "{series}");
        }
        assert!(text.contains("http_request_duration_seconds_count{method=\"POST\",path=\"/expected\"} 0"));
    }

    #[test]
    fn the_server_is_the_one_that_the_client_addressed() {
        let addressed = |uri: &str, host: &str, scheme: &str| {
            let request = Request::get(uri).header("host", host).body(Body::empty()).unwrap();
            server(&request).map(|server| (address(&server).to_owned(), port(&server, scheme)))
        };
        let at = |host: &str, port: i64| Some((host.to_owned(), port));
        assert_eq!(addressed("/", "shop.example:8443", "https"), at("shop.example", 8443));
        assert_eq!(addressed("/", "shop.example", "https"), at("shop.example", 443));
        assert_eq!(addressed("/", "[2001:db8::1]", "http"), at("2001:db8::1", 80));
        assert_eq!(addressed("http://shop.example/", "other.example", "http"), at("shop.example", 80));
        assert_eq!(addressed("/", "two words", "http"), None);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ä".repeat(200)).len(), MAX_TEXT_BYTES);
        assert_eq!(shortened(&format!("a{}", "ä".repeat(200))).len(), MAX_TEXT_BYTES - 1);
    }
}
