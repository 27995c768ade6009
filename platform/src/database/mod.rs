//! The database: its pool, transactions, timeouts, checks and monitor.
//!
//! - Run every statement with [`Database::run`], or within a transaction with [`instrument_query()`]. Both give the
//!   statement a name in traces, metrics and the log of slow statements.
//! - A transaction begins only with [`Database::begin`]. If the transaction is dropped before its commit, its
//!   connection is closed, so that no other request runs in the open transaction.
//! - Prefer one statement to a transaction. One statement takes one round trip, and a cancelled request cannot leave a
//!   transaction open.
mod checks;
mod connection;
mod instrument_query;
mod metrics;
mod monitor;
mod pool;
mod requirements;
mod schema;
mod settings;
mod url;

use std::{
    error::Error as _,
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use sqlx::{PgConnection, migrate::Migrator, postgres::PgDatabaseError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use self::requirements::unmet as unmet_requirements;
use self::{
    metrics::{ACQUIRE_DURATION, ACQUIRE_TIMEOUTS},
    pool::PooledConnection,
};

pub use self::{
    checks::{Durability, Privileges, check_session_settings, privileges},
    connection::{Connection, Transaction},
    instrument_query::{instrument_query, notify_of_failures},
    monitor::Monitor,
    schema::{SchemaState, newest_version},
    settings::Settings,
    url::{DatabaseUrl, Unavailable},
};

/// Time for which a connection attempt continues after the request that started it has timed out.
const OPENING_TIMEOUT_MARGIN: Duration = Duration::from_secs(5);

/// The database, with its connection pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    pool: pool::Pool,
    /// One permit per connection that may be in use.
    slots: Arc<Semaphore>,
    acquire_timeout: Duration,
    statement_timeout: Duration,
}

/// The error when the database is unavailable at start.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection to a writable primary could be opened in time.
    #[error("failed to connect to the database at {address} within {waited:?}: {source}")]
    Unreachable {
        /// Host and port, without credentials.
        address: String,
        /// The wait, which `DATABASE_STARTUP_WAIT_SECONDS` sets.
        waited: Duration,
        /// The error of the last attempt.
        source: sqlx::Error,
    },
    /// The database responded, and rejected the connection.
    #[error("the database at {address} rejected the connection: {source}")]
    Rejected {
        /// Host and port, without credentials.
        address: String,
        /// The database's error.
        source: sqlx::Error,
    },
}

impl Database {
    /// Connects, and waits until the database is up, because a service and its database often start together.
    ///
    /// # Errors
    /// The database stays unreachable for `DATABASE_STARTUP_WAIT_SECONDS`. A rejected connection fails immediately.
    pub async fn connect(settings: &Settings, application_name: &str) -> Result<Self, ConnectError> {
        wait_until_reachable(&settings.url, settings.startup_wait).await?;
        let max_connections = settings.max_connections.get();
        let max_connections = usize::try_from(max_connections).unwrap_or(Semaphore::MAX_PERMITS);
        let pool = pool::new(settings.url.clone().application_name(application_name), max_connections);
        let slots = Arc::new(Semaphore::new(max_connections));
        let database = Self {
            pool,
            slots,
            acquire_timeout: settings.acquire_timeout,
            statement_timeout: settings.statement_timeout,
        };
        instrument_query::set_server(&settings.url);
        connection::set_statement_timeout(settings.statement_timeout);
        metrics::register_pool(database.clone());
        Ok(database)
    }

    /// Connects for a command. The timeout of a command's wait for a free connection is at least
    /// `DATABASE_STARTUP_WAIT_SECONDS`, because no requests queue behind a command.
    ///
    /// # Errors
    /// See [`Self::connect`].
    pub async fn connect_for_command(settings: &Settings, command: &str) -> Result<Self, ConnectError> {
        let database = Self::connect(settings, command).await?;
        let acquire_timeout = database.acquire_timeout.max(settings.startup_wait);
        Ok(Self { acquire_timeout, ..database })
    }

