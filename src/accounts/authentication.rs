//! The authentication layer: token in, [`Caller`] out. And, on the way back, every refused permission is counted
//! and audited here, so that no handler can forget it.
use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use platform::{
    audit::{Event, EventResult, EventType, Refusals},
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

/// The name of the limit by caller in the `RateLimit` headers.
const BY_CALLER: &str = "caller";

/// What the layer works with. Cheap to clone.
#[derive(Clone)]
pub struct Authentication {
    database: Database,
    refusals: Refusals,
    by_caller: Arc<RateLimiter<Uuid>>,
}

impl Authentication {
    /// Authenticates against `database`, and lets each caller send so many requests a second.
    pub fn new(database: Database, refusals: Refusals, requests_per_second: u32) -> Self {
        Self { database, refusals, by_caller: Arc::new(RateLimiter::per_second(requests_per_second)) }
    }

    /// Forgets the callers that have been quiet, so that their number stays bounded.
    pub fn forget_quiet(&self) {
        self.by_caller.forget_quiet();
    }
}

/// Finds out who calls. A request without a token goes on without a caller, since some routes are for anyone; one
/// with a token that is not valid is refused, whatever the route (RFC 6750, section 3.1).
pub async fn authenticate(State(layer): State<Authentication>, mut request: Request, next: Next) -> Response {
    let mut standing = None;
    if let Some(token) = bearer_token(request.headers()) {
        let caller = match sessions::caller(&layer.database, token).await {
            Ok(Some(caller)) => caller,
            Ok(None) => {
                record_bad_token(&layer.refusals).await;
                return Problem::new(UNAUTHENTICATED)
                    .detail("The session is not known, or its time is over.")
                    .into_response();
            }
            Err(error) => return Problem::from(error).into_response(),
        };
        if let Some(context) = correlation::current() {
            context.identify(User { id: caller.user_id, role: caller.role });
        }
        standing = match layer.by_caller.count(&caller.user_id) {
            Ok(standing) => standing,
            Err(standing) => return standing.refusal(BY_CALLER),
        };
        request.extensions_mut().insert::<Caller>(caller);
    }
    let mut response = next.run(request).await;
    if let Some(standing) = standing {
        standing.tell(BY_CALLER, &mut response);
    }
    if let Some(denial) = response.extensions().get::<Denial>() {
        record_denial(&layer.refusals, *denial).await;
    }
    response
}

/// The refusal stands whether or not it could be written; a failure to write is counted and logged.
async fn record_denial(refusals: &Refusals, denial: Denial) {
    AUTHORIZATION_DENIALS.with_label_values(&[denial.reason]).inc();
    let event = Event::new(EventType::Authorization, denial.resource, "access", EventResult::Denied)
        .with("reason", denial.reason)
        .records(denial.record_id);
    if let Err(error) = refusals.record(event).await {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "a refused permission could not be audited"
        );
    }
}

/// As [`record_denial`]. The token itself is not written: it may be somebody's, mistyped.
async fn record_bad_token(refusals: &Refusals) {
    AUTHENTICATION_FAILURES.with_label_values(&["bad_token"]).inc();
    let event = Event::new(EventType::Authentication, "sessions", "authenticate", EventResult::Failure)
        .with("reason", "bad_token");
    if let Err(error) = refusals.record(event).await {
        tracing::error!(error = &error as &dyn std::error::Error, "a bad token could not be audited");
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
