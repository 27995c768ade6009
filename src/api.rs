//! The API: the routes of all slices, and the document that describes them.
//!
//! - `layers`: what every request meets on its way there, in one function
//! - `openapi`: what is completed in the document by rule
mod layers;
mod openapi;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderValue, header},
    middleware,
    routing::get,
};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::{
    accounts::{self, Accounts, Authentication},
    catalog, config, orders,
    payments::{self, Payments},
    platform::{
        audit,
        database::Database,
        http::{
            accept,
            limits::RateLimiter,
            problem::{self, METHOD_NOT_ALLOWED, Problem},
        },
    },
};

const DOCUMENT: &str = "/openapi.json";

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
        .merge(documentation(&document))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::new(METHOD_NOT_ALLOWED));
    layers::around(routes, api.authentication, api.by_address, settings)
}

#[derive(OpenApi)]
#[openapi(
    info(description = "Orders and payments. Amounts are in minor units, times in RFC 3339 (UTC)."),
    tags(
        (name = "accounts", description = "Users and their sessions"),
        (name = "catalog", description = "Products and their prices"),
        (name = "orders", description = "What was ordered"),
        (name = "payments", description = "Paying and refunding"),
        (name = "gateway", description = "What the payment gateway tells"),
        (name = "audit", description = "Who did what"),
    )
)]
struct Description;

/// The `OpenAPI` document, without a service behind it.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Description::openapi();
    document.merge(accounts::routes().into_openapi());
    document.merge(catalog::routes().into_openapi());
    document.merge(orders::routes().into_openapi());
    document.merge(payments::routes().into_openapi());
    document.merge(audit::routes().into_openapi());
    openapi::completed(document)
}

/// The page and the document it shows. Its policy lets it load from here only: it works without internet, and
/// nobody can make it show somebody else's document.
///
/// The document is kept as the text that is sent: its tree would take 1.5 MiB for as long as the process runs.
#[expect(clippy::expect_used, reason = "a mistake in the code, met at start-up and never later")]
fn documentation(document: &utoipa::openapi::OpenApi) -> Router {
    let text = Bytes::from(serde_json::to_vec(document).expect("a document is JSON"));
    let policy = HeaderValue::from_static("default-src 'self'; img-src 'self' data:");
    Router::from(SwaggerUi::new("/docs").config(Config::new([DOCUMENT])))
        .route(DOCUMENT, get(async || ([(header::CONTENT_TYPE, "application/json")], text)))
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy))
}
