//! Rate limits, and the headers that announce them to callers.
//!
//! Limits are per process. An exact count across replicas would cost one round trip per request, and the limits only
//! have to protect this process.
use std::{hash::Hash, net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::{
    DefaultKeyedRateLimiter, Quota,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};

use crate::http::{
    client_address::ClientAddress,
    problem::{self, Problem},
};

/// A rate limit for each key `K`, in this process and not across replicas.
#[derive(Debug)]
pub struct RateLimiter<K: Hash + Eq + Clone> {
    /// `None` disables the limit.
    limiter: Option<Limiter<K>>,
}

type Limiter<K> =
    governor::RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock, StateInformationMiddleware>;

/// The state of a caller's rate limit, for the `RateLimit` headers (draft-ietf-httpapi-ratelimit-headers-10).
#[derive(Debug, Clone, Copy)]
pub struct RateLimitStatus {
    quota: Quota,
    remaining: u32,
    /// Time until the next request is allowed, if a request was rejected. Otherwise the time until the full quota is
    /// available again.
    reset: Duration,
}

pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl RateLimitStatus {
    /// Returns the reset time in whole seconds, rounded up and at least one. A caller that waits this long is not too
    /// early.
    fn reset_seconds(&self) -> u64 {
        self.reset.as_nanos().div_ceil(1_000_000_000).max(1).try_into().unwrap_or(u64::MAX)
    }

    /// Adds the limit and the remaining quota to the response, without replacing the headers of other limits.
    pub fn insert_headers(&self, policy: &str, response: &mut Response) {
        let quota = self.quota.burst_size();
        let window = self.quota.burst_size_replenished_in().as_secs();
        let (remaining, reset) = (self.remaining, self.reset_seconds());
        for (name, value) in [
            (RATE_LIMIT_POLICY, format!("\"{policy}\";q={quota};w={window}")),
            (RATE_LIMIT, format!("\"{policy}\";r={remaining};t={reset}")),
        ] {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().append(name, value);
            }
        }
    }

    /// Returns the 429 response to a request that exceeded the limit.
    pub fn rejection(&self, policy: &str) -> Response {
        let problem = Problem::new(problem::TOO_MANY_REQUESTS).retry_after(self.reset_seconds());
        let mut response = problem.into_response();
        self.insert_headers(policy, &mut response);
        response
    }
}

/// Size of a client's burst, in seconds of its steady rate.
const BURST_SECONDS: NonZeroU32 = NonZeroU32::new(10).unwrap();

impl<K: Hash + Eq + Clone> RateLimiter<K> {
    /// Creates a limit of `rate` requests a second, with bursts of ten times as many requests. 0 disables the limit.
    pub fn per_second(rate: u32) -> Self {
        let quota =
            |rate: NonZeroU32| Quota::per_second(rate).allow_burst(rate.saturating_mul(BURST_SECONDS));
        Self::new(NonZeroU32::new(rate).map(quota))
    }

    /// Creates a limit of `rate` requests a minute, which may all arrive at the same time. 0 disables the limit.
    pub fn per_minute(rate: u32) -> Self {
        Self::new(NonZeroU32::new(rate).map(Quota::per_minute))
    }

    fn new(quota: Option<Quota>) -> Self {
        let limiter = |quota| DefaultKeyedRateLimiter::keyed(quota).with_middleware();
        Self { limiter: quota.map(limiter) }
    }

    /// Counts one request of `key`. Returns the state of the limit, or `None` if the limit is disabled.
    ///
    /// # Errors
    /// The request exceeds the limit.
    pub fn count(&self, key: &K) -> Result<Option<RateLimitStatus>, RateLimitStatus> {
        let Some(limiter) = &self.limiter else { return Ok(None) };
        match limiter.check_key(key) {
            Ok(state) => {
                let (quota, remaining) = (state.quota(), state.remaining_burst_capacity());
                let used = quota.burst_size().get().saturating_sub(remaining);
                Ok(Some(RateLimitStatus { quota, remaining, reset: quota.replenish_interval() * used }))
            }
            Err(rejected) => {
                let reset = rejected.wait_time_from(DefaultClock::default().now());
                Err(RateLimitStatus { quota: rejected.quota(), remaining: 0, reset })
            }
        }
    }

    /// Counts one request.
    ///
    /// # Errors
    /// The request exceeds the limit. The error is the number of seconds until the next request is allowed.
    pub fn check(&self, key: &K) -> Result<(), u64> {
        self.count(key).map(drop).map_err(|status| status.reset_seconds())
    }

