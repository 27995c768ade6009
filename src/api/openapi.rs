//! The `OpenAPI` document: generated from the handlers, and completed with responses, headers and links. The module
//! also creates the metric series of the routes in the document.
//!
//! The rejections by layers and extractors follow from the properties of a route. Rules in this module add these
//! rejections, because a list at each handler would become incomplete.
use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use platform::http::{
    problem::{FieldError, MEDIA_TYPE, ProblemBody},
    request_telemetry,
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Components, Object, OpenApi as Document, Ref, RefOr, Response, ResponseBuilder, Type,
        content::ContentBuilder,
        header::{Header, HeaderBuilder},
        link::Link,
        path::{Operation, Parameter, PathItem},
        schema::ObjectBuilder,
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
            .description(Some(
                "The token of a session, returned by POST /v1/sessions. An operation lists the roles that are allowed to \
                 call it. Without a list, every role is allowed.",
            ))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("session", SecurityScheme::Http(scheme));
        for (status, description, _) in REJECTIONS {
            let mut response = problem(description);
            reference_headers(status, false, &mut response);
            components.responses.insert(rejection_name(status), RefOr::T(response));
        }
    }
}

/// Returns the document with the rejections, headers and links that no handler declares.
pub(super) fn completed(mut document: Document) -> Document {
    document.merge(Base::openapi());
    // `merge` of utoipa 6.0.0 ignores the headers of the components.
    add_headers(document.components.get_or_insert_default());
    let targets = operations_of_one_record(&document);
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            add_rejections(path, operation);
            add_response_headers(operation);
        }
        if let Some(operation) = &mut item.post {
            add_links(path, operation, &targets);
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}

/// Creates the metric series of every route, for its success statuses and for the statuses that alert rules count as
/// failures. These series then exist from the first scrape.
pub(super) fn declare_route_series(document: &Document) {
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
            successes.for_each(|success| request_telemetry::declare_series(&method, path, success));
        }
    }
}

/// A rejection that follows from the properties of an operation: its status, its description, and its condition.
type Rejection = (&'static str, &'static str, fn(&str, &Operation) -> bool);

const REJECTIONS: [Rejection; 12] = [
    ("400", "Malformed request", |_, operation| has_body(operation) || has_parameters(operation)),
    ("401", "Invalid session", |_, _| true),
    ("403", "Permission denied", |_, operation| needs_session(operation)),
    ("404", "Not found, or owned by another user", |path, _| path.contains("{id}")),
    ("406", "Media type not acceptable", |_, _| true),
    ("413", "Body too large", |_, operation| has_body(operation)),
    ("415", "Unsupported media type", |_, operation| has_body(operation)),
    ("422", "Invalid request", |_, operation| has_body(operation)),
    ("429", "Too many requests; see Retry-After", |_, _| true),
    ("500", "Internal error", |_, _| true),
    ("503", "Service unavailable; see Retry-After", |_, _| true),
    ("504", "Request timed out", |_, _| true),
];

fn has_body(operation: &Operation) -> bool {
    operation.request_body.is_some()
}

fn has_parameters(operation: &Operation) -> bool {
    operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty())
}

fn needs_session(operation: &Operation) -> bool {
    operation.security.as_ref().is_some_and(|security| !security.is_empty())
}

/// Adds the rejections that the handler does not describe itself.
fn add_rejections(path: &str, operation: &mut Operation) {
    for (status, _, applies) in REJECTIONS {
        if applies(path, operation) && !operation.responses.responses.contains_key(status) {
            let rejection = RefOr::Ref(Ref::from_response_name(rejection_name(status)));
            operation.responses.responses.insert(status.to_owned(), rejection);
        }
    }
}

fn rejection_name(status: &str) -> String {
    format!("Problem{status}")
}

fn problem(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content(MEDIA_TYPE, content).build()
}

/// Headers that a response of any status can have. The `ratelimit` headers are absent if no limit is enabled, or if a
/// layer outside of the rate limits rejects the request.
const COMMON_HEADERS: [&str; 7] = [
    "cache-control",
    "content-security-policy",
    "ratelimit",
    "ratelimit-policy",
    "referrer-policy",
    "x-content-type-options",
    "x-correlation-id",
];

