//! The periodic runs of reconciliation, by one replica at a time.
//!
//! There are two scopes. `recent` compares the newest minutes at every reconciliation interval (15 seconds by default),
//! so that a charge without a payment is found within a minute. `window` compares two days every hour, and finds
//! objects that earlier listings lacked, and payments without a charge.
//!
//! A unit of work is one page, so that the shutdown waits for at most one page of each scope. The position of the next
//! page is stored in the database, so that another replica can continue after the lease has expired. The lease only
//! distributes the work: if two replicas compare the same page, the result is the same.
use std::time::Duration;

use platform::workers::{Progress, Workers};
use uuid::Uuid;

use super::{
    OVERLAP, Outcome, Position, ReconcileError, Run, Step,
    metrics::{LAST_RECONCILIATION, RECONCILED},
};
use crate::slices::payments::{
    Payments,
    gateway::PageError,
    store::reconciliation::{self as store, RunLimits},
};

/// Time for which one replica exclusively reads the listing. This time exceeds the usual duration of comparing a page.
const LEASE: Duration = Duration::from_secs(30);

/// Length of the period that `window` compares, and maximum length of the period that `recent` compares after an
/// outage.
const WINDOW: Duration = Duration::from_hours(48);

/// Pause between two runs of `window`.
const WINDOW_INTERVAL: Duration = Duration::from_hours(1);

/// Maximum number of pages of a run, including repeated pages. Only a listing whose cursors form a cycle has more
/// pages.
const MAX_PAGES: i32 = 1_000_000;

/// The kinds of runs, by the period that they compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The time since the beginning of the latest complete run, and a short overlap before that.
    Recent,
    /// The last two days.
    Window,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 2] = [Self::Recent, Self::Window];

    /// Returns the name as written in SQL and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recent => "recent",
            Self::Window => "window",
        }
    }

    /// Returns the duration from the beginning of the compared period to the beginning of the latest complete run. No
    /// run compares more than the last 48 hours ([`WINDOW`]), so every run of `window` compares exactly these.
    fn lookback(self) -> Duration {
        match self {
            Self::Recent => OVERLAP.to_std().unwrap_or_default(),
            Self::Window => WINDOW,
        }
    }

    /// Returns the last step of a run. `recent` skips the steps for unlisted records, because the listing may still
    /// lack new charges.
    fn last_step(self) -> Step {
        match self {
            Self::Recent => Step::Refunds,
            Self::Window => Step::UnlistedRefunds,
        }
    }
}

/// Starts a worker for each scope.
pub(in crate::slices::payments) fn start_workers(payments: &Payments, workers: &Workers) {
    let replica = Uuid::now_v7();
    for (name, scope) in [("reconciliation", Scope::Recent), ("reconciliation_window", Scope::Window)] {
        let payments = payments.clone();
        let interval = payments.0.reconciliation_interval;
        workers.spawn(name, interval, move || compare_due_page(payments.clone(), scope, replica));
    }
}

/// Compares the next page of a scope, if a page is due and no other replica has the lease. Also updates the metric of
/// the latest complete run, except if the run continues immediately with its next page.
///
/// # Errors
/// If a statement other than those of a settlement fails. A failed settlement, a failed call to the gateway or a panic
/// of a poll is not an error, because a later unit of work repeats the page or the run. After repeated failures, the
/// metric shows that the latest complete run is old.
async fn compare_due_page(payments: Payments, scope: Scope, replica: Uuid) -> Result<Progress, sqlx::Error> {
    let progress = compare_next_page(&payments, scope, replica).await?;
    if progress == Progress::Idle {
        let began = store::last_complete_run(&payments.0.database, scope.as_str()).await?;
        LAST_RECONCILIATION.with_label_values(&[scope.as_str()]).set(began);
    }
    Ok(progress)
}

async fn compare_next_page(
    payments: &Payments,
    scope: Scope,
    replica: Uuid,
) -> Result<Progress, sqlx::Error> {
    let database = &payments.0.database;
    let name = scope.as_str();
    let limits = RunLimits { lease: LEASE, lookback: scope.lookback(), max_lookback: WINDOW };
    let Some(leased) = store::lease_run(database, name, replica, limits).await? else {
        return Ok(Progress::Idle);
    };
    let retry = payments.0.reconciliation_interval;
    if leased.pages > MAX_PAGES {
        tracing::error!(scope = name, pages = leased.pages, "the gateway's listing has no end");
        store::end_run(database, name, replica, false, retry).await?;
        return Ok(Progress::Idle);
    }
    let run = Run {
        since: leased.since,
        started_at: leased.started_at,
        last_step: scope.last_step(),
        includes_recorded: false,
    };
    let step = Step::parse(&leased.step).unwrap_or(Step::Charges);
    match payments.compare_page(run, &Position { step, after: leased.position }).await {
        Ok((outcome, Some(next))) => {
            count_compared(&outcome);
            store::advance_run(database, name, replica, next.step.as_str(), next.after.as_deref()).await?;
            Ok(Progress::More)
        }
        Ok((outcome, None)) => {
            count_compared(&outcome);
            let interval = match scope {
                Scope::Recent => payments.0.reconciliation_interval,
                Scope::Window => WINDOW_INTERVAL,
            };
            store::end_run(database, name, replica, true, interval).await?;
            Ok(Progress::Idle)
        }
        Err(ReconcileError::Database(error)) => Err(error),
        Err(ReconcileError::Page(PageError::Rejected(status))) => {
            // The cursor of an interrupted run may have expired, so the next run begins with the first page.
            tracing::error!(scope = name, %status, "the gateway rejected the listing; a new run follows");
            store::end_run(database, name, replica, false, retry).await?;
            Ok(Progress::Idle)
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, scope = name, "failed to compare a page; the worker retries the page");
            Ok(Progress::Idle)
        }
    }
}

fn count_compared(outcome: &Outcome) {
    let to_u64 = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    RECONCILED.with_label_values(&["charges"]).inc_by(to_u64(outcome.charges));
    RECONCILED.with_label_values(&["refunds"]).inc_by(to_u64(outcome.refunds));
}
