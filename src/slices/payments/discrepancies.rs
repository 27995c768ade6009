//! Discrepancies: differences between the gateway's reports and the stored records. A discrepancy does not change
//! the status of a payment or refund.
//!
//! Recovery polls every few seconds, and finds the same discrepancy each time. Each discrepancy is therefore stored,
//! audited and logged **once**, because repetitions in the audit log would hide other discrepancies.
//!
//! Each discrepancy has an alert of its own. The alert is stored with the discrepancy, and resent until a receiver
//! accepts the alert or the discrepancy is closed. An alert only in memory would be lost in a crash after the commit,
//! or while the receiver is down.
//!
//! A discrepancy is open, and counted in `payment_discrepancies_open`, until an operator closes it with a reason. A
//! discrepancy because of an unknown outcome is the exception: `payments_parked` counts the payment or refund instead,
//! and the settlement of that payment or refund closes the discrepancy.
use std::time::Duration;

use chrono::{DateTime, Utc};
use platform::{
    alerts::{Alert, Condition, Severity},
    audit::{self, Event, EventResult, EventType, PendingEvent},
    database::{Database, instrument_query},
    telemetry::correlation,
};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Payments, store::interval};

/// Discrepancy of a payment or refund that has had no outcome for `PAYMENT_PARK_AFTER_SECONDS`. The settlement of that
/// payment or refund closes the discrepancy.
pub(super) const OUTCOME_UNKNOWN: &str = "outcome unknown";

/// Discrepancy of a charge or refund of the gateway whose reference belongs to no payment or refund in the database.
pub(super) const UNKNOWN_REFERENCE: &str = "unknown reference";

/// Discrepancy of a second charge with the reference of a payment that already has a charge.
pub(super) const SECOND_CHARGE: &str = "second charge";

/// Discrepancy of a second refund at the gateway with the reference of a stored refund. The stored refund is already
/// settled by a different refund at the gateway.
pub(super) const SECOND_REFUND: &str = "second refund";

/// Maximum number of characters of a gateway text that are stored. An escaped control character counts as one.
const MAX_TEXT_CHARACTERS: usize = 500;

/// Maximum number of alerts in one batch, which are sent concurrently.
const ALERT_BATCH: i64 = 16;

/// Time after which an alert that no receiver has accepted is sent again. This time exceeds the duration of one
/// attempt, so that no two attempts overlap.
const ALERT_RETRY_INTERVAL: Duration = Duration::from_secs(20);

/// A difference between the gateway's report and the stored record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Discrepancy<'a> {
    /// The record's table: `payments` or `refunds`.
    pub(super) resource: &'static str,
    /// The record's id, or the gateway's reference if no record has that reference. `None` if the gateway's report has
    /// no readable reference.
    pub(super) id: Option<Uuid>,
    /// Kind of the discrepancy in a few words, used in the alert's title.
    pub(super) what: &'static str,
    /// Value that the gateway reports.
    pub(super) gateway_says: &'a str,
    /// Value that is stored.
    pub(super) we_say: &'a str,
}

impl Discrepancy<'_> {
    /// Returns the digest that all occurrences of one discrepancy have in common. The digest excludes the stored state,
    /// which can change between two occurrences.
    fn digest(&self, gateway_says: &str) -> [u8; 32] {
        let id = self.id.unwrap_or_default();
        Sha256::new()
            .chain_update(self.resource)
            .chain_update([0])
            .chain_update(id)
            .chain_update(self.what)
            .chain_update([0])
            .chain_update(gateway_says)
            .finalize()
            .into()
    }
}

