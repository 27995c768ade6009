//! What must be true of the money at every moment, as an executable check: the service's tables against the
//! gateway's ledger, to the cent.
//!
//! It is safe to run against a live system. The tables are read before the ledger and again after it, each time
//! as one snapshot, because what follows from what is ordered in time: a settled payment was charged *before* it
//! was settled, so whatever the first reading shows as settled must be in the ledger; and a payment is written
//! down *before* it is charged, so whatever the ledger shows must be in the second reading. Nothing here depends
//! on waiting, and work in flight is counted and never taken for a violation.
//!
//! - [`tables`]: the service's side, and the rules that concern it alone
//! - [`comparison`]: the rules that concern both sides
mod comparison;
mod tables;

use std::{fmt, sync::Arc, time::Duration};

use chrono::Utc;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use url::Url;

use self::tables::Tables;
use crate::{
    console::{Books, Comparison},
    gateway::Ledger,
};

const GATEWAY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the service's tables cannot be read: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the gateway's ledger cannot be read: {0}")]
    Gateway(#[from] reqwest::Error),
    #[error("the gateway's address is wrong: {0}")]
    Url(#[from] url::ParseError),
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule, as the sentence that is not true any more.
    pub rule: &'static str,
    /// Where it is broken.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "not true: {}: {}", self.rule, self.detail)
    }
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub orders: i64,
    pub payments: usize,
    pub refunds: usize,
    pub idempotency_keys: i64,
    /// In the gateway's ledger, declined ones included.
    pub charges: usize,
    /// Payments whose outcome is not known yet.
    pub payments_in_flight: usize,
    /// Refunds whose outcome is not known yet.
    pub refunds_in_flight: usize,
    pub violations: Vec<Violation>,
}

impl Verdict {
    /// Whether everything that must be true is.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.violations.len() {
            0 => formatter.write_str("the books agree")?,
            1 => formatter.write_str("the books do not agree, 1 violation")?,
            count => write!(formatter, "the books do not agree, {count} violations")?,
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
        self.violations.iter().try_for_each(|violation| write!(formatter, "\n- {violation}"))
    }
}

/// Compares the service's tables with the ledger of the gateway at this address. It reads only.
pub async fn check(database_url: &str, gateway: &Url) -> Result<Verdict, Error> {
    let mut connection = PgConnection::connect(database_url).await?;
    let before = Tables::read(&mut connection).await?;
    let ledger = read_ledger(gateway).await?;
    let after = Tables::read(&mut connection).await?;
    connection.close().await?;

    let mut violations = after.violations.clone();
    violations.extend(comparison::compare(&before, &ledger, &after));
    Ok(Verdict {
        orders: after.orders,
        payments: after.payments.len(),
        refunds: after.refunds.len(),
        idempotency_keys: after.idempotency_keys,
        charges: ledger.charges.len(),
        payments_in_flight: after.payments.iter().filter(|payment| payment.is_in_flight()).count(),
        refunds_in_flight: after.refunds.iter().filter(|refund| refund.is_in_flight()).count(),
        violations,
    })
}

/// The same for the console, which says what came of it.
pub fn for_the_console(owner_url: Url, gateway: Url) -> Comparison {
    Arc::new(move || {
        let (owner_url, gateway) = (owner_url.clone(), gateway.clone());
        Box::pin(async move {
            match check(owner_url.as_str(), &gateway).await {
                Ok(verdict) => Books {
                    at: Utc::now(),
                    holds: verdict.holds(),
                    says: verdict.to_string(),
                    verdict: serde_json::to_value(verdict).ok(),
                },
                Err(error) => Books { at: Utc::now(), holds: false, says: error.to_string(), verdict: None },
            }
        })
    })
}

async fn read_ledger(gateway: &Url) -> Result<Ledger, Error> {
    let response = crate::http::client(GATEWAY_TIMEOUT)?.get(gateway.join("/ledger")?).send().await?;
    Ok(response.error_for_status()?.json().await?)
}
