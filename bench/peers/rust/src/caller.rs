//! The caller of a request, identified by a bearer token. The token is looked up by its SHA-256.
use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{header, request::Parts},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tower_http::request_id::RequestId;
use uuid::Uuid;

use crate::{
    audit::{self, Event},
    problem::Problem,
};

/// The origin of a request, for the audit log.
pub struct Origin {
    pub address: IpAddr,
    pub correlation_id: String,
}

pub struct Caller {
    pub user_id: Uuid,
    pub role: String,
    pub origin: Origin,
}

impl FromRequestParts<PgPool> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, pool: &PgPool) -> Result<Self, Problem> {
        let ConnectInfo(peer) = ConnectInfo::<SocketAddr>::from_request_parts(parts, pool).await?;
        let correlation_id =
            parts.extensions.get::<RequestId>().and_then(|id| id.header_value().to_str().ok());
        let origin =
            Origin { address: peer.ip(), correlation_id: correlation_id.unwrap_or_default().to_owned() };
        let token = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.split_once(' '));
        let Some((_, token)) = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(Problem::unauthenticated());
        };
        match find_session(pool, token.trim()).await? {
            Some((user_id, role)) => Ok(Self { user_id, role, origin }),
            None => {
                let event = Event {
                    event_type: "authentication",
                    resource: "sessions",
                    action: "authenticate",
                    result: "failure",
                    user: None,
                    metadata: json!({ "reason": "bad_token" }),
                };
                audit::record(pool, &origin, event).await?;
                Err(Problem::unauthenticated())
            }
        }
    }
}

#[tracing::instrument(name = "SELECT sessions", skip_all)]
async fn find_session(pool: &PgPool, token: &str) -> Result<Option<(Uuid, String)>, sqlx::Error> {
    let hash = Sha256::digest(token);
    sqlx::query_as(
        r#"
        select sessions.user_id, users.role
        from sessions
        join users on users.id = sessions.user_id
        where sessions.token_hash = $1 and sessions.expires_at > now()
        "#,
    )
    .bind(hash.as_slice())
    .fetch_optional(pool)
    .await
}

impl Caller {
    pub fn is_customer(&self) -> bool {
        self.role == "customer"
    }

    /// Returns an event of this caller.
    pub fn event(
        &self,
        event_type: &'static str,
        resource: &'static str,
        action: &'static str,
        result: &'static str,
        ids: &[Uuid],
    ) -> Event<'_> {
        Event {
            event_type,
            resource,
            action,
            result,
            user: Some((self.user_id, &self.role)),
            metadata: json!({ "record_ids": ids, "record_count": ids.len() }),
        }
    }
}
