//! Background tasks of the console.
use std::{path::Path, sync::Arc, time::Duration};

use chrono::Utc;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{AlertingStack, Comparison, Condition, ObservedSystem, Replica, State, lock, now::Snapshot};
use crate::{example, process::Follower, project};

/// Interval of rule evaluations.
const ALERTS_INTERVAL: Duration = Duration::from_secs(5);

/// Minimum interval of reconciliations, because a reconciliation reads both sides completely.
const BOOKS_INTERVAL: Duration = Duration::from_secs(30);

/// Minimum pause after a reconciliation, as a multiple of its duration. The pause limits the load of large tables to
/// that of small tables.
const BOOKS_REST: u32 = 20;

/// Scrapes every replica, requests its health, and computes the figures.
pub(super) async fn scrape(state: Arc<State>, every: Duration) {
    let mut clock = interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let replicas = lock(&state.replicas).clone();
        let mut asked = JoinSet::new();
        for replica in replicas {
            asked.spawn(ask(state.client.clone(), replica));
        }
        let answers = asked.join_all().await;
        if let Some(point) = compute(&state, &answers) {
            state.latest.send_replace(Some(point));
            state.changed(|pulse| pulse.now += 1);
        }
    }
}

/// The response of one replica: its address and its metrics.
type ScrapeResult = (String, Option<String>);

async fn ask(client: reqwest::Client, replica: Replica) -> ScrapeResult {
    let get = async |path: &str| {
        let answer = client.get(replica.ops.join(path).ok()?).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    };
    let (metrics, ready, health) = tokio::join!(get("metrics"), get("readyz"), get("health"));
    let json = |answer: Option<&(u16, String)>| {
        answer.and_then(|(_, text)| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    *lock(&replica.health) = Condition {
        ready_status: ready.as_ref().map(|(status, _)| *status),
        ready: json(ready.as_ref()),
        health: json(health.as_ref()),
    };
    let text = metrics.filter(|(status, _)| *status == 200).map(|(_, text)| text);
    (replica.ops.authority().to_owned(), text)
}

fn compute(state: &State, answers: &[ScrapeResult]) -> Option<Snapshot> {
    if answers.is_empty() {
        return None;
    }
    let at = Utc::now().timestamp_millis();
    let mut metrics = lock(&state.metrics);
    for (instance, text) in answers {
        metrics.scraped(at, project::name(), instance, text.as_deref());
    }
    Some(lock(&state.overview).look(&metrics, at))
}

/// Reads a replica's output until the replica ends.
pub(super) async fn read_log(state: Arc<State>, replica: u16, mut log: Follower) {
    while let Some(line) = log.next().await {
        lock(&state.logs).push(replica, line.text);
        state.changed(|pulse| pulse.logs += 1);
    }
}

/// Runs the reconciliation periodically.
pub(super) async fn compare_books(state: Arc<State>, compare: Comparison) {
    loop {
        let began = Instant::now();
        let compared = compare().await;
        *lock(&state.books) = Some(compared);
        state.changed(|pulse| pulse.books += 1);
        sleep(BOOKS_INTERVAL.max(began.elapsed() * BOOKS_REST)).await;
    }
}

/// Waits for the trace that `/traces/first` shows, and pins it.
pub(super) async fn find_first(state: Arc<State>, scene: ObservedSystem) {
    loop {
        if let Ok(Some(trace_id)) = first(&state, &scene).await
            && lock(&state.traces).has(&trace_id)
        {
            lock(&state.traces).pin(&trace_id);
            let _ = state.first.set(trace_id);
            state.changed(|pulse| pulse.traces += 1);
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn first(state: &State, scene: &ObservedSystem) -> Result<Option<String>, sqlx::Error> {
    let mut connection = PgConnection::connect(scene.owner_url.as_str()).await?;
    let found =
        sqlx::query_scalar(example::FIRST_TRACE).bind(state.began).fetch_optional(&mut connection).await?;
    connection.close().await?;
    Ok(found)
}

/// Evaluates the rules, with a real Prometheus if there is one.
pub(super) async fn alert(state: Arc<State>, scene: ObservedSystem) {
    loop {
        begin_alerting(&state, scene.prometheus.as_deref());
        let mut rules = {
            let metrics = lock(&state.metrics);
            lock(&state.rules).look(&metrics, Utc::now().timestamp_millis())
        };
        if let Some(alerting) = state.alerting.get() {
            // Until Prometheus responds, the console's own states remain.
            let _ = alerting.judge(&mut rules).await;
        }
        *lock(&state.standing) = rules;
        state.changed(|pulse| pulse.alerts += 1);
        sleep(ALERTS_INTERVAL).await;
    }
}

/// Starts Prometheus as soon as the first replica can be scraped.
fn begin_alerting(state: &State, directory: Option<&Path>) {
    let target = lock(&state.replicas).first().map(|replica| replica.ops.clone());
    if let (Some(directory), Some(target), None) = (directory, target, state.alerting.get())
        && let Ok(Some(alerting)) =
            AlertingStack::start(directory, &target, &state.inbox.address().to_string())
    {
        let _ = state.alerting.set(alerting);
    }
}

/// Notifies the open pages of every fault switch and every change of the primary, regardless of the caller.
pub(super) async fn report_changes<T>(state: Arc<State>, mut changes: watch::Receiver<T>) {
    while changes.changed().await.is_ok() {
        state.changed(|pulse| pulse.faults += 1);
    }
}
