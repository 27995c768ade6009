//! The API's router: what there is, and what every request meets on its way there.
mod openapi;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
};
use tower::ServiceBuilder;
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    accounts::{self, Accounts, Authentication},
    catalog, config, orders,
    payments::{self, Payments},
    platform::{
        audit,
        database::Database,
        http::{
            accept,
            client_address::{self, TrustedProxies},
            limits::{self, BodyLimit, InFlight, RateLimiter},
            observe,
            problem::{self, METHOD_NOT_ALLOWED, Problem},
        },
    },
};

pub use self::openapi::document;

/// What the routes work with.
pub struct Api {
    /// For the slices that need nothing else.
    pub database: Database,
    /// Users and sessions.
    pub accounts: Accounts,
    /// Payments and refunds.
    pub payments: Payments,
    /// Who calls.
    pub authentication: Authentication,
    /// How often each address may call.
    pub by_address: Arc<RateLimiter<IpAddr>>,
}

/// The whole API.
pub fn router(api: Api, settings: &config::Http) -> Router {
    let document = document();
    openapi::expect_routes(&document);
    let routes = Router::new()
        .merge(Router::from(accounts::routes()).with_state(api.accounts))
        .merge(Router::from(catalog::routes()).with_state(api.database.clone()))
        .merge(Router::from(orders::routes()).with_state(api.database.clone()))
        .merge(Router::from(payments::routes()).with_state(api.payments))
        .merge(Router::from(audit::routes()).with_state(api.database))
        .layer(middleware::from_fn(accept::require_json))
        .merge(problem::routes())
        .merge(documentation(document))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::new(METHOD_NOT_ALLOWED));
    layered(routes, api.authentication, api.by_address, settings)
}

/// The page and the document it shows. Its policy lets it load from here only: it works without internet, and
/// nobody can make it show somebody else's document.
fn documentation(document: utoipa::openapi::OpenApi) -> Router {
    let policy = HeaderValue::from_static("default-src 'self'; img-src 'self' data:");
    Router::from(SwaggerUi::new("/docs").url("/openapi.json", document))
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy))
}

/// What a request meets, from the outside in. The order is the point:
fn layered(
    routes: Router,
    authentication: Authentication,
    by_address: Arc<RateLimiter<IpAddr>>,
    settings: &config::Http,
) -> Router {
    let trusted = TrustedProxies::new(&settings.trusted_proxies);
    let in_flight = InFlight::new(settings.max_requests_in_flight);
    let body_limit = BodyLimit(settings.body_limit);
    routes.layer(
        ServiceBuilder::new()
            // First, because logs, limits and trust all depend on where the request comes from.
            .layer(middleware::from_fn_with_state(trusted, client_address::find))
            // Around everything that can refuse, so that every refusal is seen in logs, metrics and traces.
            .layer(middleware::from_fn(observe::observe))
            // Outside of whatever answers, so that refusals have these headers too.
            .layer(middleware::from_fn(limits::security_headers))
            .option_layer(limits::cors(&settings.cors_allowed_origins))
            // Inside of the observation, so that a panic is seen as the 500 that it becomes.
            .layer(CatchPanicLayer::custom(problem::from_panic))
            // Before anything that costs: an overloaded service says so at once.
            .layer(middleware::from_fn_with_state(in_flight, limits::shed))
            // From here on there is work to bound.
            .layer(middleware::from_fn_with_state(settings.request_timeout, limits::deadline))
            .layer(middleware::from_fn_with_state(body_limit, limits::body_limit))
            // Before authentication, whose lookup of the session it protects.
            .layer(middleware::from_fn_with_state(by_address, limits::limit_by_address))
            // Last: who calls, the caller's own limit, and on the way back the audit of what was refused.
            .layer(middleware::from_fn_with_state(authentication, accounts::authenticate)),
    )
}
