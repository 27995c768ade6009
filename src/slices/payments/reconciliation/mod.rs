//! Reconciliation: compares the gateway's charges and refunds with the payments and refunds of the database.
//!
//! It finds what no other part can find. A charge whose payment the database has lost, for example in a restore, is
//! reported only by the gateway's listing.
//!
//! - The listing decides nothing. It only selects references; the gateway is then polled for each of these before
//!   anything is recorded. So an incomplete, repeated or unordered listing causes no false finding. An object that is
//!   missing in one listing is found in a later one.
//! - A charge without a payment is a finding at once. The payment is committed before its charge is sent, and it is
//!   read after the gateway's response. A payment that is missing then was lost.
//! - A payment without a charge is a finding only after the whole time was listed, and if the payment is older than
//!   [`MIN_AGE`]. A new charge may be missing in the listing for a while.
//! - A payment that its request may still be sending is left to the request.
//! - Findings are discrepancies: each is recorded once. Nothing is refunded. Only a payment or refund without an
//!   outcome is settled, through the same function as in recovery.
//!
//! Memory is bounded: one page of the listing, or one page of ids, is compared at a time. `listed_at` of a payment
//! stores that its charge was listed, so that no set of ids of a whole run is needed.
//!
//! - `comparison`: the rules, without I/O
//! - `charges`, `refunds`: the comparison of a page, and the poll for one reference
//! - `worker`: the periodic runs, by one replica at a time
mod charges;
mod comparison;
mod metrics;
mod refunds;
mod worker;

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use platform::telemetry::correlation::{self, Context, CorrelationId};
use tokio::{
    task::{JoinError, JoinSet},
    time::sleep,
};
use tracing::Instrument;
use uuid::{Builder, Uuid};

pub use self::comparison::Kind;
use self::comparison::{PAYMENT_WITHOUT_CHARGE, REFUND_WITHOUT_GATEWAY_REFUND};
use self::metrics::RECONCILIATION_DISCREPANCIES;
pub use self::metrics::initialize as initialize_metrics;
pub use self::worker::Scope;
pub(super) use self::worker::start_workers;
use super::{
    Payments,
    discrepancies::Discrepancy,
    errors::PaymentError,
    gateway::{Cursor, PageError, Unknown},
    gateway_key::GatewayKey,
    store::reconciliation::{self as store, AgedRecord, IdRange},
};

/// Time for which the gateway's listing may lack a new charge or refund, and for which clocks may differ. A run begins
/// earlier by this time, so that consecutive runs overlap.
const OVERLAP: TimeDelta = TimeDelta::minutes(2);

/// Minimum age of a payment or refund that the gateway has not listed.
const MIN_AGE: TimeDelta = TimeDelta::minutes(10);

/// Number of references for which the gateway is polled at the same time.
const MAX_CONCURRENT_POLLS: usize = 8;

/// Number of payments or refunds that are searched for unlisted ones at a time.
const ID_PAGE: i64 = 1000;

/// Maximum number of unlisted payments or refunds for which the gateway is polled in one page.
const MAX_UNLISTED: usize = 50;

/// Number of attempts at a page of a command, and the pause between them.
const ATTEMPTS: u32 = 5;
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// A difference between the gateway's objects and the stored records.
#[derive(Debug, Clone)]
pub struct Finding {
    /// `payments` or `refunds`.
    pub resource: &'static str,
    /// The id of the payment or refund, or the gateway's reference.
    pub id: Option<Uuid>,
    /// The discrepancy in a few words.
    pub what: &'static str,
    /// Value that the gateway reports.
    pub gateway_says: String,
    /// Value that is stored.
    pub we_say: &'static str,
    /// State of its record.
    pub state: FindingState,
}

/// State of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingState {
    /// Recorded now.
    New,
    /// Recorded before.
    Known,
    /// Recorded before, and closed by an operator.
    Closed,
}

/// Result of comparing one page.
#[derive(Debug, Default)]
struct Outcome {
    /// Number of compared charges, including repeated ones.
    charges: usize,
    /// Number of compared refunds of the gateway, including repeated ones.
    refunds: usize,
    /// Number of payments and refunds that were settled.
    settled: usize,
    /// The differences.
    findings: Vec<Finding>,
}

