//! Reconciliation: compares the gateway's charges and refunds with the payments and refunds of the database.
//!
//! Recovery polls only for payments that the database has. Reconciliation also finds a charge whose payment the
//! database has lost, for example in a restore, because the gateway's listing has the charge.
//!
//! - The listing only selects the references to check, and the gateway is polled for each of them before a finding is
//!   recorded. An incomplete, repeated or unordered listing therefore causes no false finding. An object that is
//!   missing in one listing is found in a later listing. Only an unreadable object without a reference is recorded
//!   without a poll.
//! - A charge of any age without a payment is a finding. A payment is committed before its charge is sent, and the
//!   database is read after the gateway's response. A missing payment was therefore lost.
//! - A payment without a charge is a finding only after all charges of the compared period were listed. The payment
//!   must also be older than [`MIN_AGE`], because a new charge may be missing in the listing for a while.
//! - A payment or refund without an outcome is skipped while its request may still be calling the gateway.
//! - Each finding is recorded once, as a discrepancy. Reconciliation refunds nothing, and settles only payments and
//!   refunds with an unknown outcome, by the same function as recovery.
//!
//! Memory is bounded, because one page of the listing, or one page of ids, is compared at a time. `listed_at` in the
//! row of a payment or refund is set when its charge or refund is listed, so that a run needs no set of all listed ids.
//!
//! - `comparison`: the rules, without I/O
//! - `charges`, `refunds`: the comparison of a page of the listing, and the poll for one reference
//! - `worker`: the periodic runs, by one replica at a time
//! - `metrics`: the metrics of reconciliation
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

pub use self::comparison::FindingKind;
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

/// Time added at the beginning of a listed period. A `recent` run reads the listing from this long before the beginning
/// of the latest complete run. The command `payments reconcile` reads the listing from this long before its `--since`.
/// The overlap covers the delay of new charges and refunds in the gateway's listing, and the difference between clocks.
const OVERLAP: TimeDelta = TimeDelta::minutes(2);

/// Minimum age of a payment or refund for which a missing charge or refund of the gateway is a finding.
const MIN_AGE: TimeDelta = TimeDelta::minutes(10);

/// Maximum number of references for which the gateway is polled at the same time.
const MAX_CONCURRENT_POLLS: usize = 8;

/// Number of payments or refunds in a page of ids. Each page is searched for unlisted records: payments and refunds
/// that moved money, and whose charge or refund was not in any listing yet.
const ID_PAGE: i64 = 1000;

/// Maximum number of unlisted payments or refunds of one page for which the gateway is polled.
const MAX_UNLISTED: usize = 50;

/// Maximum number of attempts of the command `payments reconcile` to compare a page, and the pause between attempts.
const MAX_ATTEMPTS: u32 = 5;
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// A difference between the gateway's objects and the stored records.
#[derive(Debug, Clone)]
pub struct Finding {
    /// `payments` or `refunds`.
    pub resource: &'static str,
    /// The id of the payment or refund, or the gateway's reference if no record has that reference. `None` if the
    /// reference is unreadable.
    pub id: Option<Uuid>,
    /// The kind of the discrepancy in a few words, such as `second charge`.
    pub what: &'static str,
    /// Value that the gateway reports.
    pub gateway_says: String,
    /// Value that is stored.
    pub we_say: &'static str,
    /// State of the finding's discrepancy.
    pub state: FindingState,
}

/// State of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingState {
    /// Recorded by this comparison.
    New,
    /// Recorded before, and still open.
    Known,
    /// Recorded before, and closed by an operator.
    Closed,
}

/// Result of comparing one page, or one reference of a page.
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
        let closed = page.findings.iter().filter(|finding| finding.state == FindingState::Closed).count();
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

/// The reason why a page was not compared completely. The page can be compared again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The gateway's listing could not be read.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The gateway's response to a poll is missing or unusable.
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

/// A part of a run.
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

/// The parameters of a run: the compared period, the last step, and the records to poll for.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Beginning of the compared period.
    since: DateTime<Utc>,
    started_at: DateTime<Utc>,
    last_step: Step,
    /// True if the steps for unlisted records also poll for a record whose missing charge or refund is already recorded
    /// as a discrepancy.
    includes_recorded: bool,
}

/// The next page of a run.
#[derive(Debug, Clone)]
struct Position {
    step: Step,
    /// The gateway's cursor, or the last compared id. `None` at the beginning of the step.
    after: Option<String>,
}

