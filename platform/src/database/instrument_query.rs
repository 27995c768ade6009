//! Named statements: each has a span, a duration in a histogram, a timeout of its response and, if it is slow, a log
//! line. [`notify_of_failures`] sets a function that is called with the error of each failed statement.
//!
//! Statements cancelled by a deadline or a disconnect are recorded, too, because they are often the slow ones.
use std::{
    borrow::Cow,
    fmt::{self, Display, Formatter},
    sync::OnceLock,
    time::{Duration, Instant},
};

use tracing::{Instrument, Span, field};

use super::{DatabaseUrl, connection::await_response, is_outdated, metrics::QUERY_DURATION, pool, sqlstate};

/// Duration above which a statement is logged as slow.
const SLOW_THRESHOLD: Duration = Duration::from_millis(500);

/// The server of the process's pool.
static SERVER: OnceLock<Server> = OnceLock::new();

struct Server {
    /// `None` if the URL names several hosts.
    address: Option<(String, u16)>,
    database: Option<String>,
}

/// Sets the server and the database whose names are in every span. Later calls are ignored.
pub(super) fn set_server(url: &DatabaseUrl) {
    let database = url.database().map(str::to_owned);
    let address = url.server().map(|(host, port)| (host.to_owned(), port));
    let server = Server { address, database };
    let _already_set = SERVER.set(server);
}

/// Runs a statement under a name of the form `table.verb`, on the caller's connection, such as the connection of a
/// transaction. After an error that affects every open connection, the pool does not reuse these connections.
///
/// # Errors
/// The statement failed, or the database did not respond.
pub async fn instrument_query<T>(
    name: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let running = RunningQuery {
        name,
        span: open_span(name),
        started: Instant::now(),
        error: Some("cancelled".into()),
    };
    let result = await_response(statement).instrument(running.span.clone()).await;
    running.end(&result);
    if result.as_ref().is_err_and(is_outdated) {
        pool::retire_open_connections();
    }
    result.inspect_err(|error| {
        if let Some(on_failure) = ON_FAILURE.get() {
            on_failure(error);
        }
    })
}

/// The function that is called with the error of every failed statement.
static ON_FAILURE: OnceLock<fn(&sqlx::Error)> = OnceLock::new();

/// Calls `on_failure` with the error of every statement that fails from now on. The audit log needs the error, because
/// a change and its audit event are one statement, and only the error shows which of the two failed. Later calls are
/// ignored.
pub fn notify_of_failures(on_failure: fn(&sqlx::Error)) {
    let _already_set = ON_FAILURE.set(on_failure);
}

/// Opens a span with the attributes of the stable OpenTelemetry semantic conventions for databases. Fields that are
/// declared empty are recorded when the statement ends.
fn open_span(name: &'static str) -> Span {
    let (table, verb) = name.split_once('.').unwrap_or((name, ""));
    let summary = Summary { table, verb };
    let server = SERVER.get();
    let address = server.and_then(|server| server.address.as_ref());
    tracing::info_span!(
        "query",
        otel.name = %summary,
        otel.kind = "client",
        otel.status_code = field::Empty,
        db.system.name = "postgresql",
        db.namespace = server.and_then(|server| server.database.as_deref()),
        db.collection.name = table,
        db.query.summary = %summary,
        db.response.status_code = field::Empty,
        server.address = address.map(|(host, _)| host.as_str()),
        // Signed, because the OpenTelemetry bridge exports unsigned numbers as strings.
        server.port = address.map(|(_, port)| i64::from(*port)),
        error.r#type = field::Empty,
    )
}

/// The span's summary, such as `INSERT users`.
#[derive(Clone, Copy)]
struct Summary {
    table: &'static str,
    verb: &'static str,
}

impl Display for Summary {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for letter in self.verb.chars() {
            write!(formatter, "{}", if letter == '_' { ' ' } else { letter.to_ascii_uppercase() })?;
        }
        write!(formatter, " {}", self.table)
    }
}

/// A statement in flight. A statement that is dropped before it has a result is recorded as cancelled.
struct RunningQuery {
    name: &'static str,
    span: Span,
    started: Instant,
    /// The `error.type` of the span: `cancelled` until the statement has a result, and `None` after success.
    error: Option<Cow<'static, str>>,
}

impl RunningQuery {
    fn end<T>(mut self, result: &Result<T, sqlx::Error>) {
        self.error = result.as_ref().err().map(|error| {
            let state = sqlstate(error);
            if let Some(state) = &state {
                self.span.record("db.response.status_code", &**state);
            }
            state.map_or(Cow::Borrowed("connection"), |state| Cow::Owned(state.into_owned()))
        });
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.span.in_scope(|| QUERY_DURATION.observe(&[self.name], elapsed));
        if elapsed >= SLOW_THRESHOLD {
            tracing::warn!(
                query = self.name,
                duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                error = self.error.as_deref(),
                "slow statement"
            );
        }
        if let Some(error) = &self.error {
            self.span.record("otel.status_code", "error");
            self.span.record("error.type", &**error);
        }
    }
}
