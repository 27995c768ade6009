//! The books: our tables, and the ledger that the gateway keeps from run to run.
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, interval_at, sleep};
use url::Url;

use super::Error;
use crate::invariants::{self, Verdict};

/// How often the books are compared while the service runs.
const CHECK_INTERVAL: Duration = Duration::from_mins(10);

/// How long payments of unknown outcome may take to settle at the end: the first attempt's lease has to run out
/// before the recovery worker takes over.
const SETTLING: Duration = Duration::from_secs(20);

/// Our tables and the gateway's ledger.
pub(super) struct Books<'a> {
    pub(super) owner_url: &'a Url,
    pub(super) gateway: Url,
}

impl Books<'_> {
    /// Compares them once.
    pub(super) async fn compare(&self) -> Result<Verdict, Error> {
        Ok(invariants::check(self.owner_url.as_str(), &self.gateway).await?)
    }

    /// Compares them again and again, and says what came of it.
    pub(super) async fn watch(&self, progress: &dyn Fn(&str)) -> Infallible {
        let mut clock = interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
        loop {
            clock.tick().await;
            match self.compare().await {
                Ok(verdict) => progress(&verdict.to_string()),
                Err(error) => progress(&error.to_string()),
            }
        }
    }

    /// Waits a moment for the payments whose outcome is still open.
    pub(super) async fn settle(&self, progress: &dyn Fn(&str)) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLING;
        let mut told = false;
        while Instant::now() < deadline {
            if invariants::in_flight(self.owner_url.as_str()).await? == 0 {
                break;
            }
            if !told {
                progress("waiting for open payments to settle");
                told = true;
            }
            sleep(Duration::from_millis(250)).await;
        }
        Ok(())
    }
}

/// Where the gateway writes down what it did for one database. Another database never saw these charges.
pub(super) async fn ledger_of(owner_url: &Url, directory: &Path) -> Result<PathBuf, Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let identity: String = sqlx::query_scalar(
        "select (select system_identifier from pg_control_system()) || '-' || oid
         from pg_database
         where datname = current_database()",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(directory.join(format!("gateway-{identity}.jsonl")))
}

/// Forgets everything that the gateway did.
pub(super) fn delete_ledgers(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::Place { path: directory.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("gateway-") {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}
