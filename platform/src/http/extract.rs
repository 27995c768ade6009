//! Extractors whose rejections are [`Problem`]s.
//!
//! axum's own extractors reject in plain text. This module replaces them: `Json` and `Query` under the same names,
//! `Path` by `Id`, and `Bytes` by the function [`read_bytes`].
use std::{error::Error, iter, ops::Deref};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_path_to_error::Segment;
use tower_http::timeout::TimeoutError;
use uuid::Uuid;

use super::problem::{BODY_TOO_LARGE, FieldError, Problem, UNSUPPORTED_MEDIA_TYPE};

/// A request body with rules that the types of its fields cannot express.
pub trait Validate {
    /// Returns the errors of all invalid fields, not only the first error.
    fn validate(&self) -> Vec<FieldError>;
}

/// A JSON body that is well-formed and valid.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Validate, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = read_body(request, state).await?;
        let value = parse_json(&body)?;
        decode(value).map(Self)
    }
}

/// Reads the bytes of a JSON body. Rejects a `Content-Type` that is not JSON with 415.
pub(super) async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    if !is_json(request.headers()) {
        return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE).detail("Send Content-Type: application/json."));
    }
    read_bytes(request, state).await
}

/// Reads the bytes of a body of any type.
///
/// # Errors
/// 413 if the body exceeds the limit that a layer of the route sets. 400 if reading the body fails or times out.
pub async fn read_bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| {
        if rejection.status() == BODY_TOO_LARGE.status {
            Problem::new(BODY_TOO_LARGE)
        } else if is_timeout(&rejection) {
            Problem::malformed("Timed out reading the body.")
        } else {
            Problem::malformed("Failed to read the whole body.")
        }
    })
}

/// Returns whether an error is [`TimeoutError`], or has it among its causes.
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |&error| error.source()).any(<dyn Error>::is::<TimeoutError>)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(media_type) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Parses any JSON value.
pub(super) fn parse_json(body: &[u8]) -> Result<serde_json::Value, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::malformed(format!("The body is not JSON: line {}, column {}.", error.line(), error.column()))
    })
}

/// Converts JSON into the type that a handler expects, and validates the value. The errors name the invalid fields by
/// JSON Pointer.
pub(super) fn decode<T: DeserializeOwned + Validate>(value: serde_json::Value) -> Result<T, Problem> {
    let decoded: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let pointer: String = error.path().iter().filter_map(segment_pointer).collect();
        Problem::invalid(vec![field_error(&pointer, &without_value(&error.inner().to_string()))])
    })?;
    match decoded.validate() {
        errors if errors.is_empty() => Ok(decoded),
        errors => Err(Problem::invalid(errors)),
    }
}

/// Returns the message of a deserialization error without the value that the client sent, because that value may be a
/// misplaced password.
fn without_value(message: &str) -> String {
    let contains_value =
        ["invalid type: ", "invalid value: ", "unknown variant "].iter().any(|kind| message.contains(kind));
    match message.rsplit_once(", expected ") {
        Some((_, expected)) if contains_value => format!("expected {expected}"),
        _ => message.to_owned(),
    }
}

fn segment_pointer(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } => Some(format!("/{}", escaped(key))),
        Segment::Seq { index } => Some(format!("/{index}")),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// Escapes a name as a part of a JSON Pointer (RFC 6901, section 3).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Returns the error for one field. Serde reports a missing field at its parent, and names the field only in the
/// message.
fn field_error(pointer: &str, message: &str) -> FieldError {
    let named = |prefix: &str| message.strip_prefix(prefix)?.split('`').next().map(escaped);
    if let Some(field) = named("missing field `") {
        return FieldError::new(format!("{pointer}/{field}"), "is missing");
    }
    if let Some(field) = named("unknown field `") {
        let parent = pointer.strip_suffix(&format!("/{field}")).unwrap_or(pointer);
        return FieldError::new(format!("{parent}/{field}"), "is not a known field");
    }
    FieldError::new(pointer, message)
}

/// A query string, parsed into `T`.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                let cause = rejection.source().map_or_else(|| rejection.to_string(), ToString::to_string);
                let cause = without_value(&cause);
                Err(Problem::malformed(format!("Invalid query string: {cause}.")))
            }
        }
    }
}

/// A name in a query string, such as a table's name: 1 to 63 lower-case letters, digits and `_`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Identifier(String);

/// The error for text that is not an [`Identifier`].
#[derive(Debug, thiserror::Error)]
#[error("must have 1 to 63 characters of a to z, 0 to 9 and _")]
pub struct NotAnIdentifier;

impl TryFrom<String> for Identifier {
    type Error = NotAnIdentifier;

    fn try_from(text: String) -> Result<Self, NotAnIdentifier> {
        let is_name_byte = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        let is_name = (1..=63).contains(&text.len()) && text.bytes().all(is_name_byte);
        if is_name { Ok(Self(text)) } else { Err(NotAnIdentifier) }
    }
}

impl Deref for Identifier {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The id in a path. Text that is not a UUID is rejected with 404, like an unknown id.
#[derive(Debug, Clone, Copy)]
pub struct Id(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = axum::extract::Path::<Uuid>::from_request_parts(parts, state).await;
        id.map(|axum::extract::Path(id)| Self(id)).map_err(|_| Problem::not_found())
    }
}
