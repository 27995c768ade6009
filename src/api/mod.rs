//! The API: the routes of all modules, and the document that describes them.
//!
//! - `layers`: the layers around every route, in one function
//! - `openapi`: the parts of the document that follow from rules
mod layers;
mod openapi;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::FromRef,
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
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::{
    accounts::{self, Accounts, Authentication},
    audit_events,
    slices::{self, Slices},
};

const DOCUMENT: &str = "/openapi.json";

/// The state of the routes: a handler takes the part that it needs with `State`. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

struct Parts {
    database: Database,
    accounts: Accounts,
    slices: Slices,
}

impl App {
    /// Assembles the state of the routes.
    pub fn new(database: Database, accounts: Accounts, slices: Slices) -> Self {
        Self(Arc::new(Parts { database, accounts, slices }))
    }

    /// Returns the slices that keep something for as long as the process runs.
    pub fn slices(&self) -> &Slices {
        &self.0.slices
    }
}

impl FromRef<App> for Database {
    fn from_ref(app: &App) -> Self {
        app.0.database.clone()
    }
}

impl FromRef<App> for Accounts {
    fn from_ref(app: &App) -> Self {
        app.0.accounts.clone()
    }
}

/// Returns every route. The router and the `OpenAPI` document are both made from it, so that no route is served that
/// the document does not have.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().merge(accounts::routes()).merge(slices::routes()).merge(audit_events::routes())
}

/// Returns the router of the whole API.
pub fn router(
    app: App,
    authentication: Authentication,
    by_address: Arc<RateLimiter<IpAddr>>,
    settings: &http::Settings,
) -> Router {
    let document = document();
    openapi::expect_routes(&document);
    let routes = Router::from(routes())
        .with_state(app)
        .layer(middleware::from_fn(accept::require_json))
        .merge(problem::routes(slices::PROBLEM_KINDS))
        .merge(documentation(&document))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::new(METHOD_NOT_ALLOWED));
    layers::around(routes, authentication, by_address, settings)
}

#[derive(OpenApi)]
#[openapi(tags(
    (name = "accounts", description = "Users and their sessions"),
    (name = "audit", description = "Audit events"),
))]
struct Description;

/// Returns the `OpenAPI` document; it needs no running service.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = slices::Description::openapi();
    document.merge(Description::openapi());
    document.merge(routes().into_openapi());
    openapi::completed(document)
}

/// Serves the page and the document that it shows. The page's policy lets it load from here only: it works without
/// internet access, and cannot be made to show the document of another server.
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
