//! Limits on requests, and the security and CORS headers of responses.
//!
//! Each limit is a separate middleware that responds with a [`Problem`]. Most limits reject a request before any work
//! is done, and [`deadline`] ends work in progress. `src/api/layers.rs` sets the order of the middleware.
mod rate;

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::Limited;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tower_http::{
    cors::{AllowOrigin, CorsLayer},
    timeout::DeadlineBody,
};

use super::problem::{self, Problem};
use rate::{RATE_LIMIT, RATE_LIMIT_POLICY};

pub use rate::{RateLimitStatus, RateLimiter, limit_by_address};

/// The limit on the number of requests in flight. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InFlight(Arc<Semaphore>);

impl InFlight {
    /// Creates a limit of `max` requests in flight.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))))
    }
}

/// Rejects a request immediately if too many requests are in flight. During an overload, a queue would only grow, and
/// clients would time out before their requests are handled.
pub async fn shed(State(InFlight(permits)): State<InFlight>, request: Request, next: Next) -> Response {
    match permits.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => Problem::unavailable(1).into_response(),
    }
}

/// The time at which [`deadline`] drops a request's handler. A handler that must send its result responds earlier.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// Drops the handler of a request that exceeds its time limit, and responds with 504. Tasks that the handler has
/// spawned continue.
pub async fn deadline(State(limit): State<Duration>, mut request: Request, next: Next) -> Response {
    let deadline = Instant::now() + limit;
    request.extensions_mut().insert(Deadline(deadline));
    match timeout_at(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(problem::TIMEOUT).into_response(),
    }
}

/// The limits of a request's body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimit {
    /// Maximum size of the body, in bytes.
    pub bytes: usize,
    /// Maximum time for the client to send the whole body.
    pub timeout: Duration,
}

/// Rejects a body whose announced length exceeds the limit. A body that turns out to be too large while it is read
/// fails with [`http_body_util::LengthLimitError`]. A body that takes too long fails with
/// [`tower_http::timeout::TimeoutError`].
pub async fn body_limit(State(limit): State<BodyLimit>, request: Request, next: Next) -> Response {
    let announced = request.body().size_hint().lower();
    if usize::try_from(announced).is_ok_and(|announced| announced <= limit.bytes) {
        let limited = |body| Limited::new(DeadlineBody::new(limit.timeout, body), limit.bytes);
        next.run(request.map(|body| Body::new(limited(body)))).await
    } else {
        Problem::new(problem::BODY_TOO_LARGE).into_response()
    }
}

