//! The orphans: charges and refunds of the gateway whose rows in the service's database were lost in a failover or
//! restore.
//!
//! The service's API does not show an orphan, because the row is lost. So the service must record each orphan as a
//! discrepancy.
use std::{collections::HashMap, fmt, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection as _, PgConnection};
use tokio::time::sleep;
use url::Url;
use uuid::Uuid;

use super::percentile::percentile;

/// Maximum time from the end of the faults until the service has recorded an orphan.
const MAX_SEARCH_TIME: TimeDelta = TimeDelta::seconds(60);

/// Interval of reads of the recorded discrepancies.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// All orphans of a campaign.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// The orphans that the service has not recorded, each with the end of the faults that caused it.
    missing: HashMap<Uuid, DateTime<Utc>>,
    /// The recorded orphans, each with the time from the end of the faults until the service recorded the orphan. The
    /// time is zero for an orphan recorded before the end of the faults.
    found: HashMap<Uuid, Duration>,
}

/// The number of orphans that the service has not recorded, and the time from the end of the faults until the service
/// recorded each other orphan.
#[derive(Debug, Clone, Default)]
pub struct OrphanReport {
    pub missing: usize,
    pub times: Vec<Duration>,
}

impl Orphans {
    /// Updates the orphans. `orphans` has the reference of every charge and refund that has no row now. `faults_ended`
    /// is the end of the faults that caused the new orphans. A missing orphan is removed when its row exists again, and
    /// becomes a found orphan when its discrepancy is recorded. Returns one violation for each orphan that is still
    /// missing after [`MAX_SEARCH_TIME`].
    pub(super) async fn review(
        &mut self,
        orphans: &[Uuid],
        owner_url: &Url,
        faults_ended: DateTime<Utc>,
    ) -> Result<Vec<String>, sqlx::Error> {
        self.missing.retain(|orphan, _| orphans.contains(orphan));
        for orphan in orphans.iter().filter(|orphan| !self.found.contains_key(orphan)) {
            self.missing.entry(*orphan).or_insert(faults_ended);
        }
        self.read_discrepancies(owner_url).await?;
        let is_overdue = |faults_ended: &DateTime<Utc>| Utc::now() - *faults_ended > MAX_SEARCH_TIME;
        let overdue = self.missing.iter().filter(|(_, faults_ended)| is_overdue(faults_ended));
        Ok(overdue
            .map(|(orphan, faults_ended)| {
                format!("orphan {orphan} is not recorded; the faults ended at {faults_ended}")
            })
            .collect())
    }

    /// Waits until every orphan is recorded, or until one is still missing after [`MAX_SEARCH_TIME`]. Returns the
    /// violations.
    pub(super) async fn wait_until_found(&mut self, owner_url: &Url) -> Result<Vec<String>, sqlx::Error> {
        loop {
            let missing: Vec<_> = self.missing.keys().copied().collect();
            let violations = self.review(&missing, owner_url, Utc::now()).await?;
            if self.missing.is_empty() || !violations.is_empty() {
                return Ok(violations);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn read_discrepancies(&mut self, owner_url: &Url) -> Result<(), sqlx::Error> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let mut connection = PgConnection::connect(owner_url.as_str()).await?;
        let recorded: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
            "select record_id, min(recorded_at) from discrepancies where record_id = any ($1) group by record_id",
        )
        .bind(self.missing.keys().copied().collect::<Vec<_>>())
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        for (orphan, recorded_at) in recorded {
            if let Some(faults_ended) = self.missing.remove(&orphan) {
                self.found.insert(orphan, (recorded_at - faults_ended).to_std().unwrap_or_default());
            }
        }
        Ok(())
    }

    pub(super) fn report(&self) -> OrphanReport {
        OrphanReport { missing: self.missing.len(), times: self.found.values().copied().collect() }
    }
}

impl fmt::Display for OrphanReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&self.times, percent));
        write!(
            formatter,
            "{} orphans, {} of them not found by the service; the others were found within {p50:.2} s at p50, \
             {p99:.2} s at p99 and {max:.2} s at most after the end of the faults",
            self.missing + self.times.len(),
            self.missing,
        )
    }
}
