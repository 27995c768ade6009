//! A check of the invariants of money: the service's tables are compared with the gateway's ledger, to the cent.
//!
//! The check works on a live system. The check reads the payments and refunds in a first snapshot, then the ledger, and
//! then the payments and refunds in a second snapshot:
//! - A charge is in the ledger before its payment succeeds or is declined. So the ledger must have the charge of each
//!   payment that is successful or declined in the first snapshot.
//! - A payment is recorded before it is charged. So for each charge in the ledger, the second snapshot must have the
//!   payment.
//!
//! Payments and refunds in flight are counted. While a payment or refund is in flight, its charge or refund may be
//! missing in the ledger.
//!
//! The comparison needs constant memory, because it compares pages of at most [`PAGE_SIZE`] payments and refunds. Only
//! the list of orphans grows. A page is a range of gateway keys. The gateway key of a payment is also the reference of
//! its charge at the gateway. The first [`MAX_VIOLATIONS`] violations are reported, the others are counted.
//!
//! - [`tables`]: the service's tables, and the invariants within the tables
//! - [`comparison`]: the invariants between the tables and the ledger
mod comparison;
mod tables;
#[cfg(test)]
mod tests;

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use chrono::Utc;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use url::Url;
use uuid::Uuid;

use self::{
    comparison::Difference,
    tables::{Page, Tables},
};
use crate::{
    console::{Comparison, ReconciliationResult},
    example::gateway::Ledger,
};

/// Maximum number of payments and refunds in a page, which takes one or two megabytes.
pub const PAGE_SIZE: i64 = 1_000;

/// Maximum number of violations reported individually.
pub const MAX_VIOLATIONS: usize = 100;

const GATEWAY_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why a check has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read the service's tables: {0}")]
    Database(#[from] sqlx::Error),
    #[error("failed to read the gateway's ledger: {0}")]
    Gateway(#[from] reqwest::Error),
    #[error("the gateway's address is invalid: {0}")]
    Url(#[from] url::ParseError),
}

/// A violated invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The invariant, as a sentence that should be true.
    pub rule: &'static str,
    /// The records that violate the invariant.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "violated: {}: {}", self.rule, self.detail)
    }
}

/// The reported violations, and the number of further ones.
#[derive(Debug, Clone, Default)]
struct Violations {
    reported: Vec<Violation>,
    unreported: usize,
}

impl Violations {
    fn add(&mut self, violation: Violation) {
        if self.reported.len() < MAX_VIOLATIONS {
            self.reported.push(violation);
        } else {
            self.unreported += 1;
        }
    }
}

/// The result of a check, and the numbers of checked records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    pub orders: i64,
    pub payments: usize,
    pub refunds: usize,
    pub idempotency_keys: i64,
    /// Number of charges in the gateway's ledger, including declined ones.
    pub charges: usize,
    /// Number of payments with an unknown outcome.
    pub payments_in_flight: usize,
    /// Number of refunds with an unknown outcome.
    pub refunds_in_flight: usize,
    /// References of the gateway's charges and refunds without a row, if rows may have been lost.
    pub orphans: Vec<Uuid>,
    /// Number of compared pages.
    pub pages: usize,
    pub violations: Vec<Violation>,
    /// Number of violations beyond the reported ones.
    pub unreported: usize,
}

impl CheckReport {
    /// Returns whether all invariants hold.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }

    fn count(&mut self, ledger: &Ledger, page: &Page) {
        self.pages += 1;
        self.payments += page.payments.len();
        self.refunds += page.refunds.len();
        self.charges += ledger.charges.len();
        self.payments_in_flight += page.payments.iter().filter(|payment| payment.is_in_flight()).count();
        self.refunds_in_flight += page.refunds.iter().filter(|refund| refund.is_in_flight()).count();
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.violations.len() + self.unreported {
            0 => formatter.write_str("all invariants hold")?,
            1 => formatter.write_str("1 invariant is violated")?,
            count => write!(formatter, "{count} invariants are violated")?,
        }
        write!(
            formatter,
            ": {} orders, {} payments ({} in flight), {} refunds ({} in flight), {} idempotency keys, \
             {} charges at the gateway",
            self.orders,
            self.payments,
            self.payments_in_flight,
            self.refunds,
            self.refunds_in_flight,
            self.idempotency_keys,
            self.charges,
        )?;
        self.violations.iter().try_for_each(|violation| write!(formatter, "\n- {violation}"))?;
        if self.unreported > 0 {
            write!(formatter, "\n- and {} more", self.unreported)?;
        }
        Ok(())
    }
}

