//! Idempotency keys (draft-ietf-httpapi-idempotency-key-header): the same request twice has one effect.
//!
//! The rule: the key is claimed, and the answer stored, **in the same transaction as the change**. A key that
//! was claimed beforehand may belong to a change that never came; one claimed afterwards lets a twin through.
//!
//! The order of checks in a handler is always the same, so that a replay is answered before anything can refuse
//! it, and nobody replays another's: who calls, role and ownership, **the key**, validation, the change.
//!
//! A replay is given the first answer, byte for byte. Where there is none yet (work that another service has
//! not answered), see [`Previous`].
use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    extract::{Validate, decode, parse_json, read_body},
    problem::{KEY_REUSED, MISSING_IDEMPOTENCY_KEY, Problem, UNDER_WAY},
};
use crate::database::{Database, observe};

/// How long an answer is kept, counted from the completion of the work.
const KEPT: Duration = Duration::from_hours(24);

/// The key that a client chose: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        // The draft writes the key as a structured-field string, in quotes; most clients send it bare.
        let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        let visible = bare.bytes().all(|byte| byte.is_ascii_graphic());
        (visible && (1..=255).contains(&bare.len())).then(|| Self(bare.to_owned()))
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

/// What a request was, so that another one under the same key is told apart: SHA-256 of method, path and body.
///
/// Of the body as it came, not of the types that it is read into: a field that this release ignores, or reads
/// differently than the last one did, counts too. The keys of JSON objects are sorted, and white space does not count.
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

    /// Of a message whose bytes are all there is to it.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// As it is stored.
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

/// A request that must have its effect once: its key, its fingerprint, and its body.
///
/// The body is read and not yet judged: [`Self::body`] is looked at after the key, so that what was once
/// accepted is replayed whatever the rules are now.
#[derive(Debug)]
pub struct Idempotent<T> {
    /// The client's key.
    pub key: IdempotencyKey,
    /// What the request is.
    pub fingerprint: Fingerprint,
    /// What it says, or why that is not valid.
    pub body: Result<T, Problem>,
}

impl<T: DeserializeOwned + Validate, S: Send + Sync> FromRequest<S> for Idempotent<T> {
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

/// The claim of a key, as a statement needs it for `claim_idempotency_key`.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The caller's id, or the name of a service that calls by a signature.
    pub scope: String,
    /// The key.
    pub key: String,
    /// What the request is.
    pub fingerprint: Fingerprint,
}

impl Claim {
    /// A caller's claim.
    pub fn of_user<T>(user_id: Uuid, request: &Idempotent<T>) -> Self {
        Self {
            scope: user_id.to_string(),
            key: request.key.as_str().to_owned(),
            fingerprint: request.fingerprint,
        }
    }
}

/// What an earlier request under the same key came to.
#[derive(Debug)]
pub struct Previous {
    /// What it made.
    pub resource_id: Uuid,
    /// What it was answered. `None` if what it made is not settled yet and its caller is not being answered any
    /// more: then the answer is the present state.
    pub answer: Option<Replayable>,
}

/// Looks for an earlier request under the same key.
///
/// # Errors
/// 422 if the key belongs to another request, 409 while the first caller is still being answered.
pub async fn previous(connection: &mut PgConnection, claim: &Claim) -> Result<Option<Previous>, Problem> {
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
    let Some(row) = observe("idempotency_keys.select", statement.fetch_optional(connection)).await? else {
        return Ok(None);
    };
    if row.fingerprint != claim.fingerprint.as_bytes() {
        return Err(Problem::new(KEY_REUSED));
    }
    let status =
        row.response_status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let answer =
        status.zip(row.response_body).map(|(status, body)| Replayable::from_json(status, body).replayed());
    match (row.resource_id, row.lease_seconds) {
        (Some(resource_id), _) if answer.is_some() => Ok(Some(Previous { resource_id, answer })),
        (_, Some(seconds)) if seconds > 0 => {
            Err(Problem::new(UNDER_WAY).retry_after(seconds.unsigned_abs().min(2)))
        }
        (Some(resource_id), _) => Ok(Some(Previous { resource_id, answer: None })),
        (None, _) => Err(Problem::new(UNDER_WAY).retry_after(1)),
    }
}

/// The outcome of an attempt to make a change.
#[derive(Debug)]
pub enum Change {
    /// The change is committed, with its response: the id of what was created, and the response.
    Made(Uuid, Replayable),
    /// Nothing was changed: the key is taken, or for this reason if it is not.
    Refused(Problem),
}