/// Result of comparing everything since a time.
#[derive(Debug, Default)]
pub struct Summary {
    /// Number of compared charges, including repeated ones.
    pub charges: usize,
    /// Number of compared refunds of the gateway, including repeated ones.
    pub refunds: usize,
    /// Number of payments and refunds that were settled.
    pub settled: usize,
    /// Number of findings that no operator has closed.
    pub open: usize,
    /// Number of findings that an operator has closed.
    pub closed: usize,
}

impl Summary {
    fn add(&mut self, page: &Outcome) {
        self.charges += page.charges;
        self.refunds += page.refunds;
        self.settled += page.settled;
        let closed = page.findings.iter().filter(|found| found.state == FindingState::Closed).count();
        self.closed += closed;
        self.open += page.findings.len() - closed;
    }
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.charges += other.charges;
        self.refunds += other.refunds;
        self.settled += other.settled;
        self.findings.extend(other.findings);
    }
}

/// Reason why a page was not compared completely. A repetition of the page is harmless.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The gateway's listing could not be read.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The poll for a reference has no result.
    #[error(transparent)]
    Poll(#[from] Unknown),
    /// A statement failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// A settlement failed.
    #[error("failed to settle: {0}")]
    Settlement(#[from] PaymentError),
    /// The task of a poll panicked.
    #[error("the comparison of a reference panicked")]
    Panicked(#[from] JoinError),
}

/// Part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Charges,
    Refunds,
    UnlistedPayments,
    UnlistedRefunds,
}

impl Step {
    const ALL: [Self; 4] = [Self::Charges, Self::Refunds, Self::UnlistedPayments, Self::UnlistedRefunds];

    /// Returns the name as written in SQL.
    fn as_str(self) -> &'static str {
        match self {
            Self::Charges => "charges",
            Self::Refunds => "refunds",
            Self::UnlistedPayments => "unlisted_payments",
            Self::UnlistedRefunds => "unlisted_refunds",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == text)
    }

    fn next(self) -> Option<Self> {
        match self {
            Self::Charges => Some(Self::Refunds),
            Self::Refunds => Some(Self::UnlistedPayments),
            Self::UnlistedPayments => Some(Self::UnlistedRefunds),
            Self::UnlistedRefunds => None,
        }
    }
}

/// The times that a run compares.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Beginning of the compared time.
    since: DateTime<Utc>,
    started_at: DateTime<Utc>,
    last_step: Step,
    /// True if findings that are recorded already are returned again.
    repeated: bool,
}

/// The next page of a run.
#[derive(Debug, Clone)]
struct Position {
    step: Step,
    /// A cursor of the gateway, or the last id. `None` at the beginning of the step.
    within: Option<String>,
}

impl Payments {
    /// Compares everything since a time, page by page, and passes each finding on as it is found.
    ///
    /// # Errors
    /// If a page could not be compared in several attempts.
    pub async fn reconcile(
        &self,
        since: DateTime<Utc>,
        mut on_finding: impl FnMut(&Finding),
    ) -> Result<Summary, ReconcileError> {
        let since = since.checked_sub_signed(OVERLAP).unwrap_or(since);
        let run = Run { since, started_at: Utc::now(), last_step: Step::UnlistedRefunds, repeated: true };
        let mut position = Position { step: Step::Charges, within: None };
        let mut total = Summary::default();
        let mut reported = BTreeSet::new();
        let mut failures = 0;
        loop {
            match self.compare_page(run, &position).await {
                Ok((mut outcome, next)) => {
                    failures = 0;
                    // The listing may repeat an object, and a later step may compare it again.
                    outcome.findings.retain(|found| {
                        reported.insert((found.resource, found.id, found.what, found.gateway_says.clone()))
                    });
                    outcome.findings.iter().for_each(&mut on_finding);
                    total.add(&outcome);
                    let Some(next) = next else { return Ok(total) };
                    position = next;
                }
                Err(error) => {
                    failures += 1;
                    if failures >= ATTEMPTS {
                        return Err(error);
                    }
                    sleep(ATTEMPT_INTERVAL).await;
                }
            }
        }
    }

