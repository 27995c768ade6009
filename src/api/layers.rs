//! What every request meets on its way to a handler, and every answer on its way back.
use std::{net::IpAddr, sync::Arc};

use axum::{Router, middleware};
use platform::http::{
    self,
    client_address::{self, TrustedProxies},
    host,
    limits::{self, BodyLimit, InFlight, RateLimiter},
    observe, problem,
    shares::{self, Shares},
};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use crate::accounts::{self, Authentication};

/// What a request meets, from the outside in. The order is the point:
pub(super) fn around(
    routes: Router,
    authentication: Authentication,
    by_address: Arc<RateLimiter<IpAddr>>,
    settings: &http::Settings,
) -> Router {
    let trusted = TrustedProxies::new(&settings.trusted_proxies, settings.forwarded_header.clone());
    let in_flight = InFlight::new(settings.max_requests_in_flight);
    let in_flight_by_address = Shares::new(settings.max_requests_in_flight_per_address);
    let body_limit = BodyLimit { bytes: settings.body_limit, timeout: settings.body_timeout };
    routes.layer(
        ServiceBuilder::new()
            // First, because logs, limits and trust all depend on where the request comes from.
            .map_request(move |request| client_address::find(&trusted, request))
            // Around everything that can refuse, so that every refusal is seen in logs, metrics and traces.
            .layer(middleware::from_fn(observe::observe))
            // Outside of whatever answers, so that refusals have these headers too.
            .map_response(limits::security_headers)
            .option_layer(limits::cors(&settings.cors_allowed_origins))
            // Inside of the observation, so that a panic is seen as the 500 that it becomes.
            .layer(CatchPanicLayer::custom(problem::from_panic))
            // What follows works for requests that every server on the way reads alike.
            .layer(middleware::from_fn(host::require_host))
            // Before anything that costs: an overloaded service says so at once.
            .layer(middleware::from_fn_with_state(in_flight, limits::shed))
            // One address cannot take all of it: its slow bodies hold up its own requests alone.
            .layer(middleware::from_fn_with_state(in_flight_by_address, shares::limit_in_flight_by_address))
            // From here on there is work to bound.
            .layer(middleware::from_fn_with_state(settings.request_timeout, limits::deadline))
            .layer(middleware::from_fn_with_state(body_limit, limits::body_limit))
            // Before authentication, whose lookup of the session it protects.
            .layer(middleware::from_fn_with_state(by_address, limits::limit_by_address))
            // Last: who calls, the caller's own limit, and on the way back the audit of what was refused.
            .layer(middleware::from_fn_with_state(authentication, accounts::authenticate)),
    )
}
