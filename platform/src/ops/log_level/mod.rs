//! Changes of the log filter while the process runs.
//!
//! Every caller that reaches the operations listener may read the filter. [`LogLevelAuth`] decides which callers may
//! change it.
//!
//! A change may be temporary, because a forgotten debug level is expensive. At the end of a temporary change, the
//! default filter is restored.
mod authorization;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, Uri, header},
    routing::get,
};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_path_to_error::Segment;
use tokio::{task::AbortHandle, time::sleep};

use self::authorization::{LogLevelAuth, Rejection};
use crate::{
    http::problem::{self, FieldError, Problem},
    telemetry::logs::LogFilter,
    workers::spawn_in_current_context,
};

/// Maximum size of the request body in bytes. No useful filter is longer.
const MAX_BODY_BYTES: usize = 4 * 1024;

/// Maximum duration of a temporary change, in seconds. A longer change belongs in the configuration.
const MAX_SECONDS: u64 = 7 * 24 * 60 * 60;

/// The log level of the process, and the rule that decides which callers may change it. Cheap to clone.
#[derive(Clone)]
pub struct LogLevel(Arc<Inner>);

struct Inner {
    filter: LogFilter,
    authorization: LogLevelAuth,
    temporary: Mutex<Option<TemporaryChange>>,
    on_event: Box<dyn Fn(LogLevelEvent) + Send + Sync>,
}

/// A change of the log level, or a rejected attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogLevelEvent {
    /// The log level was changed.
    Changed(LogLevelChange),
    /// An unauthorized change was rejected.
    Rejected {
        /// `foreign_host`, `not_loopback` or `bad_token`.
        reason: &'static str,
    },
}

/// The replacement of one filter by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevelChange {
    /// `change` for a caller's change, `restore` for the end of a temporary change.
    pub action: &'static str,
    /// The filter before the change.
    pub before: String,
    /// The filter after the change.
    pub after: String,
    /// Duration of a temporary change, in seconds.
    pub ttl_seconds: Option<u64>,
}

/// The temporary change in force, and the task that ends it.
struct TemporaryChange {
    expires_at: DateTime<Utc>,
    end: AbortHandle,
}

/// The current log level, as returned to callers.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Level {
    filter: String,
    default: String,
    expires_at: Option<DateTime<Utc>>,
}

/// The requested change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    filter: String,
    ttl_seconds: Option<u64>,
}

impl LogLevel {
    /// Creates the log level that the listener at `address` serves. Callers that are not on loopback must send `token`
    /// to change the level. Without a token, only callers on loopback may change it.
    ///
    /// `on_event` is called with each change and each unauthorized attempt, in the context of the request that caused
    /// it, and must not block.
    pub fn new(
        filter: LogFilter,
        address: SocketAddr,
        token: Option<SecretString>,
        on_event: impl Fn(LogLevelEvent) + Send + Sync + 'static,
    ) -> Self {
        let temporary = Mutex::new(None);
        let authorization = LogLevelAuth { address, token };
        Self(Arc::new(Inner { filter, authorization, temporary, on_event: Box::new(on_event) }))
    }

    fn level(&self) -> Level {
        let temporary = self.0.temporary();
        Level {
            filter: self.0.filter.current(),
            default: self.0.filter.default_filter().to_owned(),
            expires_at: temporary.as_ref().map(|temporary| temporary.expires_at),
        }
    }

    fn change(&self, change: &Change) -> Result<Level, Problem> {
        let ttl = change.ttl_seconds.map(ttl).transpose()?;
        {
            let mut temporary = self.0.temporary();
            let before = self.0.filter.current();
            self.0.filter.set(&change.filter).map_err(|error| invalid("/filter", error))?;
            if let Some(replaced) = temporary.take() {
                replaced.end.abort();
            }
            *temporary = ttl.map(|ttl| self.temporary(ttl));
            tracing::warn!(
                before,
                after = change.filter,
                ttl_seconds = change.ttl_seconds,
                "changed the log filter"
            );
            (self.0.on_event)(LogLevelEvent::Changed(LogLevelChange {
                action: "change",
                before,
                after: change.filter.clone(),
                ttl_seconds: change.ttl_seconds,
            }));
        }
        Ok(self.level())
    }

