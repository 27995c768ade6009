//! The OpenAPI document agrees with the service, and describes every operation and response. The documentation page
//! loads nothing from other servers.
use std::{
    collections::HashMap,
    process::Command,
    sync::{LazyLock, Mutex, PoisonError},
};

use dev::harness::{Exchange, HttpResponse};
use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::{EXECUTABLE, service};

/// The document, as printed by the executable.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let output = Command::new(EXECUTABLE).arg("openapi").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
});

/// Returns the document's operations: method, path template, operation.
pub fn operations() -> impl Iterator<Item = (String, &'static str, &'static Map<String, Value>)> {
    DOCUMENT["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let operations = item.as_object().unwrap().iter();
        operations.map(move |(method, operation)| {
            (method.to_uppercase(), path.as_str(), operation.as_object().unwrap())
        })
    })
}

/// Returns the target of a reference within the document, or the value itself if it is no reference.
pub fn resolved(value: &'static Value) -> &'static Value {
    let Some(reference) = value.get("$ref") else { return value };
    let pointer = reference
        .as_str()
        .and_then(|reference| reference.strip_prefix('#'))
        .expect("the reference is not local");
    DOCUMENT.pointer(pointer).unwrap_or_else(|| panic!("the document has no {pointer}"))
}

fn operation(method: &str, path: &str) -> Option<&'static Map<String, Value>> {
    // HEAD is GET without the body, and has the same description.
    let method = if method == "HEAD" { "GET" } else { method };
    let mut operations = operations().filter(|(known, ..)| known == method);
    operations.find(|(_, template, _)| matches_template(template, path)).map(|(.., operation)| operation)
}

fn matches_template(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(expected, found)| expected.starts_with('{') || expected == found)
}

/// Panics if the status, a header, the media type or the body of a response is not as the document describes.
pub fn agrees_with_the_document(exchange: &Exchange<'_>) {
    let Exchange { method, path, response } = exchange;
    // For an undocumented route, only problems are checked, because their schema is in the document.
    let Some(operation) = operation(method.as_str(), path) else {
        if response.header("content-type") == Some("application/problem+json") {
            assert_matches_schema("#/components/schemas/Problem", response);
        }
        return;
    };
    let documented = operation["responses"].get(response.status.to_string());
    let documented =
        documented.unwrap_or_else(|| panic!("the document lacks the status of {method} {path}: {response}"));
    let documented = resolved(documented);
    assert_headers(&documented["headers"], exchange);
    let Some(content) = documented.get("content").and_then(Value::as_object) else {
        assert_eq!(response.text, "", "the document has no body of {method} {path}: {response}");
        return;
    };
    let media_type = response.header("content-type").unwrap_or_default();
    let schema = &content
        .get(media_type)
        .unwrap_or_else(|| panic!("the document lacks the type {media_type} of {method} {path}: {response}"))
        ["schema"];
    if method.as_str() != "HEAD" {
        assert_matches_schema(schema["$ref"].as_str().expect("the body has no named schema"), response);
    }
}

/// Headers of HTTP that the document does not describe. The headers of CORS, which only browsers use, are not described
/// either.
const UNDOCUMENTED: [&str; 6] =
    ["connection", "content-length", "content-type", "date", "transfer-encoding", "vary"];

/// Documented headers that a response may lack, because they depend on settings or on an earlier request.
const OPTIONAL: [&str; 3] = ["ratelimit", "ratelimit-policy", "idempotency-replayed"];

/// Panics if a header is undocumented, invalid or missing.
fn assert_headers(documented: &'static Value, Exchange { method, path, response }: &Exchange<'_>) {
    let documented = documented.as_object().expect("the response has no documented headers");
    for name in response.headers.keys().map(axum::http::HeaderName::as_str) {
        let known = documented.contains_key(name) || UNDOCUMENTED.contains(&name);
        assert!(
            known || name.starts_with("access-control-"),
            "the document lacks the header {name} of {method} {path}: {response}"
        );
    }
    for (name, header) in documented {
        let schema = &resolved(header)["schema"];
        let values: Vec<_> =
            response.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        // A 409 has a `Retry-After` only if the first request with the same idempotency key is still in progress.
        let optional = OPTIONAL.contains(&name.as_str()) || (name == "retry-after" && response.status == 409);
        assert!(!values.is_empty() || optional, "{method} {path} lacks the header {name}: {response}");
        if values.is_empty() {
            continue;
        }
        let text = values.join(", ");
        let value = if schema["type"] == "integer" {
            json!(text.parse::<i64>().unwrap_or_else(|error| panic!("{name}: {text}: {error}")))
        } else {
            json!(text)
        };
        assert!(
            jsonschema::is_valid(schema, &value),
            "the header {name} of {method} {path} is not as documented: {response}"
        );
    }
}