    /// Removes the keys whose full burst is available again.
    ///
    /// The caller must call this function about every minute. Otherwise the limiter stores every key for which it ever
    /// counted a request.
    pub fn prune_idle(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    /// Returns the number of stored keys.
    pub fn key_count(&self) -> usize {
        self.limiter.as_ref().map_or(0, DefaultKeyedRateLimiter::len)
    }
}

/// Rejects requests that exceed the rate limit of the client's [network](ClientAddress::network), and adds the
/// `RateLimit` headers to responses. Runs before authentication.
pub async fn limit_by_address(
    State(limiter): State<Arc<RateLimiter<IpAddr>>>,
    Extension(client): Extension<ClientAddress>,
    request: Request,
    next: Next,
) -> Response {
    match limiter.count(&client.network()) {
        Ok(status) => {
            let mut response = next.run(request).await;
            if let Some(status) = status {
                status.insert_headers(ADDRESS_POLICY, &mut response);
            }
            response
        }
        Err(status) => status.rejection(ADDRESS_POLICY),
    }
}

/// The name of the per-address limit in the `RateLimit` headers.
const ADDRESS_POLICY: &str = "address";

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::{Body, to_bytes},
        http::{StatusCode, header},
        middleware::from_fn_with_state,
        routing::get,
    };
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn a_burst_is_ten_seconds_of_the_rate() {
        let limiter = RateLimiter::per_second(2);
        let passed = (0..100).take_while(|_| limiter.check(&"a").is_ok()).count();
        assert!((20..=21).contains(&passed), "{passed}");
        assert_eq!(limiter.check(&"a"), Err(1));
        assert_eq!(limiter.check(&"b"), Ok(()));
    }

    #[test]
    fn a_limit_per_minute_has_a_retry_after() {
        let limiter = RateLimiter::per_minute(2);
        assert_eq!([limiter.check(&"a"), limiter.check(&"a")], [Ok(()), Ok(())]);
        assert!(matches!(limiter.check(&"a"), Err(25..=30)));
    }

    #[test]
    fn the_reset_is_the_time_until_the_full_quota() {
        let limiter = RateLimiter::per_minute(2);
        let reset = || limiter.count(&"a").unwrap().unwrap().reset_seconds();
        assert_eq!([reset(), reset()], [30, 60]);
    }

    #[test]
    fn zero_disables_the_rate_limit() {
        let limiter = RateLimiter::per_second(0);
        assert!((0..10_000).all(|_| limiter.check(&"a").is_ok()));
        assert_eq!(limiter.key_count(), 0);
    }

    #[test]
    fn idle_clients_are_pruned_and_busy_ones_kept() {
        let limiter = RateLimiter::per_second(u32::MAX);
        (0..1000).for_each(|key| limiter.check(&key).unwrap());
        let slow = RateLimiter::per_minute(1);
        slow.check(&0).unwrap();
        limiter.prune_idle();
        slow.prune_idle();
        assert_eq!((limiter.key_count(), slow.key_count()), (0, 1));
    }

    #[tokio::test]
    async fn the_rate_limit_applies_to_client_networks() {
        let limiter = Arc::new(RateLimiter::per_minute(1));
        let router =
            Router::new().route("/", get(async || ())).layer(from_fn_with_state(limiter, limit_by_address));
        let call = async |address: &str| {
            let client = ClientAddress {
                address: address.parse().unwrap(),
                through_trusted_proxy: false,
                scheme: "http",
            };
            let request = Request::get("/").extension(client).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap()
        };
        assert_eq!(call("2001:db8::1").await.status(), StatusCode::OK);
        let rejected = call("2001:db8::2").await;
        assert!(is_problem(&rejected, StatusCode::TOO_MANY_REQUESTS));
        assert!(rejected.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(call("2001:db8:0:1::1").await.status(), StatusCode::OK);
        let body = to_bytes(rejected.into_body(), usize::MAX).await.unwrap();
        assert!(body.starts_with(b"{"));
    }

    #[tokio::test]
    async fn headers_report_the_limit_and_the_remaining_quota() {
        let limiter = Arc::new(RateLimiter::per_second(1));
        let router =
            Router::new().route("/", get(async || ())).layer(from_fn_with_state(limiter, limit_by_address));
        let call = async || {
            let client = ClientAddress {
                address: [192, 0, 2, 1].into(),
                through_trusted_proxy: false,
                scheme: "http",
            };
            let request = Request::get("/").extension(client).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap()
        };
        let first = call().await;
        assert_eq!(first.headers()["ratelimit-policy"], "\"address\";q=10;w=10");
        assert_eq!(first.headers()["ratelimit"], "\"address\";r=9;t=1");
        for _ in 0..9 {
            assert_eq!(call().await.status(), StatusCode::OK);
        }
        let rejected = call().await;
        assert!(is_problem(&rejected, StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(rejected.headers()["ratelimit"], "\"address\";r=0;t=1");
        assert_eq!(rejected.headers()[header::RETRY_AFTER], "1");
    }

    fn is_problem(response: &Response, status: StatusCode) -> bool {
        response.status() == status && response.headers()[header::CONTENT_TYPE] == problem::MEDIA_TYPE
    }
}
