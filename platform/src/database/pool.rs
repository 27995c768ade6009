//! The connection pool, implemented with deadpool.
//!
//! sqlx's own pool pings each connection when it is returned. The ping adds a round trip to every statement, and no
//! option disables it. With this pool, a connection whose last statement completed is returned without a ping
//! ([`super::Connection::release`]). Other connections are pinged, or closed if they are broken or in a transaction.
//! See `docs/decisions/11-a-pool-that-does-not-ping.md`.
use std::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::PgConnection;
use tokio::{sync::Semaphore, time::sleep};

use super::{DatabaseUrl, url::is_retryable};

/// Maximum lifetime of a connection. It limits the time for which the pool uses an outdated address of the database, or
/// the same backend of a load balancer. Each lifetime is randomly shortened by up to a quarter, so that connections
/// opened together are not closed together.
const MAX_LIFETIME: Duration = Duration::from_mins(30);

/// Time after which an idle connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_mins(10);

/// Interval at which idle connections are closed.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// Maximum pause between two connection attempts.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Maximum number of connections that one pool opens at the same time.
///
/// After an outage every replica needs all of its connections. If a busy machine opened all of them at the same time,
/// each attempt could take so long that it times out. The next attempts would then time out, too.
const MAX_OPENING: usize = 4;

/// Number of times that the monitor retired all open connections, because their server failed or is not writable. A
/// connection belongs to the generation in which it was opened, and is not reused in a later generation.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The size of deadpool's pool, as a multiple of `DATABASE_MAX_CONNECTIONS`. The additional size is for connections
/// that are still being pinged although their slot in [`super::Database`] is already free.
const RETURNING_FACTOR: usize = 2;

/// Returns the pool's `DATABASE_MAX_CONNECTIONS`, calculated from the size of deadpool's pool.
pub(super) fn max_connections(status: &deadpool::Status) -> usize {
    status.max_size / RETURNING_FACTOR
}

pub(super) type Pool = managed::Pool<Connector>;
pub(super) type PooledConnection = Object<Connector>;

/// Retires every open connection, so that the pool does not reuse it.
pub(super) fn retire_open_connections() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// An open connection.
#[derive(Debug)]
pub(super) struct OpenConnection {
    connection: PgConnection,
    generation: u64,
    lifetime: Duration,
}

impl OpenConnection {
    /// Returns whether the connection may be used for another statement.
    fn is_current(&self, metrics: &Metrics) -> bool {
        metrics.age() < self.lifetime && self.generation == GENERATION.load(Ordering::Relaxed)
    }
}

impl Deref for OpenConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for OpenConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Returns a lifetime between three quarters of [`MAX_LIFETIME`] and all of it.
pub(super) fn random_lifetime() -> Duration {
    MAX_LIFETIME.mul_f64(1.0 - rand::random::<f64>() / 4.0)
}

/// The manager of deadpool's pool, which opens connections and decides whether a connection may be reused.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) url: DatabaseUrl,
    /// One permit per connection that is being opened.
    opening: Semaphore,
}

impl managed::Manager for Connector {
    type Type = OpenConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<OpenConnection, sqlx::Error> {
        let _permit = self.opening.acquire().await.map_err(|_closed| sqlx::Error::PoolClosed)?;
        // The generation is read before connecting, so that a retirement also covers a connection that is being opened.
        let generation = GENERATION.load(Ordering::Relaxed);
        // The future is boxed, because it is large, and would otherwise be part of every future that needs a
        // connection.
        let connection = Box::pin(self.url.connect()).await?;
        Ok(OpenConnection { connection, generation, lifetime: random_lifetime() })
    }

    /// Rejects a connection that is retired or past its lifetime. The server is not pinged, because the next statement
    /// detects a broken connection. The client can then repeat its request, because a change that must not run twice
    /// has an idempotency key.
    async fn recycle(
        &self,
        connection: &mut OpenConnection,
        metrics: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if connection.is_current(metrics) {
            Ok(())
        } else {
            Err(RecycleError::message("the connection is retired or past its lifetime"))
        }
    }
}

