use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{mpsc, oneshot};

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("no luck")]
struct TestError;

const INTERVAL: Duration = Duration::from_mins(1);

fn in_five_seconds() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Starts a worker whose units return the results of `script`. Returns a channel with the times at which the units
/// started.
fn scripted(
    workers: &Workers,
    name: &'static str,
    script: fn(usize) -> Result<Progress, TestError>,
) -> mpsc::UnboundedReceiver<Instant> {
    let (sender, times) = mpsc::unbounded_channel();
    let count = AtomicUsize::new(0);
    workers.spawn(name, INTERVAL, move || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let _ = sender.send(Instant::now());
        // Some units panic before they return a future, some within the future.
        let early = number.is_multiple_of(2).then(|| script(number));
        async move { early.unwrap_or_else(|| script(number)) }
    });
    times
}

#[tokio::test(start_paused = true)]
async fn more_work_runs_at_once_and_idle_workers_wait() {
    let workers = Workers::new();
    let began = Instant::now();
    let mut times = scripted(&workers, "test_progress", |number| {
        Ok(if number < 2 { Progress::More } else { Progress::Idle })
    });
    for expected in [Duration::ZERO, Duration::ZERO, Duration::ZERO, INTERVAL, INTERVAL * 2] {
        assert_eq!((times.recv().await.unwrap() - began).as_secs(), expected.as_secs());
    }
    assert!(workers.stop(in_five_seconds()).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn failures_and_panics_are_retried_with_growing_pauses() {
    let workers = Workers::new();
    let mut times = scripted(&workers, "test_failures", |number| match number {
        0..5 => Err(TestError),
        5..10 => panic!("a panic of the test"),
        _ => Ok(Progress::Idle),
    });
    let mut last = times.recv().await.unwrap();
    for retry in 0..10 {
        let next = times.recv().await.unwrap();
        assert!(next - last <= FAILURE_BACKOFF.ceiling(retry) + Duration::from_millis(1));
        last = next;
    }
    times.recv().await.unwrap();
    let status = workers.status();
    assert_eq!((status[0].name, status[0].consecutive_failures), ("test_failures", 0));
    assert!(status[0].last_success.is_some());
    workers.stop(in_five_seconds()).await;
}

#[tokio::test(start_paused = true)]
async fn the_heartbeat_advances_only_with_success() {
    let workers = Workers::new();
    let before = seconds(Utc::now());
    let mut times = scripted(&workers, "test_heartbeat", |_| Err(TestError));
    let started = LAST_SUCCESS.with_label_values(&["test_heartbeat"]).get();
    assert!(started >= before);
    for _ in 0..5 {
        times.recv().await.unwrap();
    }
    assert!((LAST_SUCCESS.with_label_values(&["test_heartbeat"]).get() - started).abs() < f64::EPSILON);
    assert!(workers.status()[0].last_success.is_none());
    workers.stop(in_five_seconds()).await;
}

#[tokio::test(start_paused = true)]
async fn every_unit_has_a_correlation_id_of_its_own() {
    let workers = Workers::new();
    let (sender, mut ids) = mpsc::unbounded_channel();
    workers.spawn("test_correlation", INTERVAL, move || {
        let sender = sender.clone();
        async move {
            let _ = sender.send(correlation::current().map(|context| context.correlation_id().clone()));
            Ok::<_, TestError>(Progress::More)
        }
    });
    let (first, second) = (ids.recv().await.unwrap(), ids.recv().await.unwrap());
    assert!(first.is_some() && second.is_some() && first != second);
    workers.stop(in_five_seconds()).await;
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_the_current_unit_only() {
    let workers = Workers::new();
    let (begun, mut units) = mpsc::unbounded_channel();
    workers.spawn("test_stop", INTERVAL, move || {
        let begun = begun.clone();
        async move {
            let (finish, finished) = oneshot::channel::<()>();
            let _ = begun.send(finish);
            let _ = finished.await;
            Ok::<_, TestError>(Progress::More)
        }
    });
    let finish = units.recv().await.unwrap();
    let stopping = tokio::spawn({
        let workers = workers.clone();
        async move { workers.stop(in_five_seconds()).await }
    });
    tokio::task::yield_now().await;
    assert!(!stopping.is_finished());
    finish.send(()).unwrap();
    assert!(stopping.await.unwrap().is_empty());
    assert!(units.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_never_ends_is_aborted_at_the_deadline() {
    let workers = Workers::new();
    let (alive, mut dropped) = mpsc::channel::<()>(1);
    workers.spawn("test_idle", INTERVAL, async || Ok::<_, TestError>(Progress::Idle));
    workers.spawn("test_endless", INTERVAL, move || {
        let alive = alive.clone();
        async move {
            let _alive = alive;
            pending::<Result<Progress, TestError>>().await
        }
    });
    tokio::task::yield_now().await;
    let deadline = in_five_seconds();
    assert_eq!(workers.stop(deadline).await, ["test_endless"]);
    assert!(Instant::now() >= deadline);
    assert!(dropped.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn tracked_work_outlives_its_caller_and_keeps_its_context() {
    let tasks = BackgroundTasks::new();
    let (report, reported) = oneshot::channel();
    let (resume, wait) = oneshot::channel::<()>();
    let id = CorrelationId::generate();
    let caller = Context::for_work(id.clone()).scope(async {
        drop(tasks.run(async move {
            let _ = wait.await;
            let _ = report.send(correlation::current_id());
        }));
    });
    caller.await;
    let draining = tokio::spawn({
        let tasks = tasks.clone();
        async move { tasks.drain(in_five_seconds()).await }
    });
    resume.send(()).unwrap();
    assert_eq!(draining.await.unwrap(), 0);
    assert_eq!(reported.await.unwrap(), id);
}

#[tokio::test(start_paused = true)]
async fn draining_counts_the_unfinished_tasks() {
    let tasks = BackgroundTasks::new();
    tasks.run(pending::<()>());
    tasks.run(async {});
    assert_eq!(tasks.drain(in_five_seconds()).await, 1);
}
