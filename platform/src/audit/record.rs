//! The functions that write audit events, and the one that creates the partitions for them.
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::sleep;

use super::{Event, failures};
use crate::{
    alerts::{Alert, Alerts, Condition, Severity},
    database::{Database, instrument_query},
    resilience::retry::Backoff,
};

/// Backoff between the attempts of [`record_once_possible`].
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// An event of a transaction that may still be rolled back. The caller must call [`Self::committed`] after the commit,
/// so that the event is also logged.
#[must_use = "call `committed` after the commit, so that the event is logged"]
#[derive(Debug)]
pub struct PendingEvent(Event);

impl PendingEvent {
    /// Returns the pending form of an event that a statement of the transaction has already written.
    pub fn of(event: Event) -> Self {
        Self(event)
    }

    /// Writes the event to the log and counts it in the metrics. Must be called after the commit.
    pub fn committed(self) {
        self.0.log_and_count();
    }
}

/// Writes an event within the caller's transaction.
///
/// # Errors
/// The statement failed. The whole transaction then fails, so no change is committed without its event.
pub async fn record_with(connection: &mut PgConnection, event: Event) -> Result<PendingEvent, sqlx::Error> {
    let written = instrument_query("audit_events.insert", insert(connection, &event)).await;
    written.inspect_err(|error| failures::count_lost_events(error, 1))?;
    Ok(PendingEvent(event))
}

async fn insert(connection: &mut PgConnection, event: &Event) -> Result<(), sqlx::Error> {
    sqlx::query!("select record_audit_event($1)", event.to_json()).execute(connection).await?;
    Ok(())
}

/// Writes several events in one statement, within the transaction that makes the changes.
///
/// # Errors
/// The statement failed. The whole transaction then fails, so no change is committed without its event.
pub async fn record_all_with(
    connection: &mut PgConnection,
    events: Vec<Event>,
) -> Result<Vec<PendingEvent>, sqlx::Error> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<_> = events.iter().map(Event::to_json).collect();
    let statement = sqlx::query!("select record_audit_event(event) from unnest($1::jsonb[]) as event", &rows);
    let written = instrument_query("audit_events.insert", statement.execute(connection)).await;
    written.inspect_err(|error| failures::count_lost_events(error, rows.len()))?;
    Ok(events.into_iter().map(PendingEvent).collect())
}

/// Writes an event of an action that changes no data, such as a denial or a failed login.
///
/// # Errors
/// The statement failed, or no connection was available. A caller that was about to grant access must deny it instead.
pub async fn record(database: &Database, event: Event) -> Result<(), sqlx::Error> {
    let written =
        database.run("audit_events.insert", async |connection| insert(connection, &event).await).await;
    written.inspect_err(|error| failures::count_lost_events(error, 1))?;
    event.log_and_count();
    Ok(())
}

/// Writes an event of an action that must work while the database is unreachable. Retries after every error, until the
/// event is written.
///
/// Callers must run this function in [`BackgroundTasks`](crate::workers::BackgroundTasks), because the number of
/// retries has no limit. A shutdown then cancels the retries at its deadline, and logs the cancellation.
pub async fn record_once_possible(database: &Database, event: Event) {
    for retry in 0.. {
        match record(database, event.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                retry,
                "failed to record an audit event; retrying"
            ),
        }
        sleep(RETRY_BACKOFF.pause(retry)).await;
    }
}

/// Creates the missing partitions of this month and the next three. Raises an alert if events were stored outside of a
/// monthly partition, because these events prevent their month's partition from being created.
///
/// # Errors
/// A statement failed, or no connection was available.
pub async fn make_partitions(database: &Database, alerts: &Alerts) -> Result<(), sqlx::Error> {
    let statement = sqlx::query_scalar!(r#"select audit_default_partition_is_used() as "used!""#);
    if database.run("audit_events.default", async |connection| statement.fetch_one(connection).await).await? {
        alerts.raise(Alert {
            condition: Condition::new("AuditDefaultPartitionUsed"),
            severity: Severity::Warning,
            title: "Audit events are in the default partition".to_owned(),
            description: "The partitions of the audit log were not created in time. See docs/audit.md."
                .to_owned(),
            metadata: [("table".to_owned(), "audit_events_default".to_owned())].into(),
        });
    }
    let statement = sqlx::query_scalar!(r#"select make_audit_partitions() as "made!""#);
    let made = database
        .run("audit_events.partition", async |connection| statement.fetch_one(connection).await)
        .await?;
    if made > 0 {
        tracing::info!(made, "created partitions of the audit log");
    }
    Ok(())
}
