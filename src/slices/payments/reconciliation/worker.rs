//! The periodic runs of reconciliation, by one replica at a time.
//!
//! There are two scopes. `recent` compares the newest minutes at every interval, so that a charge without a payment is
//! found within a minute. `window` compares two days every hour, and so finds what was missing in the listing before.
//!
//! A unit of work is one page, so that shutdown waits for one page only. The position of the next page is stored in
//! the database, where another replica continues if the lease expires. The lease distributes the work; a page that two
//! replicas compare at once has the same result.
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

/// Time for which one replica reads the listing exclusively. It exceeds the usual time of a page.
const LEASE: Duration = Duration::from_secs(30);

/// Length of the window, and the maximum length of the newest minutes after an outage.
const WINDOW: Duration = Duration::from_hours(48);

/// Interval between two runs over the window.
const WINDOW_INTERVAL: Duration = Duration::from_hours(1);

/// Maximum number of pages of a run. Only a listing whose cursors repeat has more.
const MAX_PAGES: i32 = 1_000_000;

/// The time that a run compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The time since the latest complete run, and some minutes before it.
    Recent,
    /// Two days.
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

    /// Returns the time before the latest complete run at which a run begins.
    fn reach(self) -> Duration {
        match self {
            Self::Recent => OVERLAP.to_std().unwrap_or_default(),
            Self::Window => WINDOW,
        }
    }

    /// Returns the last step of a run. In the newest minutes, every charge may still be missing in the listing.
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

/// Compares the next page of a scope, if one is due and no other replica has the lease. Before a pause, exports when
/// the latest complete run began.
///
/// # Errors
/// If a statement fails. A failed call of the gateway is not an error: a later unit repeats the page, and the age of
/// the latest complete run is exported.
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
    let limits = RunLimits { lease: LEASE, reach: scope.reach(), max_reach: WINDOW };
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
        repeated: false,
    };
    let step = Step::parse(&leased.step).unwrap_or(Step::Charges);
    match payments.compare_page(run, &Position { step, within: leased.position }).await {
        Ok((outcome, Some(next))) => {
            count(&outcome);
            store::advance_run(database, name, replica, next.step.as_str(), next.within.as_deref()).await?;
            Ok(Progress::More)
        }
        Ok((outcome, None)) => {
            count(&outcome);
            let interval = match scope {
                Scope::Recent => payments.0.reconciliation_interval,
                Scope::Window => WINDOW_INTERVAL,
            };
            store::end_run(database, name, replica, true, interval).await?;
            Ok(Progress::Idle)
        }
        Err(ReconcileError::Database(error)) => Err(error),
        Err(ReconcileError::Page(PageError::Rejected(status))) => {
            // The gateway may no longer know the cursor of an interrupted run.
            tracing::error!(scope = name, %status, "the gateway rejected the listing; the run begins again");
            store::end_run(database, name, replica, false, retry).await?;
            Ok(Progress::Idle)
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, scope = name, "failed to compare a page; a later run repeats it");
            Ok(Progress::Idle)
        }
    }
}

fn count(outcome: &Outcome) {
    let compared = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    RECONCILED.with_label_values(&["charges"]).inc_by(compared(outcome.charges));
    RECONCILED.with_label_values(&["refunds"]).inc_by(compared(outcome.refunds));
}