impl Payments {
    /// Compares everything since a time, page by page, and passes each finding to `on_finding` once, after its page.
    ///
    /// # Errors
    /// If a page could not be compared in [`MAX_ATTEMPTS`] attempts.
    pub async fn reconcile(
        &self,
        since: DateTime<Utc>,
        mut on_finding: impl FnMut(&Finding),
    ) -> Result<Summary, ReconcileError> {
        let since = since.checked_sub_signed(OVERLAP).unwrap_or(since);
        let run =
            Run { since, started_at: Utc::now(), last_step: Step::UnlistedRefunds, includes_recorded: true };
        let mut position = Position { step: Step::Charges, after: None };
        let mut total = Summary::default();
        let mut reported = BTreeSet::new();
        let mut failures = 0;
        loop {
            match self.compare_page(run, &position).await {
                Ok((mut outcome, next)) => {
                    failures = 0;
                    // The listing may repeat an object, and a later step may compare the same object again.
                    outcome.findings.retain(|finding| {
                        let Finding { resource, id, what, gateway_says, .. } = finding;
                        reported.insert((*resource, *id, *what, gateway_says.clone()))
                    });
                    outcome.findings.iter().for_each(&mut on_finding);
                    total.add(&outcome);
                    let Some(next) = next else { return Ok(total) };
                    position = next;
                }
                Err(error) => {
                    failures += 1;
                    if failures >= MAX_ATTEMPTS {
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
        let after = position.after.as_deref();
        let (outcome, next) = match position.step {
            Step::Charges => self.compare_charges(run.since, cursor(after).as_ref()).await?,
            Step::Refunds => self.compare_refunds(run.since, cursor(after).as_ref()).await?,
            Step::UnlistedPayments => {
                let range = id_range(run, after);
                let page = store::payments_in_range(
                    &self.0.database,
                    range,
                    run.includes_recorded,
                    PAYMENT_WITHOUT_CHARGE,
                )
                .await?;
                let (references, next) = unlisted(&page);
                (self.poll_all(references, Self::compare_payment).await?, next)
            }
            Step::UnlistedRefunds => {
                let range = id_range(run, after);
                let page = store::refunds_in_range(
                    &self.0.database,
                    range,
                    run.includes_recorded,
                    REFUND_WITHOUT_GATEWAY_REFUND,
                )
                .await?;
                let (references, next) = unlisted(&page);
                (self.poll_all(references, Self::compare_refund).await?, next)
            }
        };
        let next = match next {
            Some(after) => Some(Position { step: position.step, after: Some(after) }),
            None if position.step == run.last_step => None,
            None => position.step.next().map(|step| Position { step, after: None }),
        };
        Ok((outcome, next))
    }

    /// Polls the gateway for each reference, up to [`MAX_CONCURRENT_POLLS`] at a time.
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

    /// Records a finding, unless it was recorded before, and returns the finding with its state.
    async fn record_finding(
        &self,
        resource: &'static str,
        id: Option<Uuid>,
        what: &'static str,
        gateway_says: String,
        we_say: &'static str,
    ) -> Result<Finding, ReconcileError> {
        let discrepancy = Discrepancy { resource, id, what, gateway_says: &gateway_says, we_say };
        let state = if self.record_discrepancy(&discrepancy).await? {
            RECONCILIATION_DISCREPANCIES.with_label_values(&[FindingKind::of(what).as_str()]).inc();
            FindingState::New
        } else if self.is_closed(&discrepancy).await? {
            FindingState::Closed
        } else {
            FindingState::Known
        };
        Ok(Finding { resource, id, what, gateway_says, we_say, state })
    }
}

fn cursor(after: Option<&str>) -> Option<Cursor> {
    after.and_then(|text| Cursor::try_from(text.to_owned()).ok())
}

/// Returns the range of ids that a run compares after a position. The range contains only records that are older than
/// [`MIN_AGE`]. The range begins [`OVERLAP`] after the beginning of the listing, so that the listing has the charges of
/// the first payments even if the clocks differ.
fn id_range(run: Run, after: Option<&str>) -> IdRange {
    let first = first_id_at(run.since.checked_add_signed(OVERLAP).unwrap_or(run.since));
    let after = after.and_then(|id| id.parse().ok()).unwrap_or(first);
    let before = first_id_at(run.started_at.checked_sub_signed(MIN_AGE).unwrap_or(run.started_at));
    IdRange { after, before, limit: ID_PAGE }
}

/// Returns the smallest `UUIDv7` that can be generated at a time.
fn first_id_at(time: DateTime<Utc>) -> Uuid {
    let milliseconds = u64::try_from(time.timestamp_millis()).unwrap_or(0);
    Builder::from_unix_timestamp_millis(milliseconds, &[0; 10]).into_uuid()
}

/// Returns the references of a page's unlisted records, at most [`MAX_UNLISTED`], and the id after which the next page
/// begins. The id is `None` after the last page.
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
    fn a_page_ends_after_the_maximum_number_of_polled_records() {
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
    fn only_old_records_are_searched_in_the_listing() {
        let started_at = Utc::now();
        let since = started_at - TimeDelta::hours(48) - OVERLAP;
        let run = Run { since, started_at, last_step: Step::UnlistedRefunds, includes_recorded: false };
        let first = id_range(run, None);
        assert_eq!(first.after, first_id_at(started_at - TimeDelta::hours(48)));
        assert_eq!(first.before, first_id_at(started_at - TimeDelta::minutes(10)));
        let later = Uuid::now_v7();
        assert_eq!(id_range(run, Some(&later.to_string())).after, later);
    }

    #[test]
    fn the_first_id_at_a_time_separates_earlier_and_later_ids() {
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