    /// Compares one page of a run. Returns the position of the next page, or `None` after the last one.
    async fn compare_page(
        &self,
        run: Run,
        position: &Position,
    ) -> Result<(Outcome, Option<Position>), ReconcileError> {
        let within = position.within.as_deref();
        let (outcome, next) = match position.step {
            Step::Charges => self.compare_charges(run.since, cursor(within).as_ref()).await?,
            Step::Refunds => self.compare_refunds(run.since, cursor(within).as_ref()).await?,
            Step::UnlistedPayments => {
                let range = id_range(run, within);
                let page =
                    store::unlisted_payments(&self.0.database, range, run.repeated, PAYMENT_WITHOUT_CHARGE)
                        .await?;
                let (references, next) = unlisted(&page);
                (self.poll_all(references, Self::compare_payment).await?, next)
            }
            Step::UnlistedRefunds => {
                let range = id_range(run, within);
                let page = store::unlisted_refunds(
                    &self.0.database,
                    range,
                    run.repeated,
                    REFUND_WITHOUT_GATEWAY_REFUND,
                )
                .await?;
                let (references, next) = unlisted(&page);
                (self.poll_all(references, Self::compare_refund).await?, next)
            }
        };
        let next = match next {
            Some(within) => Some(Position { step: position.step, within: Some(within) }),
            None if position.step == run.last_step => None,
            None => position.step.next().map(|step| Position { step, within: None }),
        };
        Ok((outcome, next))
    }

    /// Polls the gateway for each reference, several at a time.
    async fn poll_all<F>(
        &self,
        references: BTreeSet<GatewayKey>,
        poll: impl Fn(Self, GatewayKey) -> F,
    ) -> Result<Outcome, ReconcileError>
    where
        F: Future<Output = Result<Outcome, ReconcileError>> + Send + 'static,
    {
        let context = correlation::current().unwrap_or_else(|| Context::for_work(CorrelationId::generate()));
        let mut references = references.into_iter();
        let mut polls = JoinSet::new();
        let mut total = Outcome::default();
        loop {
            while polls.len() < MAX_CONCURRENT_POLLS
                && let Some(reference) = references.next()
            {
                polls.spawn(context.clone().scope(poll(self.clone(), reference).in_current_span()));
            }
            match polls.join_next().await {
                Some(polled) => total.add(polled??),
                None => return Ok(total),
            }
        }
    }

    /// Records a finding, unless it is recorded already.
    async fn finding(
        &self,
        resource: &'static str,
        id: Option<Uuid>,
        what: &'static str,
        gateway_says: String,
        we_say: &'static str,
    ) -> Result<Finding, ReconcileError> {
        let found = Discrepancy { resource, id, what, gateway_says: &gateway_says, we_say };
        let state = if self.discrepancy(&found).await? {
            RECONCILIATION_DISCREPANCIES.with_label_values(&[Kind::of(what).as_str()]).inc();
            FindingState::New
        } else if self.is_closed(&found).await? {
            FindingState::Closed
        } else {
            FindingState::Known
        };
        Ok(Finding { resource, id, what, gateway_says, we_say, state })
    }
}

fn cursor(within: Option<&str>) -> Option<Cursor> {
    within.and_then(|text| Cursor::try_from(text.to_owned()).ok())
}

/// Returns the ids of records that are old enough, after a position.
fn id_range(run: Run, within: Option<&str>) -> IdRange {
    let first = first_id_at(run.since.checked_add_signed(OVERLAP).unwrap_or(run.since));
    let after = within.and_then(|id| id.parse().ok()).unwrap_or(first);
    let before = first_id_at(run.started_at.checked_sub_signed(MIN_AGE).unwrap_or(run.started_at));
    IdRange { after, before, limit: ID_PAGE }
}

/// Returns the smallest `UUIDv7` of a time.
fn first_id_at(time: DateTime<Utc>) -> Uuid {
    let milliseconds = u64::try_from(time.timestamp_millis()).unwrap_or(0);
    Builder::from_unix_timestamp_millis(milliseconds, &[0; 10]).into_uuid()
}

