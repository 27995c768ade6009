//! The database: its pool, its migrations, its transactions, and how long everything takes.
//!
//! - Every statement runs inside [`observe`], which gives it a name in traces, metrics and the slow-query log.
//! - A transaction begins with [`Database::begin`] and nowhere else: see [`Transaction`] for what goes wrong otherwise.
//! - Prefer one statement to a transaction. It is one round trip, and it cannot be left half open.
mod checks;
mod connection;
mod metrics;
mod observe;
mod pool;
mod settings;

use std::{
    error::Error as _,
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use sqlx::postgres::PgConnectOptions;

pub(crate) use self::connection::answered;
use self::{
    metrics::{ACQUIRE_DURATION, ACQUIRE_TIMEOUTS},
    pool::Pooled,
};

pub use self::{
    checks::{Privileges, privileges, warn_of_session_settings},
    connection::{Connection, Transaction},
    observe::{notify_of_failures, observe},
    settings::Settings,
};

/// How long one attempt to reach the database may take: a packet that is dropped on the way is never answered, and
/// the next attempt may find another host behind the same name.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    pool: pool::Pool,
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
        let options = settings.url.clone().application_name(application_name);
        let pool = pool::new(options, max_connections.try_into().unwrap_or(usize::MAX));
        let database = Self {
            pool,
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
        let mut connection = Box::pin(pool::get(self.pool.clone()));
        // Nearly always one is free, and had without a task to wait for it.
        let acquired = match poll_fn(|context| Poll::Ready(connection.as_mut().poll(context))).await {
            Poll::Ready(acquired) => acquired,
            Poll::Pending => self.wait_for(connection).await,
        };
        timer.observe_duration();
        if matches!(acquired, Err(sqlx::Error::PoolTimedOut)) {
            ACQUIRE_TIMEOUTS.inc();
        }
        acquired.map(Connection::new)
    }

    /// Waits for a connection to come back, or opens one.
    ///
    /// A connection that is being opened is opened to its end, though whoever needed it has given up by then: it is
    /// the next one's. After a restart of the database every replica opens all of its connections at once, and each of
    /// them takes longer for that. Given up with the request that asked for it, none might ever be ready in time,
    /// and the service would stay down under a load that it could bear.
    async fn wait_for(
        &self,
        connection: impl Future<Output = Result<Pooled, sqlx::Error>> + Send + 'static,
    ) -> Result<Pooled, sqlx::Error> {
        // Whoever waits for a connection has less patience than the connection has time.
        let opening = tokio::spawn(within(self.acquire_timeout + ATTEMPT, connection));
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

    /// Asks the database for an answer, and nothing else.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        let mut connection = self.acquire().await?;
        answered(sqlx::Connection::ping(&mut *connection)).await?;
        connection.release();
        Ok(())
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
            max: count(status.max_size),
        }
    }

    /// Closes every connection, waiting for those in use until `deadline`.
    pub async fn close(&self, deadline: Duration) {
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

fn sqlstate(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error()?.code()
}

/// Whether asking again later may help: the database is away, too busy, restarting, or this statement lost a race.
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) => sqlstate(error).is_some_and(|code| {
            // Connection exceptions, insufficient resources, operator intervention (shutdown, cancelled by
            // statement_timeout), serialization failure and deadlock.
            ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "55P03"
        }),
        _ => false,
    }
}

/// Waits until a connection can be made, asking again with growing pauses.
///
/// # Errors
/// When nobody answers for `wait`, or at once when the answer is a refusal that waiting does not cure.
pub async fn wait_until_reachable(options: &PgConnectOptions, wait: Duration) -> Result<(), ConnectError> {
    use sqlx::{ConnectOptions, Connection};

    let address = format!("{}:{}", options.get_host(), options.get_port());
    let started = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let left = wait.saturating_sub(started.elapsed()).clamp(Duration::from_secs(1), ATTEMPT);
        let attempt = tokio::time::timeout(left, options.connect()).await;
        let error = match attempt {
            Ok(Ok(connection)) => {
                // The answer is what counts; how it says goodbye does not.
                let _goodbye = connection.close().await;
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