/// Declares the headers that layers, extractors and replays set.
fn add_headers(components: &mut Components) {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let constant = |value: &str| text().enum_values(Some([value])).build();
    let matching = |pattern: &str| text().pattern(Some(pattern)).build();
    let limit = |item: &str| matching(&format!("^\"[a-z]+\"{item}(, \"[a-z]+\"{item})*$"));
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).build();
    let headers: [(&str, &str, Object); 10] = [
        ("cache-control", "Responses are not cached", constant("no-store")),
        ("content-security-policy", "For browsers", text().build()),
        (
            "idempotency-replayed",
            "Present if the response is that of an earlier request with this key",
            constant("true"),
        ),
        (
            "ratelimit",
            "The remaining quota of each enabled limit, and the seconds until the quota is complete again",
            limit(";r=[0-9]+;t=[0-9]+"),
        ),
        (
            "ratelimit-policy",
            "The quota of each enabled limit, and its window in seconds",
            limit(";q=[0-9]+;w=[0-9]+"),
        ),
        ("referrer-policy", "For browsers", constant("no-referrer")),
        ("retry-after", "Seconds to wait before the next attempt", seconds),
        ("www-authenticate", "The scheme of authentication", constant("Bearer")),
        ("x-content-type-options", "For browsers", constant("nosniff")),
        (
            "x-correlation-id",
            "Identifies the request in logs and reports: the request's own id if it is well-formed, otherwise a generated one",
            matching("^[A-Za-z0-9._-]{1,128}$"),
        ),
    ];
    for (name, description, schema) in headers {
        let header: Header = HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build();
        components.headers.insert(name.to_owned(), header.into());
    }
}

/// Adds the common headers, and those of the status, to the responses that the handler describes itself.
fn add_response_headers(operation: &mut Operation) {
    let is_key = |parameter: &RefOr<Parameter>| matches!(parameter, RefOr::T(parameter) if parameter.name == "Idempotency-Key");
    let idempotent = operation.parameters.iter().flatten().any(is_key);
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            reference_headers(status, idempotent, response);
        }
    }
}

fn reference_headers(status: &str, idempotent: bool, response: &mut Response) {
    let special = match status {
        "401" => Some("www-authenticate"),
        "409" if idempotent => Some("retry-after"),
        "429" | "503" => Some("retry-after"),
        success if idempotent && success.starts_with('2') => Some("idempotency-replayed"),
        _ => None,
    };
    for name in COMMON_HEADERS.into_iter().chain(special) {
        let reference = Ref::new(format!("#/components/headers/{name}"));
        response.headers.insert(name.to_owned(), RefOr::Ref(reference));
    }
}

/// Returns the ids of the operations on one record, keyed by the path of the record's collection. The key of
/// `/v1/things/{id}`, and of every path below that path, is `/v1/things`.
fn operations_of_one_record(document: &Document) -> BTreeMap<String, Vec<String>> {
    let mut targets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, item) in &document.paths.paths {
        let Some((collection, _)) = path.split_once("/{id}") else { continue };
        let operations = [&item.get, &item.post, &item.put, &item.patch, &item.delete].into_iter().flatten();
        let ids = operations.filter_map(|operation| operation.operation_id.clone());
        targets.entry(collection.to_owned()).or_default().extend(ids);
    }
    targets
}

/// Links the creation of a record with the operations on the record. The path of a creation ends with the name of the
/// record's collection: `/v1/things`, or `/v1/others/{id}/things`.
fn add_links(path: &str, operation: &mut Operation, targets: &BTreeMap<String, Vec<String>>) {
    let Some((_, name)) = path.rsplit_once('/') else { return };
    let Some(targets) = targets.get(&format!("/v1/{name}")) else { return };
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        if !status.starts_with('2') {
            continue;
        }
        for target in targets {
            let link = Link::builder().operation_id(target).parameter("id", "$response.body#/id").build();
            response.links.insert(target.clone(), RefOr::T(link));
        }
    }
}
