//! The database: its pool, its migrations, its transactions, and how long everything takes.
//!
//! - Every statement runs inside [`observe`], which gives it a name in traces, metrics and the slow-query log.
//! - A transaction begins with [`Database::begin`] and nowhere else: see [`Transaction`] for what goes wrong otherwise.
//! - Prefer one statement to a transaction. It is one round trip, and it cannot be left half open.
mod checks;
mod connection;
mod metrics;
mod monitor;
mod observe;
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
    pool::Pooled,
};

pub use self::{
    checks::{Durability, Privileges, check_session_settings, privileges},
    connection::{Connection, Transaction},
    monitor::Monitor,
    observe::{notify_of_failures, observe},
    schema::{SchemaState, newest_version, schema_state},
    settings::Settings,
    url::{DatabaseUrl, Unavailable},
};

/// The time for which a connection is still opened after its request has given up.
const OPENING_TIME: Duration = Duration::from_secs(5);

/// The pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    pool: pool::Pool,
    /// As many as there are connections to lend.
    slots: Arc<Semaphore>,
    acquire_timeout: Duration,
    statement_timeout: Duration,
}

/// Why the database could not be had at start.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answered in time.
    #[error("the database at {address} could not be reached within {waited:?}: {source}")]
    Unreachable {
        /// Host and port; no credentials.
        address: String,
        /// As long as `DATABASE_STARTUP_WAIT_SECONDS` says.
        waited: Duration,
        /// What the last attempt met.
        source: sqlx::Error,
    },
    /// It answered, and refused.
    #[error("the database at {address} refuses the connection: {source}")]
    Refused {
        /// Host and port; no credentials.
        address: String,
        /// What it said.
        source: sqlx::Error,
    },
}

impl Database {
    /// Connects, and waits for a database that is not there yet: a service and its database often start together.
    ///
    /// # Errors
    /// When it stays unreachable for `DATABASE_STARTUP_WAIT_SECONDS`, or at once when it refuses.
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
        observe::remember_server(&settings.url);
        connection::expect_answers_within(settings.statement_timeout);
        metrics::watch_pool(database.clone());
        Ok(database)
    }

    /// Connects for a command. Nobody queues up behind it as behind a request, so that it waits for a connection of a
    /// busy database as long as for a database that starts.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_for_command(settings: &Settings, command: &str) -> Result<Self, ConnectError> {
        let database = Self::connect(settings, command).await?;
        let acquire_timeout = database.acquire_timeout.max(settings.startup_wait);
        Ok(Self { acquire_timeout, ..database })
    }

    /// A connection, for statements outside of a transaction.
    ///
    /// # Errors
    /// When none is free within `DATABASE_ACQUIRE_TIMEOUT_MS`, which is also how an unreachable database shows.
    pub async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        let timer = ACQUIRE_DURATION.start_timer();
        let (pool, slots) = (self.pool.clone(), Arc::clone(&self.slots));
        // The connection comes first, so that it is returned first where nobody takes it.
        let mut connection = Box::pin(async move {
            let slot = slots.acquire_owned().await.map_err(|_closed| sqlx::Error::PoolClosed)?;
            Ok::<_, sqlx::Error>((pool::get(pool).await?, slot))
        });
        // Nearly always one is free, and had without a task to wait for it.
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

    /// Runs one statement outside of a transaction, under a name of the form `table.verb`: acquires a connection,
    /// measures the statement as [`observe`] does, and returns the connection once the statement is complete.
    ///
    /// # Errors
    /// As [`Self::acquire`], and the statement's.
    pub async fn run<T>(
        &self,
        name: &'static str,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut connection = self.acquire().await?;
        let result = observe(name, statement(&mut connection)).await;
        connection.finish(&result);
        result
    }

    /// Waits for a connection to come back, or opens one.
    ///
    /// A connection that is being opened is opened to its end, though whoever needed it has given up by then: it is
    /// the next one's. After a restart of the database every replica opens all of its connections at once, and each of
    /// them takes longer for that. Given up with the request that asked for it, none might ever be ready in time,
    /// and the service would stay down under a load that it could bear.
    async fn wait_for(
        &self,
        connection: impl Future<Output = Result<(Pooled, OwnedSemaphorePermit), sqlx::Error>> + Send + 'static,
    ) -> Result<(Pooled, OwnedSemaphorePermit), sqlx::Error> {
        // Whoever waits for a connection has less patience than the connection has time.
        let opening = tokio::spawn(within(self.acquire_timeout + OPENING_TIME, connection));
        let opened = async { opening.await.unwrap_or(Err(sqlx::Error::PoolClosed)) };
        within(self.acquire_timeout, opened).await
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// As [`Self::acquire`], and when the connection breaks.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        Transaction::begin(self.acquire().await?).await
    }

    /// Starts the monitor of this database, whose schema is compared with these migrations.
    pub fn monitor(&self, migrations: &'static Migrator) -> Monitor {
        Monitor::start(self.pool.clone(), migrations)
    }

    /// Returns how long a statement may run at most.
    pub fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// How the pool's connections are used.
    pub fn pool_state(&self) -> PoolState {
        let status = self.pool.status();
        let count = |connections: usize| u32::try_from(connections).unwrap_or(u32::MAX);
        PoolState {
            active: count(status.size - status.available),
            idle: count(status.available),
            max: count(pool::max_connections(&status)),
        }
    }

    /// Closes every connection, waiting for those in use until `deadline`.
    pub async fn close(&self, deadline: Duration) {
        self.slots.close();
        self.pool.close();
        let given_back = async {
            while self.pool.status().size > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(deadline, given_back).await.is_err() {
            tracing::warn!("database connections were still in use when the deadline passed");
        }
    }
}

