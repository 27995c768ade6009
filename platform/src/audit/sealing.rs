//! Sealing: a worker writes a seal over a range of events once no further event can be added to that range. Each
//! replica has this worker, and only one of them seals at a time. The last seal is the head of the chain.
//!
//! Five failures are possible. [`Sealer`] handles the last two, and [`seal_next`] the others:
//! - While the process runs, the database may be replaced by one of another cluster, whose transaction ids start again.
//!   So the cluster is compared with that of the current epoch before each seal. An epoch is a period of the audit log
//!   within one cluster and without a restore.
//! - An event's transaction may commit after a transaction that began later. So only events of transactions before the
//!   oldest running transaction are sealed. The id of that transaction is the horizon, and is read before the events.
//! - Two sealers may run at once. So the sealing lock is taken first, in a statement of its own. A single statement
//!   that takes the lock and reads the head could read a head from before the lock was granted.
//! - The process may end after the commit of a seal, and before the new head is logged. So the head is logged at each
//!   interval, even if there is nothing to seal.
//! - The database may be set back to an earlier state. So before each seal, the sealer checks that the chain still has
//!   the last head that this process has read. Only a head that the command `after-restore` recorded as lost may be
//!   missing.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing::{Span, instrument};

use super::{
    canonical::{EventPosition, Seal, StoredEvent},
    lost_heads,
    metrics::{RESTORES, SEAL_LAG, SEAL_NUMBER},
    seals::{self, Head, Horizon},
};
use crate::{
    alerts::{Alert, Alerts, Condition, Severity},
    database::Database,
    resilience::crash,
    workers::Progress,
};

/// Maximum number of events in one seal. It limits the memory that a seal needs, and the number of events that are in
/// doubt if the seal itself was changed.
const MAX_SEAL_EVENTS: i64 = 2000;

/// The alert condition of a chain of seals that was tampered with.
const TAMPERED: Condition = Condition::new("AuditLogTampered");

/// Minimum sealing lag that raises an alert.
const MIN_ALERT_LAG: Duration = Duration::from_mins(1);

/// Maximum time for which a command waits until its own event is sealed.
const SEAL_TIMEOUT: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The error of a failed seal.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The database is unreachable, or rejected a statement.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The chain no longer has the last seal that this process has read.
    #[error("the chain of seals was rewritten: seal {number} differs from the seal that this process read")]
    Rewritten {
        /// The number of the last seal that this process has read.
        number: i64,
    },
    /// The recorded end of the chain is not the last seal. Seals were removed, or were added without the trigger that
    /// updates the recorded end.
    #[error("the chain of seals was truncated: it ended with seal {remembered}, and now ends with {found}")]
    Truncated {
        /// The number of the seal that was recorded as the end.
        remembered: i64,
        /// The number of the last seal.
        found: i64,
    },
    /// The range of the last seal includes transactions that have not ended. So the seal was forged. New events cannot
    /// be sealed, because they would be in the range of the forged seal.
    #[error("seal {number} covers transactions that are still in progress")]
    BeyondHorizon {
        /// The number of the last seal.
        number: i64,
    },
    /// The database belongs to another cluster than that of the latest epoch.
    #[error("the PostgreSQL cluster is not that of the audit log's latest epoch")]
    OtherCluster,
    /// The event for which a command waits was not sealed in time, because a transaction that is older than the event's
    /// transaction is still writing.
    #[error("timed out waiting for the oldest writing transaction, which belongs to {writer}")]
    WriterTimeout {
        /// A description of the transaction.
        writer: String,
    },
}

/// The sealer of the audit log. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    database: Database,
    alerts: Alerts,
    alert_lag: Duration,
    /// The last head that this process has read.
    last_head: Arc<Mutex<Option<Head>>>,
}

impl Sealer {
    /// Creates a sealer of the audit log in `database`. The caller runs it every `interval`.
    pub fn new(database: Database, alerts: Alerts, interval: Duration) -> Self {
        Self {
            database,
            alerts,
            alert_lag: (interval * 10).max(MIN_ALERT_LAG),
            last_head: Arc::new(Mutex::new(None)),
        }
    }

