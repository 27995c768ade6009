//! Background work: workers, and tasks that requests or workers start.
//!
//! [`Workers`] run a unit of work at an interval, as long as the process runs. If a unit fails or panics, the failure
//! is logged, and the worker tries again after a pause. Shutdown stops workers between two units. A unit that still
//! runs at the deadline is aborted.
//!
//! [`BackgroundTasks`] must finish even if the request or the unit that started them ends first. Shutdown waits for
//! them until the same deadline.
mod background_tasks;

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use prometheus::Gauge;
use serde::Serialize;
use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{Instrument, Span, field};

pub use self::background_tasks::BackgroundTasks;
use super::{
    resilience::retry::Backoff,
    telemetry::correlation::{self, Context, CorrelationId},
};

crate::metrics! {
    /// Time at which a worker last completed a unit of work, or was started.
    static LAST_SUCCESS: float_gauge = "worker_last_success_timestamp_seconds" { worker };
}

/// Backoff after failures. The first pauses are short, so that a worker with a long interval recovers quickly from a
/// short failure. The longest pause is short, so that a worker with a short interval recovers quickly after an
/// outage.
const FAILURE_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Minimum interval. An interval of zero would keep a core busy without work.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The result of a unit of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No more work is left. The next unit runs after the interval.
    Idle,
    /// More work is left. The next unit runs immediately.
    More,
}

/// The background workers of the process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Workers(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tasks: TaskTracker,
    stopping: CancellationToken,
    aborting: CancellationToken,
    workers: Mutex<Vec<Arc<Worker>>>,
}

struct Worker {
    name: &'static str,
    interval: Duration,
    heartbeat: Gauge,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
struct State {
    last_success: Option<DateTime<Utc>>,
    consecutive_failures: u32,
    ended: bool,
}

/// The status of one worker, for `/health`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The worker's name.
    pub name: &'static str,
    /// Seconds between two units when no work is left.
    pub interval_seconds: f64,
    /// Time of the last successful unit in this process. `None` before the first success.
    pub last_success: Option<DateTime<Utc>>,
    /// Number of failed units since the last successful one.
    pub consecutive_failures: u32,
}

impl Workers {
    /// Returns an empty set of workers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a worker, which runs `unit` immediately. After each unit that left no more work, the worker waits for
    /// `interval`.
    ///
    /// The name is the worker's label in `worker_last_success_timestamp_seconds`.
    pub fn spawn<F, W, E>(&self, name: &'static str, interval: Duration, unit: F)
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = Result<Progress, E>> + Send + 'static,
        E: Error + Send + 'static,
    {
        let worker = Arc::new(Worker {
            name,
            interval: interval.max(MIN_INTERVAL),
            heartbeat: LAST_SUCCESS.with_label_values(&[name]),
            state: Mutex::new(State { last_success: None, consecutive_failures: 0, ended: false }),
        });
        worker.beat();
        self.workers().push(Arc::clone(&worker));
        let (stopping, aborting) = (self.0.stopping.clone(), self.0.aborting.clone());
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = supervise(&worker, Arc::new(unit), &stopping) => worker.lock().ended = true,
                () = aborting.cancelled() => {}
            }
        });
    }

    /// Returns the status of each worker, in the order in which they were started.
    pub fn status(&self) -> Vec<Status> {
        let status = |worker: &Arc<Worker>| {
            let State { last_success, consecutive_failures, .. } = *worker.lock();
            let interval_seconds = worker.interval.as_secs_f64();
            Status { name: worker.name, interval_seconds, last_success, consecutive_failures }
        };
        self.workers().iter().map(status).collect()
    }

    /// Stops every worker between two units of work. At the deadline, units that still run are aborted.
    ///
    /// Returns the names of the aborted workers.
    pub async fn stop(&self, deadline: Instant) -> Vec<&'static str> {
        self.0.stopping.cancel();
        self.0.tasks.close();
        let in_time = timeout_at(deadline, self.0.tasks.wait()).await.is_ok();
        if in_time {
            return Vec::new();
        }
        let aborted =
            self.workers().iter().filter(|worker| !worker.lock().ended).map(|worker| worker.name).collect();
        self.0.aborting.cancel();
        self.0.tasks.wait().await;
        aborted
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Arc<Worker>>> {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self) {
        self.heartbeat.set(seconds(Utc::now()));
    }

    fn succeeded(&self) {
        self.beat();
        *self.lock() = State { last_success: Some(Utc::now()), consecutive_failures: 0, ended: false };
    }

    /// Counts a failure, and returns the pause before the next unit.
    fn failed(&self) -> Duration {
        let mut state = self.lock();
        let pause = FAILURE_BACKOFF.pause(state.consecutive_failures);
        state.consecutive_failures = state.consecutive_failures.saturating_add(1);
        pause
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds since 1970 are exact in an f64 until 2255")]
fn seconds(time: DateTime<Utc>) -> f64 {
    time.timestamp_micros() as f64 / 1e6
}

async fn supervise<F, W, E>(worker: &Worker, unit: Arc<F>, stopping: &CancellationToken)
where
    F: Fn() -> W + Send + Sync + 'static,
    W: Future<Output = Result<Progress, E>> + Send + 'static,
    E: Error + Send + 'static,
{
    while !stopping.is_cancelled() {
        let pause = match run(worker, Arc::clone(&unit)).await {
            Some(Progress::More) => {
                worker.succeeded();
                continue;
            }
            Some(Progress::Idle) => {
                worker.succeeded();
                worker.interval
            }
            None => worker.failed(),
        };
        tokio::select! {
            () = stopping.cancelled() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Runs one unit in a context and a span of its own. Returns `None` if the unit failed, and logs the failure.
async fn run<F, W, E>(worker: &Worker, unit: Arc<F>) -> Option<Progress>
where
    F: Fn() -> W + Send + Sync + 'static,
    W: Future<Output = Result<Progress, E>> + Send + 'static,
    E: Error + Send + 'static,
{
    let context = Context::for_work(CorrelationId::generate());
    let span = tracing::info_span!(
        parent: None,
        "worker",
        otel.name = worker.name,
        otel.status_code = field::Empty,
        worker = worker.name,
    );
    let outcome = async move {
        // The unit runs in a separate task, so that a panic does not end the worker. The task is aborted if this
        // future is dropped.
        let unit = AbortOnDropHandle::new(spawn_in_current_context(async move { unit().await }));
        match unit.await {
            Ok(Ok(progress)) => Some(progress),
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn Error, worker = worker.name, "worker failed");
                None
            }
            Err(ended) => {
                report_panic(worker.name, &ended);
                None
            }
        }
        .or_else(|| {
            Span::current().record("otel.status_code", "error");
            None
        })
    };
    context.scope(outcome.instrument(span)).await
}

fn report_panic(worker: &'static str, ended: &JoinError) {
    // The panic hook has already logged and counted a panic. This line adds the worker's name.
    tracing::error!(worker, panicked = ended.is_panic(), "a worker's unit of work panicked or was cancelled");
}

/// Runs `work` in a separate task, with the current correlation context and span.
pub(super) fn spawn_in_current_context<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let work = work.in_current_span();
    match correlation::current() {
        Some(context) => tokio::spawn(context.scope(work)),
        None => tokio::spawn(work),
    }
}

#[cfg(test)]
mod tests;
