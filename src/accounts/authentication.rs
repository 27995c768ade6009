//! The authentication layer: turns the token of a request into a [`Caller`], and applies the caller's rate limit. The
//! layer also counts and audits invalid tokens and denied permissions, so that no handler has to.
use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use platform::{
    audit::{Denials, Event, EventResult, EventType},
    database::Database,
    http::{
        limits::RateLimiter,
        problem::{Denial, Problem, UNAUTHENTICATED},
    },
    identity::Caller,
    telemetry::correlation::{self, User},
};
use uuid::Uuid;

use super::{
    metrics::{AUTHENTICATION_FAILURES, AUTHORIZATION_DENIALS},
    sessions,
};

/// Name of the caller's rate limit in the `RateLimit` headers.
const BY_CALLER: &str = "caller";

/// State of the authentication layer. Cheap to clone.
#[derive(Clone)]
pub struct Authentication {
    database: Database,
    denials: Denials,
    by_caller: Arc<RateLimiter<Uuid>>,
}

impl Authentication {
    /// Creates the state of a layer that finds sessions in `database`, and limits each caller to `requests_per_second`.
    /// 0 disables the limit.
    pub fn new(database: Database, denials: Denials, requests_per_second: u32) -> Self {
        Self { database, denials, by_caller: Arc::new(RateLimiter::per_second(requests_per_second)) }
    }

    /// Removes the counts of idle callers, so that the memory for them stays bounded.
    pub fn prune_idle(&self) {
        self.by_caller.prune_idle();
    }
}

/// Authenticates the request, applies the caller's rate limit, and counts and audits an invalid token or a denied
/// permission. A request without a token continues without a caller, because some routes are public. A request with an
/// invalid token is rejected on every route (RFC 6750, section 3.1).
pub async fn authenticate(State(layer): State<Authentication>, mut request: Request, next: Next) -> Response {
    let mut rate_limit = None;
    if let Some(token) = bearer_token(request.headers()) {
        let caller = match sessions::caller(&layer.database, token).await {
            Ok(Some(caller)) => caller,
            Ok(None) => {
                record_bad_token(&layer.denials).await;
                return Problem::new(UNAUTHENTICATED)
                    .detail("The session is unknown or has expired.")
                    .into_response();
            }
            Err(error) => return Problem::from(error).into_response(),
        };
        if let Some(context) = correlation::current() {
            context.identify(User { id: caller.user_id, role: caller.role });
        }
        rate_limit = match layer.by_caller.count(&caller.user_id) {
            Ok(rate_limit) => rate_limit,
            Err(rate_limit) => return rate_limit.rejection(BY_CALLER),
        };
        request.extensions_mut().insert::<Caller>(caller);
    }
    let mut response = next.run(request).await;
    if let Some(rate_limit) = rate_limit {
        rate_limit.insert_headers(BY_CALLER, &mut response);
    }
    if let Some(denial) = response.extensions().get::<Denial>() {
        record_denial(&layer.denials, *denial).await;
    }
    response
}

/// Counts and audits a denied permission. If the audit event cannot be recorded, the request stays denied, and the
/// failure is counted and logged.
async fn record_denial(denials: &Denials, denial: Denial) {
    AUTHORIZATION_DENIALS.with_label_values(&[denial.reason]).inc();
    let event = Event::new(EventType::Authorization, denial.resource, "access", EventResult::Denied)
        .with("reason", denial.reason)
        .records(denial.record_id);
    if let Err(error) = denials.record(event).await {
        tracing::error!(error = &error as &dyn std::error::Error, "failed to audit a denied permission");
    }
}

/// Counts and audits an invalid token. The token itself is not recorded, because it may be a mistyped valid token. A
/// failure to audit is handled as in [`record_denial`].
async fn record_bad_token(denials: &Denials) {
    AUTHENTICATION_FAILURES.with_label_values(&["bad_token"]).inc();
    let event = Event::new(EventType::Authentication, "sessions", "authenticate", EventResult::Failure)
        .with("reason", "bad_token");
    if let Err(error) = denials.record(event).await {
        tracing::error!(error = &error as &dyn std::error::Error, "failed to audit an invalid token");
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_token_follows_the_scheme_in_any_case() {
        let token = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            bearer_token(&headers).map(str::to_owned)
        };
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(token(value).as_deref(), Some("abc"), "{value}");
        }
        for value in ["Basic abc", "abc", "Bearer", ""] {
            assert_eq!(token(value), None, "{value}");
        }
        assert_eq!(bearer_token(&HeaderMap::new()), None);
    }
}