/// Runs a change once: makes it with `change`, or replays the stored response of an earlier request with the same key.
///
/// `change` claims the key in the transaction that makes the change. So the key is looked up only after a refusal, and
/// a replay is still answered before anything refuses it, an invalid body included. `location` returns the path of what
/// was created.
///
/// # Errors
/// The refusal, where no earlier request has a response; 422 if the key belongs to another request.
pub async fn run<T>(
    database: &Database,
    user_id: Uuid,
    request: Idempotent<T>,
    location: fn(Uuid) -> String,
    change: impl AsyncFnOnce(&Claim, T) -> Result<Change, Problem>,
) -> Result<Replayable, Problem> {
    let claim = Claim::of_user(user_id, &request);
    let change = match request.body {
        Ok(body) => change(&claim, body).await?,
        Err(invalid) => Change::Refused(invalid),
    };
    let refusal = match change {
        Change::Made(id, response) => return Ok(response.at(location(id))),
        Change::Refused(refusal) => refusal,
    };
    let mut connection = database.acquire().await?;
    let earlier = previous(&mut connection, &claim).await?;
    connection.release();
    earlier.and_then(|earlier| Some(earlier.answer?.at(location(earlier.resource_id)))).ok_or(refusal)
}

/// Claims the id of an event that somebody may send more than once, within the transaction of its effect; false if
/// it was received before.
///
/// # Errors
/// The statement's.
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
    observe("idempotency_keys.insert", statement.fetch_one(connection)).await
}

/// Stores the answer for the key that made `resource_id`, within the transaction that settles it.
///
/// # Errors
/// The statement's.
pub async fn complete(
    connection: &mut PgConnection,
    resource_id: Uuid,
    answer: &Replayable,
) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        update idempotency_keys
        set response_status = $2, response_body = $3, completed_at = now(), lease_expires_at = null
        where resource_id = $1 and completed_at is null
        "#,
        resource_id,
        i16::try_from(answer.status.as_u16()).unwrap_or_default(),
        answer.body,
    );
    observe("idempotency_keys.update", statement.execute(connection)).await?;
    Ok(())
}

/// Says that the first caller has been answered without a settled outcome, so that a repetition is told the
/// present state from now on.
///
/// # Errors
/// The statement's.
pub async fn release(connection: &mut PgConnection, resource_id: Uuid) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        "update idempotency_keys set lease_expires_at = null where resource_id = $1 and completed_at is null",
        resource_id,
    );
    observe("idempotency_keys.update", statement.execute(connection)).await?;
    Ok(())
}

/// Deletes answers whose time is over, a batch at a time; says how many. A key whose work is not complete stays.
///
/// # Errors
/// The statement's.
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
        KEPT.as_secs_f64(),
    );
    let mut connection = database.acquire().await?;
    Ok(observe("idempotency_keys.delete", statement.execute(&mut *connection)).await?.rows_affected())
}

/// An answer that can be given again: its status and its very bytes.
#[derive(Debug, Clone)]
pub struct Replayable {
    status: StatusCode,
    body: String,
    location: Option<String>,
    replayed: bool,
}

impl Replayable {
    /// An answer with a JSON body that is text already.
    pub fn from_json(status: StatusCode, body: String) -> Self {
        Self { status, body, location: None, replayed: false }
    }

    /// An answer with a body that serialises to JSON.
    ///
    /// # Errors
    /// 500 where it does not serialise.
    pub fn new(status: StatusCode, body: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_string(body).map_err(|error| Problem::internal(&error))?;
        Ok(Self::from_json(status, body))
    }

    /// Says where the resource is.
    #[must_use]
    pub fn at(mut self, location: String) -> Self {
        self.location = Some(location);
        self
    }

    /// Says that it is not the first answer.
    #[must_use]
    pub fn replayed(mut self) -> Self {
        self.replayed = true;
        self
    }
}

impl IntoResponse for Replayable {
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
    use super::*;

    fn fingerprint(method: &str, path: &str, body: &str) -> Fingerprint {
        Fingerprint::of(method, path, &parse_json(body.as_bytes()).unwrap())
    }

    #[test]
    fn a_fingerprint_is_of_what_is_asked_and_not_of_how_it_is_written() {
        let original = r#"{"items":[{"id":"01900000-0000-7000-8000-000000000001","quantity":2}]}"#;
        let otherwise = r#"{ "items": [ { "quantity": 2, "id": "01900000-0000-7000-8000-000000000001" } ] }"#;
        let asked = fingerprint("POST", "/v1/things", original);
        assert_eq!(fingerprint("POST", "/v1/things", otherwise), asked);
        assert_ne!(fingerprint("POST", "/v1/things", &original.replace('2', "3")), asked);
        assert_ne!(fingerprint("POST", "/v1/thing", original), asked);
        assert_ne!(fingerprint("PUT", "/v1/things", original), asked);
        assert_ne!(fingerprint("POST", "/v1/things", &original.replace("quantity", "number")), asked);
    }
}
