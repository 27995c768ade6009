//! A connection on loan from the pool, and a transaction on one: what is not answered is given up.
//!
//! A database host that vanishes sends no goodbye, and TCP waits for a quarter of an hour before it says so. sqlx
//! 0.9.0 waits along: for a statement's answer, and also for that of the ping with which each connection comes back
//! to the pool, while it keeps the connection's place. As many requests as the pool has places, and the service
//! stays down long after the database is back. So nothing here waits for longer than a [`silence`].
use std::{
    io,
    ops::{Deref, DerefMut},
    sync::OnceLock,
    time::Duration,
};

use sqlx::{Executor, PgConnection, Postgres, pool::PoolConnection};

/// What a database that is there may take, beside the time of a statement: it is busy, or it has just ended the
/// statement itself and says so.
const GRACE: Duration = Duration::from_secs(10);

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
pub(super) async fn answered<T>(
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(silence(), answer)
        .await
        .unwrap_or_else(|_silence| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

/// A connection, on loan.
#[derive(Debug)]
pub struct Connection {
    pooled: PoolConnection<Postgres>,
    within_transaction: bool,
}

impl Connection {
    pub(super) fn new(pooled: PoolConnection<Postgres>) -> Self {
        Self { pooled, within_transaction: false }
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.pooled
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.pooled
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.within_transaction {
            // Its end is the end of the transaction, and nobody else ever works inside of it.
            self.pooled.close_on_drop();
        } else {
            // As sqlx would do it, but not without end: given up on its way, the connection is closed.
            tokio::spawn(tokio::time::timeout(silence(), self.pooled.return_to_pool()));
        }
    }
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
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        answered(self.0.execute("commit")).await?;
        self.0.within_transaction = false;
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