    /// Seals the next batch, and logs the head of the chain, unless another process is sealing. A worker calls this
    /// function for each unit of work.
    ///
    /// # Errors
    /// A statement failed, the chain was rewritten or truncated, its last seal was forged, or the cluster is not that
    /// of the latest epoch.
    pub async fn run(self) -> Result<Progress, SealError> {
        let sealed = self.seal().await.inspect_err(|error| self.raise_alert(error))?;
        let Some(SealResult { head, more }) = sealed else { return Ok(Progress::Idle) };
        *self.last_head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
        // The database owner does not control the log store, so the log store keeps an independent copy of the head.
        tracing::info!(target: "audit", seal_number = head.number, seal_hash = hex::encode(head.hash), "sealed the audit log");
        Ok(if more { Progress::More } else { Progress::Idle })
    }

    async fn seal(&self) -> Result<Option<SealResult>, SealError> {
        self.check_last_head().await?;
        seal_next(&self.database).await
    }

    /// Checks that the chain still has the last head that this process has read. Only a head that a recorded restore
    /// has lost may be missing.
    async fn check_last_head(&self) -> Result<(), SealError> {
        let last_head = *self.last_head.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last_head) = last_head.filter(|last_head| last_head.number > 0) else { return Ok(()) };
        let hash = seals::hash_of(&self.database, last_head.number).await?;
        if hash.as_deref() != Some(last_head.hash.as_slice()) {
            if !lost_heads::is_lost(&self.database, last_head).await? {
                return Err(SealError::Rewritten { number: last_head.number });
            }
            tracing::warn!(seal_number = last_head.number, "the last seal was lost in a recorded restore");
        }
        Ok(())
    }

    fn raise_alert(&self, error: &SealError) {
        let (condition, title, instruction, action) = match error {
            SealError::Database(_) | SealError::WriterTimeout { .. } => return,
            SealError::OtherCluster => (
                Condition::new("DatabaseRestored"),
                "Sealing stopped: different PostgreSQL cluster",
                "If the database was moved or restored on purpose, run `migrate`, which starts an epoch.",
                "migrate",
            ),
            SealError::Rewritten { .. } => (
                TAMPERED,
                "Audit log tampered with",
                "If the database was restored on purpose, run `after-restore`. Otherwise preserve the database unchanged, and run `audit verify` with the logged heads.",
                "investigate",
            ),
            SealError::Truncated { .. } | SealError::BeyondHorizon { .. } => (
                TAMPERED,
                "Audit log tampered with",
                "Preserve the database unchanged, and run `audit verify` with the logged heads.",
                "investigate",
            ),
        };
        self.alerts.raise(Alert {
            condition,
            severity: Severity::Critical,
            title: title.to_owned(),
            description: format!("{error}. {instruction}"),
            metadata: [("action".to_owned(), action.to_owned())].into(),
        });
    }

    /// Measures the sealing lag, and raises an alert if the lag is long. Also updates the metrics of recorded restores
    /// and of the last seal's number. This unit of work is separate from sealing, because the lag must also be measured
    /// when sealing fails.
    ///
    /// # Errors
    /// A statement failed, or no connection was available.
    pub async fn measure_lag(self) -> Result<Progress, sqlx::Error> {
        let lag = seals::lag(&self.database).await?;
        SEAL_LAG.set(lag.as_secs_f64());
        RESTORES.set(lost_heads::count(&self.database).await?);
        SEAL_NUMBER.set(seals::last_number(&self.database).await?);
        if lag >= self.alert_lag {
            let writer = seals::oldest_writer(&self.database).await?;
            self.alerts.raise(Alert {
                condition: Condition::symptom("AuditSealingBehind", "database"),
                severity: Severity::Warning,
                title: "Audit log not sealed".to_owned(),
                description: format!(
                    "Audit events have been unsealed for {} seconds. The oldest writing transaction: {}",
                    lag.as_secs(),
                    writer.as_deref().unwrap_or("none")
                ),
                metadata: [("oldest_writer".to_owned(), writer.unwrap_or_default())].into(),
            });
        }
        Ok(Progress::Idle)
    }
}