    fn temporary(&self, ttl: Duration) -> TemporaryChange {
        let level = self.clone();
        let end = sleep(ttl);
        let restoring = spawn_in_current_context(async move {
            end.await;
            level.restore();
        });
        let expires_at = (Utc::now() + TimeDelta::from_std(ttl).unwrap_or_default()).trunc_subsecs(6);
        TemporaryChange { expires_at, end: restoring.abort_handle() }
    }

    fn restore(&self) {
        let mut temporary = self.0.temporary();
        // A newer change may have been made between the end of the sleep and the lock. That change aborted this task,
        // but the task continues until its next await, and must not replace the newer filter.
        if temporary.as_ref().is_none_or(|temporary| Some(temporary.end.id()) != tokio::task::try_id()) {
            return;
        }
        *temporary = None;
        let default = self.0.filter.default_filter();
        let before = self.0.filter.current();
        match self.0.filter.set(default) {
            Ok(()) => {
                tracing::warn!(before, after = default, "restored the default log filter");
                let after = default.to_owned();
                let restored = LogLevelChange { action: "restore", before, after, ttl_seconds: None };
                (self.0.on_event)(LogLevelEvent::Changed(restored));
            }
            Err(error) => tracing::error!(error, "failed to restore the default log filter"),
        }
    }

    fn reject(&self, peer: SocketAddr, rejection: Rejection) -> Problem {
        let Rejection { reason, problem } = rejection;
        tracing::warn!(%peer, reason, "rejected an unauthorized change of the log filter");
        (self.0.on_event)(LogLevelEvent::Rejected { reason });
        problem
    }
}

impl Inner {
    fn temporary(&self) -> MutexGuard<'_, Option<TemporaryChange>> {
        self.temporary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ttl(seconds: u64) -> Result<Duration, Problem> {
    if (1..=MAX_SECONDS).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(invalid("/ttl_seconds", format!("must be between 1 and {MAX_SECONDS}")))
    }
}

fn invalid(pointer: &str, message: impl Into<String>) -> Problem {
    Problem::invalid(vec![FieldError::new(pointer, message)])
}

pub(super) fn routes(level: LogLevel) -> Router {
    Router::new()
        .route("/log-level", get(show).put(change))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(level)
}

async fn show(State(level): State<LogLevel>) -> Json<Level> {
    Json(level.level())
}

async fn change(
    State(level): State<LogLevel>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Level>, Problem> {
    level.0.authorization.admit(peer, &uri, &headers).map_err(|rejection| level.reject(peer, rejection))?;
    level.change(&parse(&headers, body)?).map(Json)
}

fn parse(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Change, Problem> {
    let media_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    // A web page of another origin can send `text/plain` without a CORS preflight, but not `application/json`.
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(problem::UNSUPPORTED_MEDIA_TYPE));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(problem::BODY_TOO_LARGE),
        _ => Problem::malformed("Failed to read the whole body."),
    })?;
    let mut reader = serde_json::Deserializer::from_slice(&body);
    let change = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let pointer: String = error.path().iter().filter_map(pointer_segment).collect();
        let cause = error.into_inner();
        if cause.is_data() {
            invalid(&pointer, cause.to_string())
        } else {
            Problem::malformed("The body is not JSON.")
        }
    })?;
    reader.end().map_err(|_| Problem::malformed("The body is not JSON."))?;
    Ok(change)
}

/// Returns a path segment for a JSON Pointer, escaped as RFC 6901 requires. Only keys occur, because a change has no
/// arrays.
fn pointer_segment(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