/// What comes of it, if it comes in time.
async fn within<T>(
    patience: Duration,
    connection: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(patience, connection).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// How the pool's connections are used.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct PoolState {
    /// Working for somebody.
    pub active: u32,
    /// Open and free.
    pub idle: u32,
    /// As many as there can be.
    pub max: u32,
}

/// The name of the constraint that refused a statement, if one did.
pub fn violated_constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.constraint()
}

pub(crate) fn sqlstate(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error()?.code()
}

/// Returns whether a retry may help: the database is unreachable, overloaded, restarting, takes no writes until another
/// host is promoted, or this statement lost a race.
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
                // Connection exceptions, insufficient resources, operator intervention (shutdown, cancelled by
                // statement_timeout), serialization failure and deadlock.
                ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "55P03"
            }) || is_outdated(error)
        }
        _ => false,
    }
}

/// Returns whether a connection is of no use after this error.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            true
        }
        sqlx::Error::Database(_) => {
            sqlstate(error).is_some_and(|code| {
                // 57P01 to 57P03: the server shuts down, has crashed, or starts up.
                code.starts_with("08") || ["57P01", "57P02", "57P03"].contains(&&*code)
            }) || is_outdated(error)
        }
        _ => false,
    }
}

/// Returns whether an error concerns every connection that is open now: the server takes no writes any more (25006), or
/// the schema has changed under their prepared statements. New connections may not have that error.
fn is_outdated(error: &sqlx::Error) -> bool {
    is_outdated_plan(error) || sqlstate(error).is_some_and(|code| code == "25006")
}

/// Returns whether a prepared statement would return columns of other types than when it was prepared. PostgreSQL
/// rejects it before it does anything. The SQLSTATE 0A000 alone has many other causes.
fn is_outdated_plan(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    error.is_some_and(|error| error.code() == "0A000" && error.routine() == Some("RevalidateCachedQuery"))
}

/// Waits until a connection to a writable primary can be made, asking again with growing pauses.
///
/// # Errors
/// When there is none for `wait`, or at once when the answer is a refusal that waiting does not cure.
pub async fn wait_until_reachable(url: &DatabaseUrl, wait: Duration) -> Result<(), ConnectError> {
    let address = url.to_string();
    let started = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let left = wait.saturating_sub(started.elapsed()).max(Duration::from_secs(1));
        let attempt = tokio::time::timeout(left, url.connect()).await;
        let error = match attempt {
            Ok(Ok(connection)) => {
                // The answer is what counts; how it says goodbye does not.
                let _goodbye = sqlx::Connection::close(connection).await;
                return Ok(());
            }
            Ok(Err(error)) => error,
            Err(_elapsed) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
        };
        // 57P03: it is starting up. Everything else that it says itself (a wrong password, an unknown
        // database) stays true for as long as one waits.
        let refused = sqlstate(&error).is_some_and(|code| code != "57P03" && !code.starts_with("53"));
        if refused {
            return Err(ConnectError::Refused { address, source: error });
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