/// Seals until the event at `position` is sealed, or returns an error after [`SEAL_TIMEOUT`]. The running service may
/// seal at the same time.
pub(super) async fn wait_until_sealed(database: &Database, position: EventPosition) -> Result<(), SealError> {
    let deadline = tokio::time::Instant::now() + SEAL_TIMEOUT;
    while seals::covering(database, position).await?.is_none() {
        if tokio::time::Instant::now() >= deadline {
            let writer = seals::oldest_writer(database).await?;
            return Err(SealError::WriterTimeout {
                writer: writer.unwrap_or_else(|| "an unknown session".to_owned()),
            });
        }
        if seal_next(database).await?.is_none_or(|sealed| !sealed.more) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}

/// The result of sealing a batch.
pub(super) struct SealResult {
    /// The head of the chain, which is unchanged if there were no events to seal.
    pub head: Head,
    /// `true` if the batch was full, so that more events may be ready to be sealed.
    pub more: bool,
}

/// Seals the next batch. Returns `None` if another process is sealing.
#[instrument(name = "seal batch", skip_all, fields(seal_number, event_count))]
pub(super) async fn seal_next(database: &Database) -> Result<Option<SealResult>, SealError> {
    let mut transaction = database.begin().await?;
    if !seals::lock(&mut transaction).await? {
        transaction.rollback().await?;
        return Ok(None);
    }
    let remembered = seals::head(&mut transaction).await?;
    let last = seals::last(&mut transaction).await?;
    let found = last.as_ref().map_or(0, |seal| seal.number);
    if found != remembered.number {
        return Err(SealError::Truncated { remembered: remembered.number, found });
    }
    let horizon = seals::horizon(&mut transaction).await?;
    if !horizon.same_cluster {
        return Err(SealError::OtherCluster);
    }
    if let Some(last) = &last
        && last.last() > EventPosition::before_transaction(horizon.epoch, horizon.xact_id)
    {
        return Err(SealError::BeyondHorizon { number: last.number });
    }
    let mut after = last.map_or(EventPosition::START, |seal| seal.last());
    let mut events = Vec::new();
    // An epoch that has ended is sealed completely before any event of the next epoch.
    for epoch in after.epoch.max(1)..=horizon.epoch {
        let until = if epoch == horizon.epoch {
            EventPosition::before_transaction(epoch, horizon.xact_id)
        } else {
            EventPosition::end_of(epoch)
        };
        events = seals::events(&mut transaction, after, until, MAX_SEAL_EVENTS).await?;
        if !events.is_empty() {
            break;
        }
        after = after.max(EventPosition::end_of(epoch));
    }
    let (Some(first), Some(newest)) = (events.first(), events.last()) else {
        transaction.rollback().await?;
        return Ok(Some(SealResult { head: remembered, more: false }));
    };
    let seal = seal(remembered, horizon, first.position(), newest.position(), &events);
    seals::insert(&mut transaction, &seal).await?;
    crash::point("seal.inserted");
    transaction.commit().await?;
    crash::point("seal.committed");
    Span::current().record("seal_number", seal.number).record("event_count", seal.event_count);
    let head = Head { number: seal.number, hash: seal.computed_hash() };
    Ok(Some(SealResult { head, more: i64::from(seal.event_count) == MAX_SEAL_EVENTS }))
}

/// Returns the seal over these events.
pub(super) fn seal(
    previous: Head,
    horizon: Horizon,
    first: EventPosition,
    last: EventPosition,
    events: &[StoredEvent],
) -> Seal {
    let mut seal = Seal {
        number: previous.number + 1,
        epoch: first.epoch,
        first_xact_id: first.xact_id,
        first_sequence: first.sequence,
        last_xact_id: last.xact_id,
        last_sequence: last.sequence,
        event_count: i32::try_from(events.len()).unwrap_or(i32::MAX),
        digests: events.iter().flat_map(StoredEvent::digest).collect(),
        sealed_at: horizon.now,
        previous_hash: previous.hash.to_vec(),
        hash: Vec::new(),
    };
    seal.hash = seal.computed_hash().to_vec();
    seal
}
