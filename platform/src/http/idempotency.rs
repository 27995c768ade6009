//! Idempotency keys (draft-ietf-httpapi-idempotency-key-header): a repeated request takes effect once.
//!
//! The rule: the key is claimed, and the response stored, **in the same transaction as the change**. If an earlier
//! transaction claimed the key, a crash between the two transactions would leave a used key without a change. If a
//! later transaction claimed the key, a concurrent duplicate could make the change again.
//!
//! Handlers check authentication, role and ownership first, so that a caller without current access receives no replay.
//! Each key belongs to one caller, so no caller can replay another caller's response. A used key takes precedence over
//! the validation of the JSON body and over every later check. So a replay is sent even if one of these would now
//! reject the request.
//!
//! A replay has the status and the body of the stored response, byte for byte. Work that calls another service takes
//! two transactions. The first claims the key and creates the resource, and the second stores the outcome and the
//! response ([`complete`]). For a retry between the two, see [`Previous`].
use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use utoipa::{
    IntoParams,
    openapi::{
        Object, Required, Type,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::ObjectBuilder,
    },
};
use uuid::Uuid;

use super::{
    extract::{Validate, decode, parse_json, read_body},
    problem::{IN_PROGRESS, KEY_REUSED, MISSING_IDEMPOTENCY_KEY, Problem},
};
use crate::database::{Database, instrument_query};

/// Retention of a key and its stored response, counted from the completion of the work.
const KEY_RETENTION: Duration = Duration::from_hours(24);

/// The key that a client chose: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The regular expression of the header's value, for the `OpenAPI` document. It has three alternatives: a key
    /// without a leading quote, a key in quotes, and a key with only a leading quote. [`Self::parse`] accepts the same
    /// texts.
    const PATTERN: &str = r#"^([!#-~][!-~]{0,254}|"[!-~]{1,255}"|"([!-~]{0,253}[!#-~])?)$"#;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        // The draft defines the key as a structured-field string, in quotes. Most clients send the key without quotes.
        let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        let visible = bare.bytes().all(|byte| byte.is_ascii_graphic());
        (visible && (1..=255).contains(&bare.len())).then(|| Self(bare.to_owned()))
    }
}

/// Describes the header in the `OpenAPI` document.
impl IntoParams for IdempotencyKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let value: Object =
            ObjectBuilder::new().schema_type(Type::String).pattern(Some(Self::PATTERN)).build();
        let header = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::True)
            .description(Some("1 to 255 visible ASCII characters; the same key again for a retry"))
            .schema(Some(value));
        vec![header.build()]
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get("idempotency-key") else {
            return Err(Problem::new(MISSING_IDEMPOTENCY_KEY));
        };
        value.to_str().ok().and_then(Self::parse).ok_or_else(|| {
            Problem::new(MISSING_IDEMPOTENCY_KEY)
                .detail("Idempotency-Key must be 1 to 255 visible ASCII characters.")
        })
    }
}

/// The SHA-256 of a request's method, path and body, or of a message's bytes. [`previous`] compares the hashes to
/// detect a different request with the same key.
///
/// The hash covers every value of the JSON body, not the types that the body is parsed into. So each field changes the
/// hash, even if this release ignores the field, or parses it differently from the previous release. JSON object keys
/// are sorted, and white space is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(method: &str, path: &str, body: &Value) -> Self {
        let mut digest = Sha256::new();
        digest.update(method);
        digest.update([0]);
        digest.update(path);
        digest.update([0]);
        digest.update(sorted(body).to_string());
        Self(digest.finalize().into())
    }

    /// Returns the fingerprint of a message that has no method or path, such as an event.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(key, _)| *key);
            Value::Object(fields.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// A request that must take effect once: its key, its fingerprint, and its body.
///
/// A JSON body with invalid fields does not reject the request immediately. Handlers look up the key before they return
/// the problem, so that an accepted request is replayed even if the validation rules have changed.
#[derive(Debug)]
pub struct IdempotentRequest<T> {
    /// The client's key.
    pub key: IdempotencyKey,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// The valid body, or the problem that rejects it.
    pub body: Result<T, Problem>,
}

impl<T: DeserializeOwned + Validate, S: Send + Sync> FromRequest<S> for IdempotentRequest<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        let key = IdempotencyKey::from_request_parts(&mut parts, state).await?;
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        let bytes = read_body(Request::from_parts(parts, body), state).await?;
        let value = parse_json(&bytes)?;
        let fingerprint = Fingerprint::of(method.as_str(), &path, &value);
        Ok(Self { key, fingerprint, body: decode(value) })
    }
}