/// Returns the references of unlisted records, and the position of the next page.
fn unlisted(page: &[AgedRecord]) -> (BTreeSet<GatewayKey>, Option<String>) {
    let mut unlisted = page.iter().filter(|record| record.unlisted);
    let polled: Vec<_> = unlisted.by_ref().take(MAX_UNLISTED).collect();
    let is_full = i64::try_from(page.len()).is_ok_and(|length| length >= ID_PAGE);
    let last = match unlisted.next() {
        Some(_) => polled.last().copied(),
        None if is_full => page.last(),
        None => None,
    };
    let references = polled.iter().map(|record| GatewayKey(record.gateway_key)).collect();
    (references, last.map(|record| record.id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(count: u128, unlisted: impl Fn(u128) -> bool) -> Vec<AgedRecord> {
        let record = |number| AgedRecord {
            id: Uuid::from_u128(number),
            gateway_key: Uuid::from_u128(1_000_000 + number),
            unlisted: unlisted(number),
        };
        (0..count).map(record).collect()
    }

    #[test]
    fn a_page_ends_after_as_many_unlisted_records_as_are_polled() {
        let id = |number| Some(Uuid::from_u128(number).to_string());
        let count = |page: Vec<AgedRecord>| {
            let (references, next) = super::unlisted(&page);
            (references.len(), next)
        };
        assert_eq!(count(page(0, |_| true)), (0, None));
        assert_eq!(count(page(10, |number| number < 3)), (3, None));
        assert_eq!(count(page(50, |_| true)), (50, None));
        assert_eq!(count(page(51, |_| true)), (50, id(49)));
        assert_eq!(count(page(1000, |_| false)), (0, id(999)));
        assert_eq!(count(page(1000, |number| number >= 950)), (50, id(999)));
    }

    #[test]
    fn a_summary_counts_every_page_and_what_is_closed() {
        let finding = |state| Finding {
            resource: "payments",
            id: None,
            what: "amount",
            gateway_says: String::new(),
            we_say: "succeeded",
            state,
        };
        let (new, known, closed) =
            (finding(FindingState::New), finding(FindingState::Known), finding(FindingState::Closed));
        let mut page = Outcome { charges: 3, refunds: 5, settled: 7, findings: vec![new, known] };
        page.add(Outcome { charges: 30, refunds: 50, settled: 70, findings: vec![closed] });
        assert_eq!((page.charges, page.refunds, page.settled, page.findings.len()), (33, 55, 77, 3));
        let mut summary = Summary::default();
        summary.add(&page);
        summary.add(&page);
        let counts = (summary.charges, summary.refunds, summary.settled, summary.open, summary.closed);
        assert_eq!(counts, (66, 110, 154, 4, 2));
    }

    #[test]
    fn only_old_records_are_missed_in_the_listing() {
        let started_at = Utc::now();
        let since = started_at - TimeDelta::hours(48) - OVERLAP;
        let run = Run { since, started_at, last_step: Step::UnlistedRefunds, repeated: false };
        let first = id_range(run, None);
        assert_eq!(first.after, first_id_at(started_at - TimeDelta::hours(48)));
        assert_eq!(first.before, first_id_at(started_at - TimeDelta::minutes(10)));
        let later = Uuid::now_v7();
        assert_eq!(id_range(run, Some(&later.to_string())).after, later);
    }

    #[test]
    fn the_id_of_a_time_separates_earlier_and_later_ids() {
        let now = Utc::now();
        let earlier = Uuid::now_v7();
        assert!(first_id_at(now + TimeDelta::seconds(1)) > earlier);
        assert!(first_id_at(now) <= earlier);
        assert!(first_id_at(DateTime::<Utc>::MIN_UTC) < earlier);
    }

    #[test]
    fn every_step_is_reached_once() {
        let mut steps = vec![Step::Charges];
        while let Some(next) = steps.last().and_then(|step| step.next()) {
            steps.push(next);
        }
        assert_eq!(steps, Step::ALL);
        assert!(Step::ALL.into_iter().all(|step| Step::parse(step.as_str()) == Some(step)));
    }
}
