//! A connection on loan from the pool, and a transaction on one: what is not answered is given up.
//!
//! A database host that vanishes sends no goodbye, and TCP waits for a quarter of an hour before it says so. sqlx
//! 0.9.0 waits along for a statement's answer, while the connection keeps its place in the pool. As many requests as
//! the pool has places, and the service stays down long after the database is back. So nothing here waits for longer
//! than a [`silence`].
//!
//! sqlx 0.9.0 neither sets TCP keepalive nor `TCP_USER_TIMEOUT` on its sockets, and takes none that has them. Instead
//! the [monitor](super::monitor) pings one connection, and [`give_up_lost_peers`] ends what waits for a lost server.
use std::{
    io,
    ops::{Deref, DerefMut},
    pin::pin,
    sync::OnceLock,
    time::Duration,
};

use sqlx::{Executor, PgConnection};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::{sleep, timeout},
};

use super::{
    is_broken,
    pool::{self, Pooled},
};

/// What a database that is there may take, beside the time of a statement: it is busy, or it has just ended the
/// statement itself and says so.
const GRACE: Duration = Duration::from_secs(10);

/// The time for the ping of a connection whose last statement has no complete response.
const RETURN_PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The part of that time in which the connection keeps its slot. A healthy server answers within it, so that usually
/// no connection is opened beyond `DATABASE_MAX_CONNECTIONS`. A request can use the slot after it.
const RETURN_SLOT_TIME: Duration = Duration::from_millis(50);

/// The time that statements in flight have once the server is known to be lost: some may be on a new connection.
const LOST_PEER_TIMEOUT: Duration = Duration::from_secs(1);

/// Notifies every statement in flight that the server is lost.
static PEER_LOST: Notify = Notify::const_new();

/// `DATABASE_STATEMENT_TIMEOUT_MS`, of the process's pool.
static STATEMENT_TIMEOUT: OnceLock<Duration> = OnceLock::new();

/// Statements end by themselves from now on after `timeout`, at the latest.
pub(super) fn expect_answers_within(timeout: Duration) {
    let _the_first_stays = STATEMENT_TIMEOUT.set(timeout);
}

/// How long the database may say nothing. It ends each statement itself, and says so: whoever is silent for much
/// longer than that is gone.
fn silence() -> Duration {
    STATEMENT_TIMEOUT.get().copied().unwrap_or_default() + GRACE
}

/// Waits for an answer of the database.
///
/// # Errors
/// The answer's; or that there was none.
pub(crate) async fn answered<T>(
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::select! {
        biased;
        answer = answer => answer,
        () = peer_is_lost() => Err(sqlx::Error::Io(io::ErrorKind::ConnectionAborted.into())),
        () = sleep(silence()) => Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())),
    }
}

async fn peer_is_lost() {
    PEER_LOST.notified().await;
    sleep(LOST_PEER_TIMEOUT).await;
}

/// Ends every statement that is still in flight after [`LOST_PEER_TIMEOUT`]. Called when the server no longer
/// responds on an open connection, although a new connection can be opened.
pub(super) fn give_up_lost_peers() {
    PEER_LOST.notify_waiters();
}

/// A pooled connection.
///
/// When it is dropped, it is pinged before reuse, because its last statement may have been cancelled.
/// [`Self::release`] skips the ping.
#[derive(Debug)]
pub struct Connection {
    /// `None` only while it is being dropped.
    pooled: Option<Pooled>,
    /// Dropped after `pooled`: the next request is to find the connection in the pool.
    slot: Option<OwnedSemaphorePermit>,
    within_transaction: bool,
}

impl Connection {
    pub(super) fn new(pooled: Pooled, slot: OwnedSemaphorePermit) -> Self {
        Self { pooled: Some(pooled), slot: Some(slot), within_transaction: false }
    }

    /// Gives it back at once, its last statement having been answered to the end.
    pub fn release(mut self) {
        if !self.within_transaction {
            drop(self.pooled.take());
        }
    }

    /// Returns or closes the connection, as the result of its last statement demands. A statement that the server
    /// has rejected is complete, too.
    pub(super) fn finish<T>(mut self, result: &Result<T, sqlx::Error>) {
        match result {
            Err(error) if is_broken(error) => drop(self.pooled.take().map(Pooled::take)),
            Ok(_) | Err(sqlx::Error::RowNotFound | sqlx::Error::Database(_)) => self.release(),
            // The rest of the response may not have been read.
            Err(_) => drop(self),
        }
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    #[expect(clippy::expect_used, reason = "it is there until the connection is dropped or released")]
    fn deref(&self) -> &PgConnection {
        self.pooled.as_ref().expect("nobody has a connection that was given back")
    }
}

impl DerefMut for Connection {
    #[expect(clippy::expect_used, reason = "it is there until the connection is dropped or released")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.pooled.as_mut().expect("nobody has a connection that was given back")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(pooled) = self.pooled.take() else { return };
        if self.within_transaction {
            // Its end is the end of the transaction, and nobody else ever works inside of it.
            drop(Pooled::take(pooled));
            return;
        }
        tokio::spawn(return_to_pool(pooled, self.slot.take()));
    }
}

/// Returns a connection to the pool if it answers a ping, and closes it otherwise. A statement that was given up and
/// still runs on the server delays the answer.
async fn return_to_pool(mut pooled: Pooled, mut slot: Option<OwnedSemaphorePermit>) {
    let answer = {
        let mut ping = pin!(timeout(RETURN_PING_TIMEOUT, sqlx::Connection::ping(&mut **pooled)));
        tokio::select! {
            biased;
            answer = &mut ping => answer,
            () = sleep(RETURN_SLOT_TIME) => {
                drop(slot.take());
                ping.await
            }
        }
    };
    // Another connection may have been opened in its place.
    let is_surplus = || {
        let status = Pooled::pool(&pooled).map(|pool| pool.status());
        status.is_none_or(|status| status.size > pool::max_connections(&status))
    };
    if !matches!(answer, Ok(Ok(()))) || is_surplus() {
        drop(Pooled::take(pooled));
    } else {
        drop(pooled);
    }
    drop(slot);
}

/// A transaction. It is rolled back, and its connection closed, if it is dropped before [`Transaction::commit`]:
/// by an error, by a client that leaves, at a deadline, or even within its first statement.
#[derive(Debug)]
pub struct Transaction(Connection);

impl Transaction {
    pub(super) async fn begin(mut connection: Connection) -> Result<Self, sqlx::Error> {
        // Before there is one: whoever stops waiting for it leaves it begun.
        connection.within_transaction = true;
        answered(connection.execute("begin")).await?;
        Ok(Self(connection))
    }

    /// Makes it true.
    ///
    /// # Errors
    /// The database's. Where it says nothing, it is not known whether it has become true.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("commit").await
    }

    /// Undoes it, and keeps the connection, which dropping it would not: for what turns out to be nothing to do.
    ///
    /// # Errors
    /// The database's. It is undone all the same.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("rollback").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        answered(self.0.execute(statement)).await?;
        self.0.within_transaction = false;
        self.0.release();
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}