    /// Acquires a connection, for several statements that need the same connection. Use [`Self::run`] for one
    /// statement, and [`Self::begin`] for a transaction.
    ///
    /// # Errors
    /// No connection is free within `DATABASE_ACQUIRE_TIMEOUT_MS`, which also happens if the database is unreachable.
    /// The error is immediate if a retry of the connection attempt cannot help, or if the pool is closed.
    pub async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        let timer = ACQUIRE_DURATION.start_timer();
        let (pool, slots) = (self.pool.clone(), Arc::clone(&self.slots));
        // The connection is first in the tuple, so that it is dropped before its slot if the caller has timed out.
        let mut connection = Box::pin(async move {
            let slot = slots.acquire_owned().await.map_err(|_closed| sqlx::Error::PoolClosed)?;
            Ok::<_, sqlx::Error>((pool::get(pool).await?, slot))
        });
        // Usually a connection is free, and is acquired without spawning a task.
        let acquired = match poll_fn(|context| Poll::Ready(connection.as_mut().poll(context))).await {
            Poll::Ready(acquired) => acquired,
            Poll::Pending => self.wait_for(connection).await,
        };
        timer.observe_duration();
        if matches!(acquired, Err(sqlx::Error::PoolTimedOut)) {
            ACQUIRE_TIMEOUTS.inc();
        }
        acquired.map(|(pooled, slot)| Connection::new(pooled, slot))
    }

    /// Runs one statement outside of a transaction, under a name of the form `table.verb`. Acquires a connection,
    /// measures the statement as [`instrument_query()`] does, and returns the connection once the statement is
    /// complete.
    ///
    /// # Errors
    /// The statement failed, or no connection was available ([`Self::acquire`]).
    pub async fn run<T>(
        &self,
        name: &'static str,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut connection = self.acquire().await?;
        let result = instrument_query(name, statement(&mut connection)).await;
        connection.finish(&result);
        result
    }

    /// Waits until another request returns its connection, or opens a new connection.
    ///
    /// A connection attempt continues even if the request that started it has timed out, and the next request uses the
    /// connection. After a restart of the database all replicas open all of their connections at once, and connecting
    /// is slow. If attempts were cancelled with their requests, no connection might be ready in time. The service would
    /// stay down under a load that it could handle.
    async fn wait_for(
        &self,
        connection: impl Future<Output = Result<(PooledConnection, OwnedSemaphorePermit), sqlx::Error>>
        + Send
        + 'static,
    ) -> Result<(PooledConnection, OwnedSemaphorePermit), sqlx::Error> {
        // The request's timeout is shorter than that of the connection attempt.
        let opening = tokio::spawn(within(self.acquire_timeout + OPENING_TIMEOUT_MARGIN, connection));
        let opened = async { opening.await.unwrap_or(Err(sqlx::Error::PoolClosed)) };
        within(self.acquire_timeout, opened).await
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// No connection was available ([`Self::acquire`]), or the connection broke.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        Transaction::begin(self.acquire().await?).await
    }

    /// Starts the monitor of this database, which compares the schema with `migrations`.
    pub fn monitor(&self, migrations: &'static Migrator) -> Monitor {
        Monitor::start(self.pool.clone(), migrations)
    }

    /// Returns the statement timeout.
    pub fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// Returns the number of connections by state.
    pub fn pool_state(&self) -> PoolState {
        let status = self.pool.status();
        let count = |connections: usize| u32::try_from(connections).unwrap_or(u32::MAX);
        PoolState {
            active: count(status.size - status.available),
            idle: count(status.available),
            max: count(pool::max_connections(&status)),
        }
    }

    /// Closes the pool and its idle connections. Waits at most `timeout` until the connections in use are closed.
    pub async fn close(&self, timeout: Duration) {
        self.slots.close();
        self.pool.close();
        let all_returned = async {
            while self.pool.status().size > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(timeout, all_returned).await.is_err() {
            tracing::warn!("timed out waiting for database connections in use");
        }
    }
}

