//! Discrepancies: what the gateway says and what we have do not fit. Nothing is settled by one, and a person is called.
//!
//! Recovery asks again every few seconds and finds the same each time, so each discrepancy of a payment is written
//! down, logged and told **once**: a trail that is full of one mistake hides the next, and so does a pager.
use platform::{
    alerts::{Alert, Severity},
    audit::{self, Event, EventResult, EventType, Recorded},
    http::problem::Problem,
};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Payments, store};

/// What does not fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Discrepancy<'a> {
    /// The table of the record that the gateway speaks of.
    pub(super) resource: &'static str,
    /// Its id.
    pub(super) id: Uuid,
    /// In a word or two; it is in the alert's title.
    pub(super) what: &'static str,
    /// The gateway's word.
    pub(super) gateway_says: &'a str,
    /// Ours.
    pub(super) we_say: &'a str,
}

impl Discrepancy<'_> {
    /// The same for whatever is the same discrepancy. How we stand is no part of it: that changes meanwhile.
    fn digest(&self) -> [u8; 32] {
        let hash = Sha256::new().chain_update(self.what).chain_update([0]).chain_update(self.gateway_says);
        hash.finalize().into()
    }
}

/// Writes a discrepancy down within a transaction, unless that was done before. `None` if it was.
///
/// # Errors
/// The statements'.
pub(super) async fn record(
    connection: &mut PgConnection,
    found: &Discrepancy<'_>,
) -> Result<Option<Recorded>, Problem> {
    let Discrepancy { resource, id, what, gateway_says, we_say } = *found;
    if !store::remember_discrepancy(connection, id, &found.digest()).await? {
        tracing::debug!(resource, %id, what, "the gateway's word and ours still do not fit");
        return Ok(None);
    }
    tracing::error!(resource, %id, what, gateway_says, we_say, "the gateway's word and ours do not fit");
    let event = Event::new(EventType::DataChange, resource, "discrepancy", EventResult::Failure)
        .records([id])
        .with("what", what)
        .with("gateway_says", gateway_says)
        .with("we_say", we_say);
    Ok(Some(audit::record_with(connection, event).await?))
}

impl Payments {
    /// Writes a discrepancy down in a transaction of its own, and calls a person if it is a new one.
    async fn discrepancy(&self, found: &Discrepancy<'_>) -> Result<(), Problem> {
        let written = self.write_down(found).await;
        // What cannot be written down is told all the same.
        if !matches!(written, Ok(false)) {
            self.alert_discrepancy(found.resource, found.id, found.what);
        }
        written.map(drop)
    }

    /// A discrepancy of a payment or refund whose outcome we do not know.
    pub(super) async fn mismatch(
        &self,
        resource: &'static str,
        id: Uuid,
        what: &'static str,
        gateway_says: &str,
    ) -> Result<(), Problem> {
        self.discrepancy(&Discrepancy { resource, id, what, gateway_says, we_say: "processing" }).await
    }

    /// Whether it was new.
    async fn write_down(&self, found: &Discrepancy<'_>) -> Result<bool, Problem> {
        let mut transaction = self.0.database.begin().await?;
        let Some(recorded) = record(&mut transaction, found).await? else {
            transaction.rollback().await?;
            return Ok(false);
        };
        transaction.commit().await?;
        recorded.committed();
        Ok(true)
    }

    /// Calls a person about a discrepancy.
    pub(super) fn alert_discrepancy(&self, resource: &'static str, id: Uuid, what: &'static str) {
        self.0.alerts.raise(Alert {
            severity: Severity::Critical,
            title: format!("Payment discrepancy: {what}"),
            description: "What the payment gateway says and what the service has stored do not fit. Nothing was settled by it.".to_owned(),
            metadata: [("resource", resource.to_owned()), ("id", id.to_string()), ("action", "reconcile".to_owned())]
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
        });
    }
}
