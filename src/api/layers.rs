//! The layers around every route, in the order in which a request passes them.
use std::{net::IpAddr, sync::Arc};

use axum::{Router, middleware};
use platform::http::{
    self,
    client_address::{self, TrustedProxies},
    host,
    limits::{self, BodyLimit, InFlight, RateLimiter},
    network_slots::{self, NetworkSlots},
    problem, request_telemetry,
};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use crate::accounts::{self, Authentication};

/// Adds the layers around the routes, from the outermost to the innermost. Most layers depend on this order.
pub(super) fn around(
    routes: Router,
    authentication: Authentication,
    by_address: Arc<RateLimiter<IpAddr>>,
    settings: &http::Settings,
) -> Router {
    let trusted = TrustedProxies::new(&settings.trusted_proxies, settings.forwarded_header.clone());
    let in_flight = InFlight::new(settings.max_requests_in_flight);
    let in_flight_by_address = NetworkSlots::new(settings.max_requests_in_flight_per_address);
    let body_limit = BodyLimit { bytes: settings.body_limit, timeout: settings.body_timeout };
    routes.layer(
        ServiceBuilder::new()
            // First, because logs, limits and the trust in trace headers all depend on the client's address.
            .map_request(move |request| client_address::find(&trusted, request))
            // Outside of every layer that can reject a request, so that logs, metrics and traces have every rejection.
            .layer(middleware::from_fn(request_telemetry::record_request))
            // Outside of every layer that can reject a request, so that rejections have these headers too.
            .map_response(limits::security_headers)
            .option_layer(limits::cors(&settings.cors_allowed_origins))
            // Inside of the telemetry, so that a panic is recorded as a response with status 500.
            .layer(CatchPanicLayer::custom(problem::from_panic))
            // Rejects a missing, repeated or invalid `Host` header, because proxies in front may parse it differently.
            .layer(middleware::from_fn(host::require_host))
            // Before any expensive layer, so that an overloaded service responds at once.
            .layer(middleware::from_fn_with_state(in_flight, limits::shed))
            // One address can hold only a part of the slots for requests in flight, so that slow uploads from one
            // address do not block other addresses.
            .layer(middleware::from_fn_with_state(
                in_flight_by_address,
                network_slots::limit_in_flight_by_address,
            ))
            // The inner layers and the handlers wait for the body and for the database. The next two layers therefore
            // limit the duration of the request, and the duration and size of its body.
            .layer(middleware::from_fn_with_state(settings.request_timeout, limits::deadline))
            .layer(middleware::from_fn_with_state(body_limit, limits::body_limit))
            // Before authentication, so that the limit also protects the lookup of the session.
            .layer(middleware::from_fn_with_state(by_address, limits::limit_by_address))
            // Last: authentication, the caller's rate limit and, after the handler, the audit of denied permissions.
            .layer(middleware::from_fn_with_state(authentication, accounts::authenticate)),
    )
}