/// The claim of an idempotency key: the first three parameters of the SQL function `claim_idempotency_key`.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The caller's id. For an event, [`claim_event`] uses the name of the sending service instead.
    pub scope: String,
    pub key: String,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
}

impl Claim {
    /// Returns the claim of a user's request.
    pub fn of_user<T>(user_id: Uuid, request: &IdempotentRequest<T>) -> Self {
        Self {
            scope: user_id.to_string(),
            key: request.key.as_str().to_owned(),
            fingerprint: request.fingerprint,
        }
    }
}

/// The result of an earlier request with the same key.
#[derive(Debug)]
pub struct Previous {
    /// The id of the resource that the earlier request created.
    pub resource_id: Uuid,
    /// The stored response. `None` if the outcome is not known yet and the first caller no longer waits for it. Then
    /// the retry receives the current state of the resource.
    pub response: Option<StoredResponse>,
}

/// The reason why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key belongs to a request with another fingerprint.
    #[error("the idempotency key belongs to another request")]
    Reused,
    /// The first request with the key is still in flight.
    #[error("the first request with the idempotency key is in flight")]
    InFlight {
        /// Time after which the caller should retry, in seconds.
        retry_after_seconds: u64,
    },
    /// The statement failed, or the database is unreachable.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Reused => Self::new(KEY_REUSED),
            KeyError::InFlight { retry_after_seconds } => {
                Self::new(IN_PROGRESS).retry_after(retry_after_seconds)
            }
            KeyError::Database(error) => error.into(),
        }
    }
}

/// Returns the result of an earlier request with the same key, or `None` if there is no such request.
///
/// # Errors
/// The key belongs to another request, the first request with the key is still in flight, or the statement failed.
pub async fn previous(database: &Database, claim: &Claim) -> Result<Option<Previous>, KeyError> {
    let statement = sqlx::query!(
        r#"
        select
          fingerprint,
          resource_id,
          response_status,
          response_body,
          ceil(extract(epoch from lease_expires_at - now()))::bigint as lease_seconds
        from idempotency_keys
        where scope = $1 and key = $2
        "#,
        claim.scope,
        claim.key,
    );
    let row = database
        .run("idempotency_keys.select", async |connection| statement.fetch_optional(connection).await)
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.fingerprint != claim.fingerprint.as_bytes() {
        return Err(KeyError::Reused);
    }
    let status =
        row.response_status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let response = status
        .zip(row.response_body)
        .map(|(status, body)| StoredResponse::from_json(status, body).replayed());
    match (row.resource_id, row.lease_seconds) {
        (Some(resource_id), _) if response.is_some() => Ok(Some(Previous { resource_id, response })),
        (_, Some(seconds)) if seconds > 0 => {
            Err(KeyError::InFlight { retry_after_seconds: seconds.unsigned_abs().min(2) })
        }
        (Some(resource_id), _) => Ok(Some(Previous { resource_id, response: None })),
        (None, _) => Err(KeyError::InFlight { retry_after_seconds: 1 }),
    }
}

/// The outcome of an attempt to make a change.
#[derive(Debug)]
pub enum Change {
    /// The change is committed, together with its response. The fields are the id of the created resource and the
    /// response.
    Made(Uuid, StoredResponse),
    /// Nothing was changed, because the request is rejected with this problem, or because the key is already claimed.
    /// For a claimed key, [`run`] replays the stored response instead of this problem.
    Rejected(Problem),
}

