//! Error responses: RFC 9457 `application/problem+json`.
//!
//! Every handler or layer that rejects a request returns a [`Problem`]. The problem's kind is documented at its `type`
//! URI, `/problems/{slug}`. The cause of an internal error is logged and never sent to the caller.
use std::{borrow::Cow, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::Path,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    database,
    telemetry::{correlation, traces},
};

/// A kind of problem, which its `type` URI documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The last part of the `type` URI.
    pub slug: &'static str,
    /// The HTTP status.
    pub status: StatusCode,
    /// The title, which is the same for every occurrence.
    pub title: &'static str,
    /// The text of the documentation page: the condition, and the caller's remedy.
    pub about: &'static str,
}

/// Declares kinds of problems, and the list `KINDS`. The doc comment of a kind is the text of its page.
#[macro_export]
macro_rules! problem_kinds {
    ($($(#[doc = $about:literal])* $NAME:ident = $status:ident $slug:literal $title:literal;)*) => {
        $($(#[doc = $about])* pub const $NAME: &$crate::http::problem::Kind = &$crate::http::problem::Kind {
            slug: $slug, status: axum::http::StatusCode::$status, title: $title, about: concat!($($about),*),
        };)*

        /// The kinds of problems that this module declares.
        pub const KINDS: &[&$crate::http::problem::Kind] = &[$($NAME),*];
    };
}

crate::problem_kinds! {
    /// The body is not JSON, or a query value, header or cursor is malformed. Correct the request.
    MALFORMED = BAD_REQUEST "malformed-request" "Malformed request";
    /// This operation must not run twice. Send an `Idempotency-Key` header of 1 to 255 visible ASCII characters, and the same key with each retry.
    MISSING_IDEMPOTENCY_KEY = BAD_REQUEST "missing-idempotency-key" "Idempotency-Key required";
    /// There is no valid session. Log in, and send `Authorization: Bearer TOKEN`.
    UNAUTHENTICATED = UNAUTHORIZED "unauthenticated" "Authentication required";
    /// The e-mail address or the password is wrong, or too many attempts failed.
    BAD_CREDENTIALS = UNAUTHORIZED "bad-credentials" "Invalid credentials";
    /// Your role is not authorized for this operation.
    FORBIDDEN = FORBIDDEN "forbidden" "Permission denied";
    /// No resource has this address, or the resource belongs to another user.
    NOT_FOUND = NOT_FOUND "not-found" "Not found";
    /// The resource supports other methods, which the `Allow` header lists.
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED "method-not-allowed" "Method not allowed";
    /// The service responds with JSON only. Accept `application/json`.
    NOT_ACCEPTABLE = NOT_ACCEPTABLE "not-acceptable" "Media type not acceptable";
    /// The current state of the resource does not allow this operation. Read the resource again, then decide.
    CONFLICT = CONFLICT "conflict" "Conflict with the current state";
    /// The first request with this key is still in progress. Retry with the same key after `Retry-After` seconds.
    IN_PROGRESS = CONFLICT "request-under-way" "Request in progress";
    /// The body exceeds the maximum size.
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE "body-too-large" "Body too large";
    /// The body must be `application/json`.
    UNSUPPORTED_MEDIA_TYPE = UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" "Unsupported media type";
    /// The body is JSON, but some of its fields are invalid. `errors` lists these fields by JSON Pointer.
    INVALID = UNPROCESSABLE_ENTITY "invalid-request" "Invalid request";
    /// This Idempotency-Key was used for a different request. Use a new key for each new request.
    KEY_REUSED = UNPROCESSABLE_ENTITY "idempotency-key-reused" "Idempotency-Key reused";
    /// You exceeded the rate limit. Retry after `Retry-After` seconds.
    TOO_MANY_REQUESTS = TOO_MANY_REQUESTS "too-many-requests" "Too many requests";
    /// The service failed. Its log has the cause under the `correlation_id`.
    INTERNAL = INTERNAL_SERVER_ERROR "internal-error" "Internal error";
    /// The service or one of its dependencies is unavailable. Retry with the same Idempotency-Key after `Retry-After` seconds.
    UNAVAILABLE = SERVICE_UNAVAILABLE "unavailable" "Service unavailable";
    /// The request exceeded its deadline, and its outcome is unknown. Retry with the same Idempotency-Key.
    TIMEOUT = GATEWAY_TIMEOUT "timeout" "Request timed out";
}

/// An invalid field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) to the field in the request's body.
    #[schema(example = "/items/0/quantity")]
    pub pointer: String,
    /// The rule that the field violates.
    #[schema(example = "must be between 1 and 1000")]
    pub message: String,
}

impl FieldError {
    /// Returns an error at `pointer`.
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

/// The rejection of a request, before it becomes a response.
#[derive(Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: Option<Cow<'static, str>>,
    errors: Vec<FieldError>,
    retry_after_seconds: Option<u64>,
    denial: Option<Box<Denial>>,
}

/// The denied permission that caused a problem. It is stored in the response's extensions, for the layer that counts
/// and audits denials.
#[derive(Debug, Clone, Copy)]
pub struct Denial {
    /// The reason, for `authorization_denials_total{reason}`.
    pub reason: &'static str,
    /// The table of the requested record, or `routes` if the caller's role is not authorized for the route.
    pub resource: &'static str,
    /// The id of the requested record.
    pub record_id: Option<Uuid>,
}

impl Problem {
    /// Returns a problem of this kind without details.
    pub fn new(kind: &'static Kind) -> Self {
        Self { kind, detail: None, errors: Vec::new(), retry_after_seconds: None, denial: None }
    }

    /// Adds details about this occurrence, which are sent to the caller.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the `Retry-After` header, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        self.kind.status
    }

    /// Returns 400: the request is malformed.
    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(MALFORMED).detail(detail)
    }

    /// Returns 422: these fields are invalid.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(INVALID) }
    }

    /// Returns 404 for an unknown resource.
    pub fn not_found() -> Self {
        Self::new(NOT_FOUND)
    }

    /// Returns 404 for a record that does not exist or belongs to another user. Both cases have the same response. They
    /// also have the same timing, because the service audits both as a denial.
    pub fn not_found_or_not_owned(resource: &'static str, id: Uuid) -> Self {
        Self::not_found().denied(Denial { reason: "not_owner", resource, record_id: Some(id) })
    }

    /// Returns 403: the caller's role does not allow the request.
    pub fn forbidden() -> Self {
        Self::new(FORBIDDEN).denied(Denial { reason: "role", resource: "routes", record_id: None })
    }

    /// Marks the problem as a denied permission.
    #[must_use]
    pub fn denied(mut self, denial: Denial) -> Self {
        self.denial = Some(Box::new(denial));
        self
    }

    /// Returns 409: the current state does not allow the request.
    pub fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(CONFLICT).detail(detail)
    }

    /// Returns 503. The caller may retry the same request after this number of seconds.
    pub fn unavailable(retry_after_seconds: u64) -> Self {
        Self::new(UNAVAILABLE).retry_after(retry_after_seconds)
    }

    /// Returns 500. Logs the cause, and hides it from the caller.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = cause, "request failed");
        Self::new(INTERNAL)
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        if database::is_transient(&error) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a statement failed with a transient database error"
            );
            Self::unavailable(1)
                .detail("The outcome is unknown. Send the same request again with the same Idempotency-Key.")
        } else {
            Self::internal(&error)
        }
    }
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// The kind of problem: a path of this service that documents it.
    #[serde(rename = "type")]
    #[schema(example = "/problems/invalid-request")]
    pub kind: String,
    /// Title, which is the same for every problem of this type.
    #[schema(example = "Invalid request")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 422)]
    pub status: u16,
    /// Details of this occurrence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/v1/me")]
    pub instance: Option<String>,
    /// Correlation id, which finds the cause in the logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Id of the request's trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The invalid fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<FieldError>,
}

