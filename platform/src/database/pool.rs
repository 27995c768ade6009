//! The pool of connections, which is deadpool's.
//!
//! sqlx has one, too, and pings each connection on its way back into it: a round trip for every statement, which no
//! option turns off. Here a connection whose last statement was answered goes back as it is
//! ([`super::Connection::release`]), and only the others are asked first: `docs/decisions/11-a-pool-that-does-not-ping.md`.
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};
use tokio::time::sleep;

use super::sqlstate;

/// The oldest a connection gets: a load balancer in front of replicas of the database, or a changed address, is
/// noticed after that time at the latest.
const LIFETIME: Duration = Duration::from_mins(30);

/// How long one that nobody needs is kept.
const IDLE_TIME: Duration = Duration::from_mins(10);

/// How often one looks for those.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// Between two attempts to connect, at the longest.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub(super) type Pool = managed::Pool<Connector>;
pub(super) type Pooled = Object<Connector>;

/// Opens connections, and says whether one may be used again.
#[derive(Debug)]
pub(super) struct Connector(PgConnectOptions);

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        // Boxed: it is large and rare, and would be a part of every future that needs a connection.
        Box::pin(self.0.connect()).await
    }

    /// Without a question to the database: one that has died is found by the statement itself, and every change may
    /// be sent again under its idempotency key.
    async fn recycle(&self, _connection: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() < LIFETIME { Ok(()) } else { Err(RecycleError::message("it is too old")) }
    }
}

/// A pool with nothing in it yet.
///
/// The connection that came back last is the next to be used: it is the warmest, and what is not needed gets old.
#[expect(clippy::expect_used, reason = "it fails only where timeouts are set and no runtime that keeps them")]
pub(super) fn new(options: PgConnectOptions, max_connections: usize) -> Pool {
    let builder = Pool::builder(Connector(options)).max_size(max_connections).queue_mode(QueueMode::Lifo);
    let pool = builder.build().expect("no timeouts are set");
    tokio::spawn(close_unneeded(pool.weak()));
    pool
}

/// Closes connections that are not needed any more, as long as there is a pool.
async fn close_unneeded(pool: managed::WeakPool<Connector>) {
    loop {
        sleep(LOOK_INTERVAL).await;
        let Some(pool) = pool.upgrade().filter(|pool| !pool.is_closed()) else { return };
        let unneeded =
            pool.retain(|_, metrics| metrics.last_used() < IDLE_TIME && metrics.age() < LIFETIME).removed;
        for connection in unneeded {
            // The server is told, and whether it hears it does not matter.
            let _goodbye = tokio::time::timeout(LOOK_INTERVAL, sqlx::Connection::close(connection)).await;
        }
    }
}

/// A connection. Waits for one that is free, and while the server is not there or starts up.
pub(super) async fn get(pool: Pool) -> Result<Pooled, sqlx::Error> {
    let mut pause = Duration::from_millis(10);
    loop {
        match pool.get().await {
            Ok(connection) => return Ok(connection),
            Err(PoolError::Backend(error)) if passes(&error) => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(PoolError::Backend(error)) => return Err(error),
            Err(PoolError::Closed) => return Err(sqlx::Error::PoolClosed),
            // What else there is, is about settings and hooks that are not used here.
            Err(_) => return Err(sqlx::Error::WorkerCrashed),
        }
    }
}

/// Whether to connect again in a moment may help: nobody listens, it starts up (57P03), or it has no place (53300).
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        other => sqlstate(other).is_some_and(|code| code == "57P03" || code == "53300"),
    }
}
