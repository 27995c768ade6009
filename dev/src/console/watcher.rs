//! Background tasks of the console.
use std::{path::Path, sync::Arc, time::Duration};

use chrono::Utc;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{AlertingStack, Comparison, ObservedSystem, Replica, ReplicaHealth, State, lock, now::Snapshot};
use crate::{example, process::Follower, project};

/// Interval of rule evaluations.
const ALERTS_INTERVAL: Duration = Duration::from_secs(5);

/// Minimum pause between reconciliations, because a reconciliation reads the tables and the external ledger completely.
const MIN_RECONCILIATION_INTERVAL: Duration = Duration::from_secs(30);

/// Minimum pause between reconciliations, as a multiple of the duration of the last reconciliation. With large tables a
/// reconciliation is slow, and this pause limits reconciliations to about 5 % of the time.
const RECONCILIATION_PAUSE_FACTOR: u32 = 20;

/// Scrapes every replica periodically, requests its health, and computes the charts and figures.
pub(super) async fn scrape(state: Arc<State>, every: Duration) {
    let mut clock = interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let replicas = lock(&state.replicas).clone();
        let mut requests = JoinSet::new();
        for replica in replicas {
            requests.spawn(request_status(state.client.clone(), replica));
        }
        let results = requests.join_all().await;
        if let Some(point) = compute(&state, &results) {
            state.latest.send_replace(Some(point));
            state.changed(|counters| counters.now += 1);
        }
    }
}

/// The address of a replica, and its metrics. `None` means that `/metrics` did not respond with status 200.
type ScrapeResult = (String, Option<String>);

async fn request_status(client: reqwest::Client, replica: Replica) -> ScrapeResult {
    let get = async |path: &str| {
        let response = client.get(replica.ops.join(path).ok()?).send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    };
    let (metrics, ready, health) = tokio::join!(get("metrics"), get("readyz"), get("health"));
    let json = |response: Option<&(u16, String)>| {
        response.and_then(|(_, text)| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    *lock(&replica.health) = ReplicaHealth {
        ready_status: ready.as_ref().map(|(status, _)| *status),
        ready: json(ready.as_ref()),
        health: json(health.as_ref()),
    };
    let text = metrics.filter(|(status, _)| *status == 200).map(|(_, text)| text);
    (replica.ops.authority().to_owned(), text)
}

fn compute(state: &State, results: &[ScrapeResult]) -> Option<Snapshot> {
    if results.is_empty() {
        return None;
    }
    let at = Utc::now().timestamp_millis();
    let mut metrics = lock(&state.metrics);
    for (instance, text) in results {
        metrics.record_scrape(at, project::name(), instance, text.as_deref());
    }
    Some(lock(&state.overview).compute(&metrics, at))
}

/// Reads a replica's output until the replica ends.
pub(super) async fn read_log(state: Arc<State>, replica: u16, mut log: Follower) {
    while let Some(line) = log.next().await {
        lock(&state.logs).push(replica, line.text);
        state.changed(|counters| counters.logs += 1);
    }
}

/// Runs the reconciliation periodically.
pub(super) async fn reconcile(state: Arc<State>, compare: Comparison) {
    loop {
        let began = Instant::now();
        let compared = compare().await;
        *lock(&state.reconciliation) = Some(compared);
        state.changed(|counters| counters.reconciliation += 1);
        sleep(MIN_RECONCILIATION_INTERVAL.max(began.elapsed() * RECONCILIATION_PAUSE_FACTOR)).await;
    }
}

/// Waits until the console has received the trace that `/traces/first` shows. Pins the trace, so that the console drops
/// every other trace first when its memory for traces is full. The query [`example::FIRST_TRACE`] selects the trace.
pub(super) async fn find_first_trace(state: Arc<State>, system: ObservedSystem) {
    loop {
        if let Ok(Some(trace_id)) = first_trace(&state, &system).await
            && lock(&state.traces).has(&trace_id)
        {
            lock(&state.traces).pin(&trace_id);
            let _ = state.first_trace.set(trace_id);
            state.changed(|counters| counters.traces += 1);
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn first_trace(state: &State, system: &ObservedSystem) -> Result<Option<String>, sqlx::Error> {
    let mut connection = PgConnection::connect(system.owner_url.as_str()).await?;
    let found =
        sqlx::query_scalar(example::FIRST_TRACE).bind(state.began).fetch_optional(&mut connection).await?;
    connection.close().await?;
    Ok(found)
}

/// Starts Prometheus and Alertmanager if both are installed, and evaluates the rules periodically. If Prometheus runs,
/// the states of the rules in Prometheus replace the states that the console has computed.
pub(super) async fn evaluate_rules(state: Arc<State>, system: ObservedSystem) {
    loop {
        start_alerting(&state, system.prometheus.as_deref());
        let mut rules = {
            let metrics = lock(&state.metrics);
            lock(&state.rules).evaluate(&metrics, Utc::now().timestamp_millis())
        };
        if let Some(alerting) = state.alerting.get() {
            // If Prometheus does not respond, the states that the console has computed remain.
            let _ = alerting.apply_to(&mut rules).await;
        }
        *lock(&state.evaluated_rules) = rules;
        state.changed(|counters| counters.alerts += 1);
        sleep(ALERTS_INTERVAL).await;
    }
}

/// Starts Prometheus and Alertmanager, unless they already run, are not installed, or have no data directory. Does
/// nothing before the first replica is known. A failed start is retried at the next evaluation.
fn start_alerting(state: &State, directory: Option<&Path>) {
    let target = lock(&state.replicas).first().map(|replica| replica.ops.clone());
    if let (Some(directory), Some(target), None) = (directory, target, state.alerting.get())
        && let Ok(Some(alerting)) =
            AlertingStack::start(directory, &target, &state.inbox.address().to_string())
    {
        let _ = state.alerting.set(alerting);
    }
}

/// Notifies the open pages of every change of a fault or of the primary.
pub(super) async fn report_changes<T>(state: Arc<State>, mut changes: watch::Receiver<T>) {
    while changes.changed().await.is_ok() {
        state.changed(|counters| counters.faults += 1);
    }
}