/// Possibility of lost rows, by a restore or by a failover to a standby that lagged behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Impossible,
    /// A charge or refund without a row is an orphan, not a violation.
    Possible,
}

/// Checks the invariants within the service's tables, and compares the tables with the ledger of the gateway at this
/// address. The check is read-only.
pub async fn check(database_url: &str, gateway: &Url) -> Result<CheckReport, Error> {
    check_with_loss(Loss::Impossible, database_url, gateway).await
}

/// Checks like [`check`]. With [`Loss::Possible`], charges and refunds without a row are reported as orphans, not as
/// violations.
pub async fn check_with_loss(loss: Loss, database_url: &str, gateway: &Url) -> Result<CheckReport, Error> {
    let client = crate::http::client(GATEWAY_TIMEOUT)?;
    let mut connection = PgConnection::connect(database_url).await?;
    let Tables { orders, idempotency_keys, mut violations } = Tables::read(&mut connection).await?;
    let mut report = CheckReport { orders, idempotency_keys, ..CheckReport::default() };
    let mut next = Some(Uuid::nil());
    while let Some(from) = next {
        let keys = from..=tables::end_of_page(&mut connection, from, PAGE_SIZE).await?;
        let before = Page::read(&mut connection, &keys).await?;
        let ledger = read_ledger(&client, gateway, &keys).await?;
        let after = Page::read(&mut connection, &keys).await?;
        for found in comparison::compare(&before, &ledger, &after) {
            match found {
                Difference::Orphan(reference, _) if loss == Loss::Possible => report.orphans.push(reference),
                Difference::Orphan(_, violation) | Difference::Violation(violation) => {
                    violations.add(violation);
                }
            }
        }
        report.count(&ledger, &after);
        next = keys.end().as_u128().checked_add(1).map(Uuid::from_u128);
    }
    connection.close().await?;
    let Violations { reported, unreported } = violations;
    Ok(CheckReport { violations: reported, unreported, ..report })
}

/// Checks like [`check`]. If the command `after-restore` has recorded a restore of the database, charges and refunds
/// without a row are reported as orphans, because the restore may have lost the rows.
async fn check_after_restores(owner_url: &str, gateway: &Url) -> Result<CheckReport, Error> {
    let mut connection = PgConnection::connect(owner_url).await?;
    let was_restored: bool =
        sqlx::query_scalar("select exists (select from audit_restores)").fetch_one(&mut connection).await?;
    connection.close().await?;
    let loss = if was_restored { Loss::Possible } else { Loss::Impossible };
    check_with_loss(loss, owner_url, gateway).await
}

/// Counts the payments and refunds without an outcome.
pub async fn in_flight(database_url: &str) -> Result<i64, Error> {
    let mut connection = PgConnection::connect(database_url).await?;
    let in_flight = tables::in_flight(&mut connection).await?;
    connection.close().await?;
    Ok(in_flight)
}

/// Returns the function that the console and `cargo dev` call to check the tables and the ledger.
pub fn console_comparison(owner_url: Url, gateway: Url) -> Comparison {
    Arc::new(move || {
        let (owner_url, gateway) = (owner_url.clone(), gateway.clone());
        Box::pin(async move {
            match check_after_restores(owner_url.as_str(), &gateway).await {
                Ok(report) => ReconciliationResult {
                    at: Utc::now(),
                    holds: report.holds(),
                    summary: report.to_string(),
                    report: serde_json::to_value(report).ok(),
                },
                Err(error) => ReconciliationResult {
                    at: Utc::now(),
                    holds: false,
                    summary: error.to_string(),
                    report: None,
                },
            }
        })
    })
}

async fn read_ledger(
    client: &reqwest::Client,
    gateway: &Url,
    references: &RangeInclusive<Uuid>,
) -> Result<Ledger, Error> {
    let mut url = gateway.join("/ledger")?;
    url.query_pairs_mut()
        .append_pair("from", &references.start().to_string())
        .append_pair("through", &references.end().to_string());
    Ok(client.get(url).send().await?.error_for_status()?.json().await?)
}