/// Returns a text of the gateway in a form that PostgreSQL can store: shortened, and with escaped control characters.
/// PostgreSQL rejects NUL in text, so a NUL from the gateway would otherwise fail the statement.
fn printable(text: &str) -> String {
    let mut printable = String::new();
    for character in text.chars().take(MAX_TEXT_CHARACTERS) {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    printable
}

/// Records a discrepancy with its audit event, within a transaction. Returns the event that the caller must log after
/// the commit, or `None` if the discrepancy was recorded before.
pub(super) async fn record(
    connection: &mut PgConnection,
    discrepancy: &Discrepancy<'_>,
) -> Result<Option<PendingEvent>, sqlx::Error> {
    let Discrepancy { resource, id, what, we_say, .. } = *discrepancy;
    let gateway_says = printable(discrepancy.gateway_says);
    let (digest, correlation_id) = (discrepancy.digest(&gateway_says), correlation::current_id());
    let statement = sqlx::query!(
        r#"
        insert into discrepancies (id, resource, record_id, what, gateway_says, we_say, digest, correlation_id)
        values ($1, $2, $3, $4, $5, $6, $7, $8)
        on conflict do nothing
        "#,
        Uuid::now_v7(),
        resource,
        id,
        what,
        gateway_says,
        we_say,
        &digest,
        correlation_id.as_str(),
    );
    let inserted = instrument_query("discrepancies.insert", statement.execute(&mut *connection)).await?;
    if inserted.rows_affected() == 0 {
        tracing::debug!(resource, ?id, what, "a discrepancy is already recorded");
        return Ok(None);
    }
    tracing::error!(resource, ?id, what, gateway_says, we_say, "recorded a discrepancy with the gateway");
    let event = Event::new(EventType::DataChange, resource, "discrepancy", EventResult::Failure)
        .records(id)
        .with("what", what)
        .with("gateway_says", gateway_says)
        .with("we_say", we_say);
    Ok(Some(audit::record_with(connection, event).await?))
}

impl Payments {
    /// Records a discrepancy in a separate transaction, and sends its alert if the discrepancy is new. Returns whether
    /// it is new.
    pub(super) async fn record_discrepancy(
        &self,
        discrepancy: &Discrepancy<'_>,
    ) -> Result<bool, sqlx::Error> {
        let mut transaction = self.0.database.begin().await?;
        let Some(recorded) = record(&mut transaction, discrepancy).await? else {
            transaction.rollback().await?;
            return Ok(false);
        };
        transaction.commit().await?;
        recorded.committed();
        self.alert_discrepancies();
        Ok(true)
    }

    /// Returns whether this discrepancy is recorded and closed.
    pub(super) async fn is_closed(&self, discrepancy: &Discrepancy<'_>) -> Result<bool, sqlx::Error> {
        let digest = discrepancy.digest(&printable(discrepancy.gateway_says));
        let statement = sqlx::query_scalar!(
            r#"
            select exists (
              select from discrepancies where digest = $1 and closed_at is not null
            ) as "closed!"
            "#,
            &digest,
        );
        let database = &self.0.database;
        database.run("discrepancies.select", async |connection| statement.fetch_one(connection).await).await
    }

    /// Records a discrepancy of a payment or refund that is still `processing`.
    pub(super) async fn record_discrepancy_of_unsettled(
        &self,
        resource: &'static str,
        id: Uuid,
        what: &'static str,
        gateway_says: &str,
    ) -> Result<(), sqlx::Error> {
        let discrepancy = Discrepancy { resource, id: Some(id), what, gateway_says, we_say: "processing" };
        self.record_discrepancy(&discrepancy).await.map(drop)
    }

    /// Sends a batch of due alerts that no receiver has accepted yet, if any receiver is configured. A separate task
    /// sends the alerts, because a receiver that is down must not delay a payment.
    pub(super) fn alert_discrepancies(&self) {
        if self.0.alerts.has_receivers() {
            let payments = self.clone();
            drop(self.0.background_tasks.run(async move {
                if let Err(error) = payments.send_alerts().await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "failed to send the alerts of discrepancies; recovery sends them again"
                    );
                }
            }));
        }
    }

    async fn send_alerts(&self) -> Result<(), sqlx::Error> {
        let mut deliveries = JoinSet::<Result<(), sqlx::Error>>::new();
        for pending in lease_alerts(&self.0.database).await? {
            let payments = self.clone();
            deliveries.spawn(async move {
                let id = pending.id;
                if payments.0.alerts.deliver(alert_of(pending), &id.to_string()).await {
                    mark_alert_accepted(&payments.0.database, id).await?;
                }
                Ok(())
            });
        }
        while let Some(sent) = deliveries.join_next().await {
            sent.unwrap_or(Ok(()))?;
        }
        Ok(())
    }
}

fn alert_of(pending: PendingAlert) -> Alert {
    let PendingAlert { id, resource, record_id, what, correlation_id } = pending;
    let (condition, title, description) = if what == OUTCOME_UNKNOWN {
        (
            Condition::new("PaymentsParked"),
            format!("Review needed: {}", resource.strip_suffix('s').unwrap_or(&resource)),
            "The outcome at the payment gateway has been unknown for longer than PAYMENT_PARK_AFTER_SECONDS. Recovery continues to poll the gateway, and never guesses an outcome.",
        )
    } else {
        (
            Condition::new("PaymentDiscrepancyOpen"),
            format!("Payment discrepancy: {what}"),
            "The payment gateway's record contradicts the stored one, and settled nothing. Close the discrepancy with `payments discrepancy close` once it is explained.",
        )
    };
    let metadata = [
        ("resource", Some(resource)),
        ("id", record_id.map(|id| id.to_string())),
        ("discrepancy_id", Some(id.to_string())),
        ("correlation_id", correlation_id),
        ("action", Some("reconcile".to_owned())),
    ];
    let metadata = metadata.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Alert { condition, severity: Severity::Critical, title, description: description.to_owned(), metadata }
}