fn assert_matches_schema(schema: &str, response: &HttpResponse) {
    static VALIDATORS: LazyLock<Mutex<HashMap<String, Validator>>> = LazyLock::new(Mutex::default);
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let validator = validators.entry(schema.to_owned()).or_insert_with(|| validator(schema));
    let body = response.json();
    let errors: Vec<_> =
        validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "the response does not match the schema ({schema}): {errors:#?}\n{response}");
}

/// Returns a validator that rejects undocumented members and invalid formats.
fn validator(schema: &str) -> Validator {
    let mut components = DOCUMENT["components"].clone();
    for schema in components["schemas"].as_object_mut().unwrap().values_mut() {
        forbid_unknown_members(schema);
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": schema,
        "components": components,
    });
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn forbid_unknown_members(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.get("properties").is_some_and(Value::is_object) {
                members.insert("additionalProperties".to_owned(), json!(false));
            }
            members.values_mut().for_each(forbid_unknown_members);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_unknown_members),
        _ => {}
    }
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_served_as_it_is_printed() {
    let service = service().await;
    let served = service.anonymous().get("/openapi.json").await.assert_status(200).json();
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1."));
    assert_eq!(served, *DOCUMENT);
}

#[tokio::test]
async fn the_documentation_page_loads_nothing_from_elsewhere() {
    let service = service().await;
    let anonymous = service.anonymous();
    let page = anonymous.get("/docs/").await.assert_status(200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    let links: Vec<_> = page.text.split(['"', '\'']).filter(|word| word.contains("//")).collect();
    assert_eq!(links, [""; 0], "the page loads resources of another server");
    let scripts: Vec<_> =
        page.text.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(!scripts.is_empty());
    for script in scripts {
        let path = format!("/docs/{}", script.trim_start_matches("./"));
        let script = anonymous.get(&path).await.assert_status(200);
        assert!(script.header("content-type").unwrap().contains("javascript"), "{path}");
    }
    assert!(!page.text.contains("<script>"), "the page has an inline script, which its policy blocks");
}

#[test]
fn every_operation_has_a_summary_and_described_responses() {
    for (method, path, operation) in operations() {
        let name = format!("{method} {path}");
        assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{name}");
        assert!(!operation["tags"].as_array().unwrap().is_empty(), "{name}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolved(response);
            assert!(
                response["description"].as_str().is_some_and(|text| !text.is_empty()),
                "{name}: {status}"
            );
            let problem = response["content"].get("application/problem+json").is_some();
            assert_eq!(problem, status.as_str() >= "400", "{name}: {status}");
        }
    }
}

#[test]
fn every_link_leads_to_an_operation_and_sets_its_parameters() {
    let parameters = |operation: &Map<String, Value>| -> Vec<String> {
        let parameters = operation.get("parameters").and_then(Value::as_array).into_iter().flatten();
        let names = parameters.filter(|parameter| parameter["in"] == "path");
        names.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut links = 0;
    for (method, path, operation) in operations() {
        for response in operation["responses"].as_object().unwrap().values() {
            for (name, link) in
                resolved(response).get("links").and_then(Value::as_object).into_iter().flatten()
            {
                let target = operations().find(|(.., target)| target["operationId"] == link["operationId"]);
                let (.., target) = target.unwrap_or_else(|| panic!("{method} {path}: {name} has no target"));
                let set: Vec<_> = link
                    .get("parameters")
                    .and_then(Value::as_object)
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| name.clone())
                    .collect();
                assert_eq!(set, parameters(target), "{method} {path}: {name}");
                links += 1;
            }
        }
    }
    assert!(links >= 3, "{links}");
}