/// Runs a change once: makes it with `change`, or replays the stored response of an earlier request with the same
/// key.
///
/// `change` claims the key in the transaction that makes the change, so a first request needs no lookup. The key is
/// looked up after every [`Change::Rejected`] and every invalid body. So a replay is sent even if the body is invalid,
/// or if a check now rejects the request. `location` returns the path of the created resource.
///
/// # Errors
/// The rejection, if no earlier request has a response. 422 if the key belongs to another request. 409 if the first
/// request with the key is still in flight. The error of `change`, or 503 or 500 if the lookup fails.
pub async fn run<T>(
    database: &Database,
    user_id: Uuid,
    request: IdempotentRequest<T>,
    location: fn(Uuid) -> String,
    change: impl AsyncFnOnce(&Claim, T) -> Result<Change, Problem>,
) -> Result<StoredResponse, Problem> {
    let claim = Claim::of_user(user_id, &request);
    let change = match request.body {
        Ok(body) => change(&claim, body).await?,
        Err(invalid) => Change::Rejected(invalid),
    };
    let rejection = match change {
        Change::Made(id, response) => return Ok(response.at(location(id))),
        Change::Rejected(rejection) => rejection,
    };
    let earlier = previous(database, &claim).await?;
    earlier.and_then(|earlier| Some(earlier.response?.at(location(earlier.resource_id)))).ok_or(rejection)
}

/// Claims the id of an event from another service, such as a webhook event, because the sender may send the event
/// repeatedly. Must run in the transaction that processes the event. Returns `false` if the event was already received.
pub async fn claim_event(
    connection: &mut PgConnection,
    scope: &str,
    event_id: &str,
    body: &[u8],
) -> Result<bool, sqlx::Error> {
    let fingerprint = Fingerprint::of_bytes(body);
    let statement = sqlx::query_scalar!(
        r#"select claim_idempotency_key($1, $2, $3, null, null, 204, '') as "claimed!""#,
        scope,
        event_id,
        fingerprint.as_bytes(),
    );
    instrument_query("idempotency_keys.insert", statement.fetch_one(connection)).await
}

/// Stores the response for the key of the request that created `resource_id`, and records `audit_event`. Both changes
/// are one statement, to save a round trip. Must run in the transaction that stores the final outcome in the resource.
pub async fn complete(
    connection: &mut PgConnection,
    resource_id: Uuid,
    response: &StoredResponse,
    audit_event: Value,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        with completed as (
          update idempotency_keys
          set response_status = $2, response_body = $3, completed_at = now(), lease_expires_at = null
          where resource_id = $1 and completed_at is null
        )
        select record_audit_event($4)
        "#,
        resource_id,
        i16::try_from(response.status.as_u16()).unwrap_or_default(),
        response.body,
        audit_event,
    );
    instrument_query("idempotency_keys.update", statement.execute(connection)).await?;
    Ok(())
}

/// Ends the lease of the key of the request that created `resource_id`, because that request ends without a known
/// outcome. From now on, retries receive the current state of the resource.
pub async fn release(database: &Database, resource_id: Uuid) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "update idempotency_keys set lease_expires_at = null where resource_id = $1 and completed_at is null",
        resource_id,
    );
    database.run("idempotency_keys.update", async |connection| statement.execute(connection).await).await?;
    Ok(())
}

/// Deletes one batch of keys whose retention has expired, with their responses, and returns the number of keys. Keys
/// whose work is incomplete are kept.
pub async fn sweep(database: &Database) -> Result<u64, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        delete from idempotency_keys
        where (scope, key) in (
          select scope, key
          from idempotency_keys
          where completed_at < now() - make_interval(secs => $1)
          order by completed_at
          limit 1000
          for update skip locked
        )
        "#,
        KEY_RETENTION.as_secs_f64(),
    );
    Ok(database
        .run("idempotency_keys.delete", async |connection| statement.execute(connection).await)
        .await?
        .rows_affected())
}