/// Returns the result of a future, or a timeout error after `timeout`.
async fn within<T>(
    timeout: Duration,
    future: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(timeout, future).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// The numbers of the pool's connections, by state.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct PoolState {
    /// Connections in use.
    pub active: u32,
    /// Open connections that are not in use.
    pub idle: u32,
    /// The maximum number of connections.
    pub max: u32,
}

/// Returns the name of the constraint that rejected a statement, if there is one.
pub fn violated_constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.constraint()
}

pub(crate) fn sqlstate(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error()?.code()
}

/// Returns whether a retry may succeed: the database is temporarily unavailable, or the statement conflicted with a
/// concurrent one.
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) => {
            sqlstate(error).is_some_and(|code| {
                // 08: connection exception. 53: insufficient resources. 57: operator intervention (shutdown, or
                // cancelled by statement_timeout). 40: serialization failure and deadlock. 55P03: lock not available.
                ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "55P03"
            }) || is_outdated(error)
        }
        _ => false,
    }
}

/// Returns whether the first sqlx error among an error and its causes is transient ([`is_transient`]).
pub fn has_transient_cause(error: &(dyn std::error::Error + 'static)) -> bool {
    cause(error).is_some_and(is_transient)
}

/// Returns whether an error was caused by a statement that waited for a lock for longer than `lock_timeout`.
pub(crate) fn is_lock_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    cause(error).and_then(sqlstate).is_some_and(|code| code == "55P03")
}

/// Returns the first sqlx error among an error and its causes.
fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a sqlx::Error> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}

/// Returns whether a connection is unusable after this error.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            true
        }
        sqlx::Error::Database(_) => {
            sqlstate(error).is_some_and(|code| {
                // 57P01 to 57P03: the server is shutting down, has crashed, or is starting.
                code.starts_with("08") || ["57P01", "57P02", "57P03"].contains(&&*code)
            }) || is_outdated(error)
        }
        _ => false,
    }
}

/// Returns whether an error affects every open connection, but possibly no new connection. Either the server is no
/// longer writable (25006), or the schema has changed since the statements were prepared.
fn is_outdated(error: &sqlx::Error) -> bool {
    is_outdated_plan(error) || sqlstate(error).is_some_and(|code| code == "25006")
}

/// Returns whether the column types of a prepared statement have changed since it was prepared. PostgreSQL rejects such
/// a statement before executing it. The SQLSTATE 0A000 alone is not sufficient, because it has many other causes.
fn is_outdated_plan(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    error.is_some_and(|error| error.code() == "0A000" && error.routine() == Some("RevalidateCachedQuery"))
}

/// Waits until a connection to a writable primary can be opened. Retries with growing pauses.
///
/// # Errors
/// No connection could be opened within `wait`. An error that waiting cannot resolve is returned immediately.
pub async fn wait_until_reachable(url: &DatabaseUrl, wait: Duration) -> Result<(), ConnectError> {
    let address = url.to_string();
    let started = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let left = wait.saturating_sub(started.elapsed()).max(Duration::from_secs(1));
        let attempt = tokio::time::timeout(left, url.connect()).await;
        let error = match attempt {
            Ok(Ok(connection)) => {
                // The connection succeeded, so an error while closing it does not matter.
                let _closed = sqlx::Connection::close(connection).await;
                return Ok(());
            }
            Ok(Err(error)) => error,
            Err(_elapsed) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
        };
        // 57P03: the server is starting. 53: it lacks resources, such as connection slots. Waiting does not resolve the
        // server's other errors, such as a wrong password.
        let is_rejection = sqlstate(&error).is_some_and(|code| code != "57P03" && !code.starts_with("53"));
        if is_rejection {
            return Err(ConnectError::Rejected { address, source: error });
        }
        if started.elapsed() + pause >= wait {
            return Err(ConnectError::Unreachable { address, waited: wait, source: error });
        }
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        tracing::warn!(%address, cause, "waiting for the database");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}