/// Adds security headers for browsers, unless the response already has them. These headers forbid media type sniffing,
/// referrers, caching, loading other resources, and showing the response in a frame.
pub fn security_headers<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    set_if_absent(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set_if_absent(headers, header::REFERRER_POLICY, "no-referrer");
    set_if_absent(headers, header::CACHE_CONTROL, "no-store");
    set_if_absent(headers, header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    response
}

fn set_if_absent(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.entry(name).or_insert(HeaderValue::from_static(value));
}

/// Returns the layer that allows pages of `origins` to call the API. Returns `None` if there are no origins. Then a
/// preflight request is handled like any other request.
pub fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
    const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
    const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
    const PREFLIGHT_MAX_AGE: Duration = Duration::from_mins(10);

    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().cloned()))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, IDEMPOTENCY_KEY, CORRELATION_ID])
        .expose_headers([
            IDEMPOTENCY_REPLAYED,
            header::LOCATION,
            header::RETRY_AFTER,
            CORRELATION_ID,
            RATE_LIMIT,
            RATE_LIMIT_POLICY,
        ])
        .max_age(PREFLIGHT_MAX_AGE);
    (!origins.is_empty()).then_some(layer)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::pending,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll},
    };

    use axum::{
        Router,
        body::Bytes,
        http::{Request, StatusCode},
        middleware::from_fn_with_state,
        routing::{get, post},
    };
    use http_body_util::BodyExt;
    use hyper::body::Frame;
    use tokio::sync::Notify;
    use tower::{
        ServiceExt,
        util::{MapResponseLayer, option_layer},
    };

    use super::*;

    async fn get_root(router: &Router) -> Response {
        router.clone().oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap()
    }

    fn is_problem(response: &Response, status: StatusCode) -> bool {
        response.status() == status && response.headers()[header::CONTENT_TYPE] == problem::MEDIA_TYPE
    }

    #[tokio::test]
    async fn one_request_over_the_limit_is_rejected_at_once() {
        let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let handler = {
            let (entered, release) = (Arc::clone(&entered), Arc::clone(&release));
            async move || {
                entered.notify_one();
                release.notified().await;
            }
        };
        let router = Router::new().route("/", get(handler)).layer(from_fn_with_state(InFlight::new(1), shed));
        let first = tokio::spawn({
            let router = router.clone();
            async move { get_root(&router).await }
        });
        entered.notified().await;
        let rejected = get_root(&router).await;
        assert!(is_problem(&rejected, StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(rejected.headers()[header::RETRY_AFTER], "1");
        release.notify_one();
        assert_eq!(first.await.unwrap().status(), StatusCode::OK);
        release.notify_one();
        assert_eq!(get_root(&router).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn a_cancelled_request_frees_its_slot() {
        let router =
            Router::new().route("/", get(pending::<()>)).layer(from_fn_with_state(InFlight::new(1), shed));
        for _ in 0..3 {
            let timed_out = tokio::time::timeout(Duration::from_millis(1), get_root(&router)).await;
            assert!(timed_out.is_err(), "rejected, although no request is in flight");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_beyond_the_deadline_is_dropped() {
        let alive = Arc::new(());
        let handler = {
            let alive = Arc::clone(&alive);
            async move || {
                pending::<()>().await;
                drop(alive);
            }
        };
        let router = Router::new()
            .route("/", get(handler))
            .layer(from_fn_with_state(Duration::from_secs(10), deadline));
        let beginning = Instant::now();
        assert!(is_problem(&get_root(&router).await, StatusCode::GATEWAY_TIMEOUT));
        assert!(beginning.elapsed() >= Duration::from_secs(10));
        drop(router);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    async fn post_body(body: Body) -> (StatusCode, usize) {
        let read = Arc::new(AtomicUsize::new(0));
        let handler = {
            let read = Arc::clone(&read);
            async move |body: Body| match body.collect().await {
                Ok(body) => {
                    read.store(body.to_bytes().len(), Ordering::Relaxed);
                    StatusCode::OK
                }
                Err(_) => StatusCode::IM_A_TEAPOT,
            }
        };
        let limit = BodyLimit { bytes: 10, timeout: Duration::from_secs(10) };
        let router = Router::new().route("/", post(handler)).layer(from_fn_with_state(limit, body_limit));
        let response = router.oneshot(Request::post("/").body(body).unwrap()).await.unwrap();
        (response.status(), read.load(Ordering::Relaxed))
    }

    /// A body without an announced length. The field is the number of chunks that are left, of five bytes each.
    struct Chunks(usize);

    impl HttpBody for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let left = self.0.checked_sub(1);
            self.0 = left.unwrap_or_default();
            Poll::Ready(left.map(|_| Ok(Frame::data(Bytes::from_static(b"12345")))))
        }
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_the_limit_and_no_further() {
        assert_eq!(post_body(Body::from("1234567890")).await, (StatusCode::OK, 10));
        assert_eq!(post_body(Body::from("12345678901")).await.0, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(post_body(Body::new(Chunks(2))).await, (StatusCode::OK, 10));
        assert_eq!(post_body(Body::new(Chunks(3))).await, (StatusCode::IM_A_TEAPOT, 0));
    }

    #[tokio::test]
    async fn a_response_has_security_headers_unless_it_sets_its_own() {
        let own = async || [(header::CONTENT_SECURITY_POLICY, "default-src 'self'")];
        let router = Router::new()
            .route("/", get(async || ()))
            .route("/own", get(own))
            .layer(MapResponseLayer::new(security_headers::<Body>));
        let headers = get_root(&router).await.headers().clone();
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["content-security-policy"], "default-src 'none'; frame-ancestors 'none'");
        let response = router.oneshot(Request::get("/own").body(Body::empty()).unwrap()).await.unwrap();
        let policies: Vec<_> = response.headers().get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["default-src 'self'"]);
    }

    #[tokio::test]
    async fn only_listed_origins_may_call() {
        let allowed = async |configured: &[HeaderValue], origin: &'static str| {
            let router = Router::new().route("/", get(async || ())).layer(option_layer(cors(configured)));
            let request = Request::options("/")
                .header(header::ORIGIN, origin)
                .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
                .body(Body::empty())
                .unwrap();
            let response = router.oneshot(request).await.unwrap();
            response.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN).cloned()
        };
        let shop = HeaderValue::from_static("https://shop.example");
        let configured = [shop.clone()];
        assert_eq!(allowed(&configured, "https://shop.example").await, Some(shop));
        assert_eq!(allowed(&configured, "https://evil.example").await, None);
        assert_eq!(allowed(&[], "https://shop.example").await, None);
    }
}
