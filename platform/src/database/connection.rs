//! A connection on loan from the pool, and a transaction on one: what is not answered is given up.
//!
//! A database host that vanishes sends no goodbye, and TCP waits for a quarter of an hour before it says so. sqlx
//! 0.9.0 waits along for a statement's answer, while the connection keeps its place in the pool. As many requests as
//! the pool has places, and the service stays down long after the database is back. So nothing here waits for longer
//! than a [`silence`].
use std::{
    io,
    ops::{Deref, DerefMut},
    sync::OnceLock,
    time::Duration,
};

use sqlx::{Executor, PgConnection};

use super::pool::Pooled;

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
pub(crate) async fn answered<T>(
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(silence(), answer)
        .await
        .unwrap_or_else(|_silence| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

/// A connection, on loan.
///
/// Dropped, it is asked whether it still works before anybody else gets it: its statement failed, or nobody waited for
/// the end of it. [`Self::release`] spares it the question.
#[derive(Debug)]
pub struct Connection {
    /// Nothing only while it is being dropped.
    pooled: Option<Pooled>,
    within_transaction: bool,
}

impl Connection {
    pub(super) fn new(pooled: Pooled) -> Self {
        Self { pooled: Some(pooled), within_transaction: false }
    }

    /// Gives it back at once, its last statement having been answered to the end.
    pub fn release(mut self) {
        if !self.within_transaction {
            drop(self.pooled.take());
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
        let Some(mut pooled) = self.pooled.take() else { return };
        if self.within_transaction {
            // Its end is the end of the transaction, and nobody else ever works inside of it.
            drop(Pooled::take(pooled));
            return;
        }
        // It keeps its place in the pool meanwhile: what goes on in the database counts, too.
        tokio::spawn(async move {
            if answered(sqlx::Connection::ping(&mut *pooled)).await.is_err() {
                drop(Pooled::take(pooled));
            }
        });
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