/// The media type `application/problem+json`, registered by RFC 9457.
pub const MEDIA_TYPE: &str = "application/problem+json";

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let context = correlation::current();
        let body = ProblemBody {
            kind: format!("/problems/{}", self.kind.slug),
            title: self.kind.title.to_owned(),
            status: self.kind.status.as_u16(),
            detail: self.detail.map(Cow::into_owned),
            instance: context.as_ref().and_then(|context| context.path().map(str::to_owned)),
            correlation_id: context.as_ref().map(|context| context.correlation_id().to_string()),
            trace_id: traces::current_trace_id().map(|id| id.to_string()),
            errors: self.errors,
        };
        let mut response = (self.kind.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.kind.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(denial) = self.denial {
            response.extensions_mut().insert(*denial);
        }
        response
    }
}

/// Serves the pages of the `type` URIs: `/problems` lists every kind, and `/problems/{slug}` explains one kind. `more`
/// are the kinds that the service itself declares.
pub fn routes<S: Clone + Send + Sync + 'static>(more: &[&'static Kind]) -> Router<S> {
    let mut kinds = [KINDS, more].concat();
    kinds.sort_by_key(|kind| kind.status);
    let kinds: Arc<[&Kind]> = kinds.into();
    let listed = Arc::clone(&kinds);
    let document = |kind: &Kind| json!({ "type": format!("/problems/{}", kind.slug), "status": kind.status.as_u16(), "title": kind.title, "about": kind.about.trim() });
    Router::new()
        .route(
            "/problems",
            get(async move || {
                Json(json!({ "data": listed.iter().map(|kind| document(kind)).collect::<Vec<_>>() }))
            }),
        )
        .route(
            "/problems/{slug}",
            get(async move |Path(slug): Path<String>| {
                let kind = kinds.iter().find(|kind| kind.slug == slug).ok_or_else(Problem::not_found)?;
                Ok::<_, Problem>(Json(document(kind)))
            }),
        )
}

/// Returns the response to a panic. The panic hook logs the message, and the caller does not receive it.
pub fn from_panic(_payload: Box<dyn std::any::Any + Send + 'static>) -> Response<Body> {
    Problem::new(INTERNAL).into_response()
}