/// Creates an empty pool, and starts the task that closes its idle connections. The caller must use at most
/// `max_connections` connections at a time, because deadpool's limit is higher. Up to `max_connections` further
/// connections may be open while they are pinged before their return.
///
/// The most recently returned connection is reused first. The caches of that connection are warm, and connections that
/// are not needed reach [`IDLE_TIMEOUT`].
#[expect(clippy::expect_used, reason = "fails only if timeouts are set without a runtime")]
pub(super) fn new(url: DatabaseUrl, max_connections: usize) -> Pool {
    let max_size = max_connections * RETURNING_FACTOR;
    let connector = Connector { url, opening: Semaphore::new(MAX_OPENING) };
    let builder = Pool::builder(connector).max_size(max_size).queue_mode(QueueMode::Lifo);
    let pool = builder.build().expect("failed to build a pool without timeouts");
    tokio::spawn(close_idle_periodically(pool.weak()));
    pool
}

/// Closes idle connections until the pool is dropped or closed.
async fn close_idle_periodically(pool: managed::WeakPool<Connector>) {
    loop {
        sleep(IDLE_CHECK_INTERVAL).await;
        let Some(pool) = pool.upgrade().filter(|pool| !pool.is_closed()) else { return };
        close_idle(&pool, |metrics| metrics.last_used() >= IDLE_TIMEOUT).await;
    }
}

/// Closes the idle connections that are retired or past their lifetime, and those for which `is_unneeded` returns true.
pub(super) async fn close_idle(pool: &Pool, is_unneeded: impl Fn(&Metrics) -> bool) {
    let unneeded =
        pool.retain(|connection, metrics| connection.is_current(&metrics) && !is_unneeded(&metrics)).removed;
    for OpenConnection { connection, .. } in unneeded {
        // Closing a connection notifies the server, which then ends the session. An error does not matter, because
        // the connection is dropped anyway.
        let _closed = tokio::time::timeout(IDLE_CHECK_INTERVAL, sqlx::Connection::close(connection)).await;
    }
}

/// Returns an idle or a new connection. Waits while the pool is full, and retries a failed connection attempt if a
/// later attempt may succeed ([`is_retryable`]). The caller limits the total time.
pub(super) async fn get(pool: Pool) -> Result<PooledConnection, sqlx::Error> {
    let mut pause = Duration::from_millis(10);
    loop {
        match pool.get().await {
            Ok(connection) => return Ok(connection),
            Err(PoolError::Backend(error)) if is_retryable(&error) => {
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
            Err(PoolError::Backend(error)) => return Err(error),
            Err(PoolError::Closed) => return Err(sqlx::Error::PoolClosed),
            // The other errors concern timeouts and hooks, which this pool does not use.
            Err(_) => return Err(sqlx::Error::WorkerCrashed),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    #[test]
    fn connections_opened_together_are_not_closed_together() {
        let lifetimes: Vec<_> = (0..100).map(|_| random_lifetime()).collect();
        let (shortest, longest) = (lifetimes.iter().min().unwrap(), lifetimes.iter().max().unwrap());
        assert!(*longest <= MAX_LIFETIME && *shortest >= MAX_LIFETIME.mul_f64(0.75));
        assert!(*longest > *shortest + Duration::from_mins(1), "{shortest:?} to {longest:?}");
    }

    /// Accepts `expected` connections. Closes the open connections whenever no further connection arrives within 200
    /// ms. Returns the highest number of open connections.
    async fn count_concurrent(listener: TcpListener, expected: usize) -> usize {
        let (mut open, mut accepted, mut highest) = (Vec::new(), 0, 0);
        while accepted < expected {
            match timeout(Duration::from_millis(200), listener.accept()).await {
                Ok(connection) => {
                    open.push(connection.unwrap());
                    accepted += 1;
                    highest = highest.max(open.len());
                }
                Err(_elapsed) => open.clear(),
            }
        }
        highest
    }

    #[tokio::test]
    async fn the_pool_opens_at_most_four_connections_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postgres://user@{}/db?sslmode=disable", listener.local_addr().unwrap());
        let pool = new(url.parse().unwrap(), 16);
        for _ in 0..16 {
            tokio::spawn(get(pool.clone()));
        }
        assert_eq!(count_concurrent(listener, 16).await, MAX_OPENING);
    }
}
