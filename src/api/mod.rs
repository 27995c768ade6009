//! The API: the routes of all modules, and the document that describes them.
//!
//! - `layers`: the layers around every route, in one function
//! - `openapi`: completes the document with the responses, headers and links that follow from rules, so that no route
//!   declares them; creates the metric series of the routes in the document
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
use platform::{
    database::Database,
    http::{
        self, accept,
        limits::RateLimiter,
        problem::{self, METHOD_NOT_ALLOWED, Problem},
    },
};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::{
    accounts::{self, Accounts, Authentication},
    audit_events,
    slices::{self, Slices},
};

const DOCUMENT: &str = "/openapi.json";

/// The states that the routes of all modules need.
pub struct App {
    /// State of the routes that need only the database.
    pub database: Database,
    /// State of the account routes.
    pub accounts: Accounts,
    /// State of the slices' routes.
    pub slices: Slices,
}

/// The routes of a module: their part of the document, and a function that creates the router from the state.
struct Module {
    document: OpenApi,
    router: Box<dyn FnOnce(&App) -> Router>,
}

impl Module {
    fn new<S: Clone + Send + Sync + 'static>(module: OpenApiRouter<S>, state: fn(&App) -> S) -> Self {
        let (router, document) = module.split_for_parts();
        Self { document, router: Box::new(move |app| router.with_state(state(app))) }
    }
}

/// Returns the routes of every module. The router and the `OpenAPI` document are both created from this list, so that
/// the document contains every route of a module.
fn modules() -> [Module; 3] {
    [
        Module::new(accounts::routes(), |app| app.accounts.clone()),
        Module::new(slices::routes(), |app| app.slices.clone()),
        Module::new(audit_events::routes(), |app| app.database.clone()),
    ]
}

/// Returns the router of the whole API.
pub fn router(
    app: &App,
    authentication: Authentication,
    by_address: Arc<RateLimiter<IpAddr>>,
    settings: &http::Settings,
) -> Router {
    let document = document();
    openapi::declare_route_series(&document);
    let routes = modules()
        .into_iter()
        .fold(Router::new(), |routes, module| routes.merge((module.router)(app)))
        .layer(middleware::from_fn(accept::require_json))
        .merge(problem::routes(slices::PROBLEM_KINDS))
        .merge(documentation(&document))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::new(METHOD_NOT_ALLOWED));
    layers::around(routes, authentication, by_address, settings)
}

#[derive(utoipa::OpenApi)]
#[openapi(tags(
    (name = "accounts", description = "Users and their sessions"),
    (name = "audit", description = "Audit events"),
))]
struct Description;

/// Returns the `OpenAPI` document, without a running service.
pub fn document() -> OpenApi {
    let mut document = slices::Description::openapi();
    document.merge(Description::openapi());
    for module in modules() {
        document.merge(module.document);
    }
    openapi::completed(document)
}

/// Serves the documentation page, and the document that the page shows. The content security policy of the page allows
/// only resources of this service, so the page cannot load the document of another server. The page works without
/// internet access.
///
/// The document is kept as serialized text, because the parsed document would use 1.5 MiB for the lifetime of the
/// process.
#[expect(clippy::expect_used, reason = "fails only because of a mistake in the code, at start-up")]
fn documentation(document: &OpenApi) -> Router {
    let text = Bytes::from(serde_json::to_vec(document).expect("failed to serialize the OpenAPI document"));
    let policy = HeaderValue::from_static("default-src 'self'; img-src 'self' data:");
    Router::from(SwaggerUi::new("/docs").config(Config::new([DOCUMENT])))
        .route(DOCUMENT, get(async || ([(header::CONTENT_TYPE, "application/json")], text)))
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy))
}
