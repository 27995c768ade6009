//! The `OpenAPI` document: generated from the handlers, and completed with the parts that all routes have in common.
//!
//! The refusals by layers and extractors follow from the properties of a route. They are added here by rule, because a
//! list at each handler would become incomplete.
use axum::http::{Method, StatusCode};
use platform::http::{
    observe,
    problem::{FieldError, MEDIA_TYPE, ProblemBody},
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document, Ref, RefOr, Response, ResponseBuilder,
        content::ContentBuilder,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

#[derive(OpenApi)]
#[openapi(components(schemas(ProblemBody, FieldError)), modifiers(&Common))]
struct Base;

struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token of a session, returned by POST /v1/sessions."))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("session", SecurityScheme::Http(scheme));
    }
}

/// Returns the document with the parts that all routes have in common.
pub(super) fn completed(mut document: Document) -> Document {
    document.merge(Base::openapi());
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            add_refusals(path, operation);
        }
    }
    document
}

/// Creates the metric series of every route, so that they exist from the first scrape.
pub(super) fn expect_routes(document: &Document) {
    for (path, item) in &document.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in operations {
            let statuses = operation.iter().flat_map(|operation| operation.responses.responses.keys());
            let successes = statuses.filter_map(|status| status.parse().ok()).filter(StatusCode::is_success);
            successes.for_each(|success| observe::expect(&method, path, success));
        }
    }
}

fn add_refusals(path: &str, operation: &mut Operation) {
    let has_body = operation.request_body.is_some();
    let has_input =
        has_body || operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty());
    let needs_session = operation.security.as_ref().is_some_and(|security| !security.is_empty());
    let refusals = [
        (has_input, "400", "Malformed request"),
        (true, "401", "Invalid session"),
        (needs_session, "403", "Permission denied"),
        (path.contains("{id}"), "404", "Not found, or owned by another user"),
        (true, "406", "Media type not acceptable"),
        (has_body, "413", "Body too large"),
        (has_body, "415", "Unsupported media type"),
        (has_body, "422", "Invalid request, or Idempotency-Key reused"),
        (true, "429", "Too many requests; see Retry-After"),
        (true, "500", "Internal error"),
        (true, "503", "Service unavailable; see Retry-After"),
        (true, "504", "Request timed out"),
    ];
    for (applies, status, description) in refusals {
        if applies && !operation.responses.responses.contains_key(status) {
            operation.responses.responses.insert(status.to_owned(), RefOr::T(problem(description)));
        }
    }
}

fn problem(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content(MEDIA_TYPE, content).build()
}
