//! Changing what is logged while the process runs.
//!
//! Reading is open to all who reach the listener; who may change it, [`Admission`] says.
//!
//! A change may have an end, after which the default returns: a debug level that was forgotten costs money.
mod admission;

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

use self::admission::{Admission, Refusal};
use crate::{
    http::problem::{self, FieldError, Problem},
    telemetry::logs::LogFilter,
    workers::spawn_in_present_context,
};

/// A filter that is longer names more targets than anybody reads.
const BODY_LIMIT: usize = 4 * 1024;

/// A level that is to stay longer belongs into the configuration.
const LONGEST_SECONDS: u64 = 7 * 24 * 60 * 60;

/// The log level of the process, and who may change it. Cheap to clone.
#[derive(Clone)]
pub struct LogLevel(Arc<Inner>);

struct Inner {
    filter: LogFilter,
    admission: Admission,
    temporary: Mutex<Option<Temporary>>,
    tell: Box<dyn Fn(Happened) + Send + Sync>,
}

/// What happened to the log level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// It was changed.
    Changed(Changed),
    /// Somebody wanted to change it who may not.
    Refused {
        /// `foreign_host`, `not_loopback` or `bad_token`.
        reason: &'static str,
    },
}

/// One filter took the place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// `change` if somebody wanted it, `restore` if a change has ended.
    pub action: &'static str,
    /// The filter until now.
    pub before: String,
    /// The filter from now on.
    pub after: String,
    /// After how many seconds it ends, if it does.
    pub ttl_seconds: Option<u64>,
}

/// A change that has an end.
struct Temporary {
    expires_at: DateTime<Utc>,
    end: AbortHandle,
}

/// What is logged.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Level {
    filter: String,
    default: String,
    expires_at: Option<DateTime<Utc>>,
}

/// What is to be logged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    filter: String,
    ttl_seconds: Option<u64>,
}

impl LogLevel {
    /// The log level behind the listener at `address`; `token` opens it to callers who are not on loopback.
    /// `tell` is called with each change and each refusal, in the context of whoever is behind it, and must not wait.
    pub fn new(
        filter: LogFilter,
        address: SocketAddr,
        token: Option<SecretString>,
        tell: impl Fn(Happened) + Send + Sync + 'static,
    ) -> Self {
        let temporary = Mutex::new(None);
        let admission = Admission { address, token };
        Self(Arc::new(Inner { filter, admission, temporary, tell: Box::new(tell) }))
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
            self.0.filter.set(&change.filter).map_err(|why| invalid("/filter", why))?;
            if let Some(replaced) = temporary.take() {
                replaced.end.abort();
            }
            *temporary = ttl.map(|ttl| self.temporary(ttl));
            tracing::warn!(
                before,
                after = change.filter,
                ttl_seconds = change.ttl_seconds,
                "log filter was changed"
            );
            (self.0.tell)(Happened::Changed(Changed {
                action: "change",
                before,
                after: change.filter.clone(),
                ttl_seconds: change.ttl_seconds,
            }));
        }
        Ok(self.level())
    }

    fn temporary(&self, ttl: Duration) -> Temporary {
        let level = self.clone();
        let end = sleep(ttl);
        let restoring = spawn_in_present_context(async move {
            end.await;
            level.restore();
        });
        let expires_at = (Utc::now() + TimeDelta::from_std(ttl).unwrap_or_default()).trunc_subsecs(6);
        Temporary { expires_at, end: restoring.abort_handle() }
    }

    fn restore(&self) {
        let mut temporary = self.0.temporary();
        // A newer change may have come between the end of the sleep and the lock: then this task is aborted,
        // but it goes on until it waits next.
        if temporary.as_ref().is_none_or(|temporary| Some(temporary.end.id()) != tokio::task::try_id()) {
            return;
        }
        *temporary = None;
        let default = self.0.filter.default_filter();
        let before = self.0.filter.current();
        match self.0.filter.set(default) {
            Ok(()) => {
                tracing::warn!(before, after = default, "log filter is the default again");
                let after = default.to_owned();
                let restored = Changed { action: "restore", before, after, ttl_seconds: None };
                (self.0.tell)(Happened::Changed(restored));
            }
            Err(why) => tracing::error!(why, "log filter cannot be set to the default again"),
        }
    }

    fn refuse(&self, peer: SocketAddr, refusal: Refusal) -> Problem {
        let Refusal { reason, problem } = refusal;
        tracing::warn!(%peer, reason, "log filter was to be changed by somebody who may not");
        (self.0.tell)(Happened::Refused { reason });
        problem
    }
}

impl Inner {
    fn temporary(&self) -> MutexGuard<'_, Option<Temporary>> {
        self.temporary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ttl(seconds: u64) -> Result<Duration, Problem> {
    if (1..=LONGEST_SECONDS).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(invalid("/ttl_seconds", format!("must be between 1 and {LONGEST_SECONDS}")))
    }
}

fn invalid(pointer: &str, message: impl Into<String>) -> Problem {
    Problem::invalid(vec![FieldError::new(pointer, message)])
}

pub(super) fn routes(level: LogLevel) -> Router {
    Router::new()
        .route("/log-level", get(show).put(change))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
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
    level.0.admission.admit(peer, &uri, &headers).map_err(|refusal| level.refuse(peer, refusal))?;
    level.change(&parse(&headers, body)?).map(Json)
}

fn parse(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Change, Problem> {
    let media_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    // A page of another origin can send any text without asking, but not this media type.
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(problem::UNSUPPORTED_MEDIA_TYPE));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(problem::BODY_TOO_LARGE),
        _ => Problem::malformed("The body did not arrive whole."),
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

/// As RFC 6901 writes it. A change has no arrays.
fn pointer_segment(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