/// Extends the retention of keys that expired after `lost_since` by the time since `lost_since`. Returns the number of
/// these keys. `lost_since` is the time after which a restore of the database has lost changes. A client may still
/// retry a request whose key was valid at that time.
///
/// # Errors
/// The statement failed.
pub async fn extend(connection: &mut PgConnection, lost_since: DateTime<Utc>) -> Result<u64, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update idempotency_keys
        set completed_at = completed_at + (now() - $1::timestamptz)
        where
          completed_at >= $1::timestamptz - make_interval(secs => $2)
          and completed_at < now() - make_interval(secs => $2)
        "#,
        lost_since,
        KEY_RETENTION.as_secs_f64(),
    );
    Ok(instrument_query("idempotency_keys.update", statement.execute(connection)).await?.rows_affected())
}

/// A response that can be replayed: its status and its exact bytes.
#[derive(Debug, Clone)]
pub struct StoredResponse {
    status: StatusCode,
    body: String,
    location: Option<String>,
    replayed: bool,
}

impl StoredResponse {
    /// Returns a response whose body is already JSON text.
    pub fn from_json(status: StatusCode, body: String) -> Self {
        Self { status, body, location: None, replayed: false }
    }

    /// Returns a response with a body that is serialized to JSON.
    ///
    /// # Errors
    /// The body cannot be serialized.
    pub fn new(status: StatusCode, body: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self::from_json(status, serde_json::to_string(body)?))
    }

    /// Adds the `Location` header.
    #[must_use]
    pub fn at(mut self, location: String) -> Self {
        self.location = Some(location);
        self
    }

    /// Marks the response as a replay.
    #[must_use]
    pub fn replayed(mut self) -> Self {
        self.replayed = true;
        self
    }
}

impl IntoResponse for StoredResponse {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (self.status, json, self.body).into_response();
        if let Some(location) = self.location.and_then(|location| HeaderValue::from_str(&location).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        if self.replayed {
            response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, string::string_regex};

    use super::*;

    proptest! {
        #[test]
        fn a_key_of_the_documented_form_is_accepted(
            key in string_regex(IdempotencyKey::PATTERN.trim_start_matches('^').trim_end_matches('$')).unwrap(),
        ) {
            prop_assert!(IdempotencyKey::parse(&key).is_some(), "{:?}", key);
        }
    }

    #[test]
    fn enclosing_quotes_are_not_part_of_a_key() {
        for (text, key) in [("a", "a"), ("\"a\"", "a"), ("\"", "\""), ("\"a", "\"a"), ("a\"", "a\"")] {
            assert_eq!(IdempotencyKey::parse(text).unwrap().as_str(), key);
        }
        for text in ["", "\"\"", "a b", "\u{e4}"] {
            assert_eq!(IdempotencyKey::parse(text), None, "{text:?}");
        }
    }

    fn fingerprint(method: &str, path: &str, body: &str) -> Fingerprint {
        Fingerprint::of(method, path, &parse_json(body.as_bytes()).unwrap())
    }

    #[test]
    fn a_fingerprint_ignores_the_formatting_of_the_body() {
        let original = r#"{"items":[{"id":"01900000-0000-7000-8000-000000000001","quantity":2}]}"#;
        let reformatted =
            r#"{ "items": [ { "quantity": 2, "id": "01900000-0000-7000-8000-000000000001" } ] }"#;
        let expected = fingerprint("POST", "/v1/things", original);
        assert_eq!(fingerprint("POST", "/v1/things", reformatted), expected);
        assert_ne!(fingerprint("POST", "/v1/things", &original.replace('2', "3")), expected);
        assert_ne!(fingerprint("POST", "/v1/thing", original), expected);
        assert_ne!(fingerprint("PUT", "/v1/things", original), expected);
        assert_ne!(fingerprint("POST", "/v1/things", &original.replace("quantity", "number")), expected);
    }
}