/// A discrepancy whose alert no receiver has accepted.
struct PendingAlert {
    id: Uuid,
    resource: String,
    record_id: Option<Uuid>,
    what: String,
    correlation_id: Option<String>,
}

/// Leases the alerts that are due, so that no other replica sends the same alerts at the same time.
async fn lease_alerts(database: &Database) -> Result<Vec<PendingAlert>, sqlx::Error> {
    let statement = sqlx::query_as!(
        PendingAlert,
        r#"
        update discrepancies
        set alert_due_at = clock_timestamp() + $1::interval
        where id in (
          select id
          from discrepancies
          where alert_due_at <= clock_timestamp()
          order by alert_due_at
          limit $2
          for update skip locked
        )
        returning id, resource, record_id, what, correlation_id
        "#,
        interval(ALERT_RETRY_INTERVAL),
        ALERT_BATCH,
    );
    let due =
        database.run("discrepancies.lease", async |connection| statement.fetch_all(connection).await).await?;
    Ok(due)
}

async fn mark_alert_accepted(database: &Database, id: Uuid) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!("update discrepancies set alert_due_at = null where id = $1", id);
    database.run("discrepancies.update", async |connection| statement.execute(connection).await).await?;
    Ok(())
}

/// An open discrepancy, for the command line.
#[derive(Debug)]
pub struct OpenDiscrepancy {
    /// The discrepancy's id.
    pub id: Uuid,
    /// The record's table: `payments` or `refunds`.
    pub resource: String,
    /// The record's id, or the gateway's reference if no record has that reference. `None` if the gateway's report has
    /// no readable reference.
    pub record_id: Option<Uuid>,
    /// Kind of the discrepancy.
    pub what: String,
    /// Value that the gateway reports.
    pub gateway_says: String,
    /// Value that was stored at the time of recording.
    pub we_say: String,
    /// Time of recording.
    pub recorded_at: DateTime<Utc>,
}

/// Returns the open discrepancies, oldest first.
pub async fn open_discrepancies(database: &Database) -> Result<Vec<OpenDiscrepancy>, sqlx::Error> {
    let statement = sqlx::query_as!(
        OpenDiscrepancy,
        r#"
        select id, resource, record_id, what, gateway_says, we_say, recorded_at
        from discrepancies
        where closed_at is null
        order by recorded_at, id
        "#
    );
    database.run("discrepancies.list", async |connection| statement.fetch_all(connection).await).await
}

/// Closes an open discrepancy, and records an audit event with the reason. Returns whether the discrepancy was open.
///
/// # Errors
/// If a statement fails; then nothing is closed.
pub async fn close_discrepancy(database: &Database, id: Uuid, reason: &str) -> Result<bool, sqlx::Error> {
    let mut transaction = database.begin().await?;
    let statement = sqlx::query!(
        r#"
        update discrepancies
        set closed_at = now(), closed_reason = $2, alert_due_at = null
        where id = $1 and closed_at is null
        returning resource, record_id, what
        "#,
        id,
        reason,
    );
    let closed = instrument_query("discrepancies.close", statement.fetch_optional(&mut *transaction)).await?;
    let Some(closed) = closed else {
        transaction.rollback().await?;
        return Ok(false);
    };
    let event = Event::change("discrepancies", "close")
        .records([id])
        .with("resource", closed.resource)
        .with("record_id", closed.record_id.map(|id| id.to_string()))
        .with("what", closed.what)
        .with("reason", reason);
    let recorded = audit::record_with(&mut transaction, event).await?;
    transaction.commit().await?;
    recorded.committed();
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_reports_are_stored_bounded_without_control_chars() {
        assert_eq!(printable("ch_\u{0}1\n"), "ch_\\u{0}1\\n");
        assert_eq!(printable(&"\u{e4}".repeat(1000)), "\u{e4}".repeat(MAX_TEXT_CHARACTERS));
    }

    #[test]
    fn a_digest_identifies_the_record_the_kind_and_the_report() {
        let discrepancy = Discrepancy {
            resource: "payments",
            id: Some(Uuid::from_u128(1)),
            what: "amount",
            gateway_says: "",
            we_say: "processing",
        };
        let digest = discrepancy.digest("ch_1");
        assert_eq!(Discrepancy { we_say: "failed", ..discrepancy }.digest("ch_1"), digest);
        assert_ne!(discrepancy.digest("ch_2"), digest);
        assert_ne!(Discrepancy { id: None, ..discrepancy }.digest("ch_1"), digest);
        assert_ne!(Discrepancy { what: "currency", ..discrepancy }.digest("ch_1"), digest);
        assert_ne!(Discrepancy { resource: "refunds", ..discrepancy }.digest("ch_1"), digest);
    }
}
