//! A pooled connection, a transaction on such a connection, and the timeout of a response. Named statements
//! ([`super::instrument_query()`]), `begin`, `commit` and `rollback` fail if the database does not respond.
//!
//! A database host that fails without closing its connections is *lost*. TCP reports the loss only after a quarter of
//! an hour. Until then, sqlx 0.9.0 waits for a statement's response, and the connection occupies its slot in the pool.
//! Once such statements occupy all slots, the service stays down long after the database is back. So every wait
//! for a response in this module has a timeout: [`response_timeout`] or [`RETURN_PING_TIMEOUT`].
//!
//! sqlx 0.9.0 sets neither TCP keepalive nor `TCP_USER_TIMEOUT` on its sockets, and cannot be given a configured
//! socket. Instead the [monitor](super::monitor) checks one connection, and [`end_statements_of_lost_server`] ends the
//! statements that wait for a lost server.
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
    pool::{self, PooledConnection},
};

/// Additional time for a response, beyond the statement timeout. A healthy database may be busy, or may be about to
/// report that it cancelled the statement.
const STATEMENT_TIMEOUT_MARGIN: Duration = Duration::from_secs(10);

/// Timeout of the ping of a connection whose last statement may be incomplete.
const RETURN_PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The part of [`RETURN_PING_TIMEOUT`] during which the connection keeps its slot. A healthy server responds within
/// this time, so usually no connection is opened beyond `DATABASE_MAX_CONNECTIONS`. Afterwards another request can use
/// the slot.
const RETURN_SLOT_TIME: Duration = Duration::from_millis(50);

/// Time for which statements in flight continue once the server is known to be lost. Some of them may be on new
/// connections to a working server, and can complete within this time.
const LOST_SERVER_TIMEOUT: Duration = Duration::from_secs(1);

/// Notifies every statement in flight that the server is lost.
static SERVER_LOST: Notify = Notify::const_new();

/// The value of `DATABASE_STATEMENT_TIMEOUT_MS` for the process's pool.
static STATEMENT_TIMEOUT: OnceLock<Duration> = OnceLock::new();

/// Sets the timeout after which the server itself cancels a statement. Later calls are ignored.
pub(super) fn set_statement_timeout(timeout: Duration) {
    let _already_set = STATEMENT_TIMEOUT.set(timeout);
}

/// Returns the maximum time for which a statement waits for a response. A working server cancels each statement at the
/// statement timeout, and reports the cancellation.
fn response_timeout() -> Duration {
    STATEMENT_TIMEOUT.get().copied().unwrap_or_default() + STATEMENT_TIMEOUT_MARGIN
}

/// Waits for a response of the database.
///
/// # Errors
/// The statement's error, or an I/O error if there was no response.
pub(crate) async fn await_response<T>(
    response: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::select! {
        biased;
        response = response => response,
        () = wait_until_server_lost() => Err(sqlx::Error::Io(io::ErrorKind::ConnectionAborted.into())),
        () = sleep(response_timeout()) => Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())),
    }
}

async fn wait_until_server_lost() {
    SERVER_LOST.notified().await;
    sleep(LOST_SERVER_TIMEOUT).await;
}

/// Ends every statement that is still in flight after [`LOST_SERVER_TIMEOUT`]. Called when the server no longer
/// responds on an open connection, although a new connection can be opened.
pub(super) fn end_statements_of_lost_server() {
    SERVER_LOST.notify_waiters();
}

/// A pooled connection.
///
/// A dropped connection is pinged before reuse, because its last statement may have been cancelled.
/// [`Self::release`] skips the ping.
#[derive(Debug)]
pub struct Connection {
    /// `None` only while the connection is being dropped.
    pooled: Option<PooledConnection>,
    /// The permit of the pool's semaphore. It is dropped after `pooled`, so that the next request finds the connection
    /// in the pool.
    slot: Option<OwnedSemaphorePermit>,
    within_transaction: bool,
}

impl Connection {
    pub(super) fn new(pooled: PooledConnection, slot: OwnedSemaphorePermit) -> Self {
        Self { pooled: Some(pooled), slot: Some(slot), within_transaction: false }
    }

    /// Returns the connection to the pool immediately, without a ping. Its last statement must be complete. A
    /// connection in an open transaction is closed instead.
    pub fn release(mut self) {
        if !self.within_transaction {
            drop(self.pooled.take());
        }
    }

    /// Returns the connection to the pool or closes it, depending on the result of its last statement. A statement that
    /// the server rejected is complete, too.
    pub(super) fn finish<T>(mut self, result: &Result<T, sqlx::Error>) {
        match result {
            Err(error) if is_broken(error) => drop(self.pooled.take().map(PooledConnection::take)),
            Ok(_) | Err(sqlx::Error::RowNotFound | sqlx::Error::Database(_)) => self.release(),
            // A part of the response may still be unread.
            Err(_) => drop(self),
        }
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    #[expect(clippy::expect_used, reason = "the connection is present until it is dropped or released")]
    fn deref(&self) -> &PgConnection {
        self.pooled.as_ref().expect("used a connection after its release")
    }
}

impl DerefMut for Connection {
    #[expect(clippy::expect_used, reason = "the connection is present until it is dropped or released")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.pooled.as_mut().expect("used a connection after its release")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(pooled) = self.pooled.take() else { return };
        if self.within_transaction {
            // Closing the connection ends the transaction, so no later request can run inside of it.
            drop(PooledConnection::take(pooled));
            return;
        }
        tokio::spawn(return_to_pool(pooled, self.slot.take()));
    }
}

/// Returns a connection to the pool if it responds to a ping and the pool has room. Otherwise closes the connection. A
/// cancelled statement that still runs on the server delays the response.
async fn return_to_pool(mut pooled: PooledConnection, mut slot: Option<OwnedSemaphorePermit>) {
    let response = {
        let mut ping = pin!(timeout(RETURN_PING_TIMEOUT, sqlx::Connection::ping(&mut **pooled)));
        tokio::select! {
            biased;
            response = &mut ping => response,
            () = sleep(RETURN_SLOT_TIME) => {
                drop(slot.take());
                ping.await
            }
        }
    };
    // Another connection may have been opened while this one had no slot.
    let is_surplus = || {
        let status = PooledConnection::pool(&pooled).map(|pool| pool.status());
        status.is_none_or(|status| status.size > pool::max_connections(&status))
    };
    if !matches!(response, Ok(Ok(()))) || is_surplus() {
        drop(PooledConnection::take(pooled));
    } else {
        drop(pooled);
    }
    drop(slot);
}

/// A transaction. If it is dropped before [`Transaction::commit`], it is rolled back and its connection is closed. A
/// transaction is dropped after an error, a client's disconnect, or a deadline, even during its first statement.
#[derive(Debug)]
pub struct Transaction(Connection);

impl Transaction {
    pub(super) async fn begin(mut connection: Connection) -> Result<Self, sqlx::Error> {
        // Set before BEGIN is sent, because the transaction may begin on the server even if the caller stops waiting.
        connection.within_transaction = true;
        await_response(connection.execute("begin")).await?;
        Ok(Self(connection))
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// The commit failed. Without a response from the database, the outcome is unknown.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("commit").await
    }

    /// Rolls the transaction back and returns the connection to the pool. Use this function for a transaction that
    /// turns out to have no work, because dropping the transaction would close the connection.
    ///
    /// # Errors
    /// The statement failed. Closing the connection then rolls the transaction back.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("rollback").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        await_response(self.0.execute(statement)).await?;
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
