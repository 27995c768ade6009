//! Readiness and the health report.
//!
//! Liveness is the route `/healthz` in the module `ops`, and checks no dependency. If it checked the database, an
//! outage of the database would restart every replica. Readiness fails if a required dependency has failed, or if the
//! process is shutting down. A failed optional dependency only makes the service *degraded*.
//!
//! Checks run concurrently under one deadline, and their results are cached for a short time, so that probes cause
//! little load. Every client of the operations listener can read a check's message. So the message of a failed check is
//! a fixed sentence without credentials. The details of a failure belong in the log.
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::build_info::BuildInfo;

/// Maximum duration of a round, which runs all checks.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which the results of a round are cached.
const CACHE_TIME: Duration = Duration::from_secs(1);

/// The status of one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The component works.
    Healthy,
    /// The component has failed, and the service works without it.
    Degraded,
    /// The component has failed, and the service requires it.
    Unhealthy,
}

/// The reason why a check failed. It is a constant sentence, so it cannot contain a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckError(pub &'static str);

/// The result of a check: an optional message on success, the reason on failure.
pub type CheckResult = Result<Option<String>, CheckError>;

/// The entry of one component in `/health`.
#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// The status.
    pub status: Status,
    /// An explanation or additional information.
    pub message: Option<String>,
    /// Duration of the check in milliseconds.
    pub latency_ms: Option<u64>,
}

/// The response to a readiness probe.
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    /// `ready` or `not_ready`.
    pub status: &'static str,
    /// The status of each component.
    pub checks: BTreeMap<&'static str, Status>,
}

impl Readiness {
    /// Returns whether the service is ready for requests.
    pub fn is_ready(&self) -> bool {
        !self.checks.values().any(|status| *status == Status::Unhealthy)
    }
}

/// The response to `/health`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `ok`, `degraded` or `unhealthy`: the worst status of all checks.
    pub status: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// Time since [`Builder::build`] was called at the start of the process, in seconds.
    pub uptime_seconds: u64,
    /// The running build.
    pub build: BuildInfo,
    /// The result of each check.
    pub checks: BTreeMap<&'static str, Component>,
    /// Additional sections, by name.
    #[serde(flatten)]
    pub sections: Map<String, Value>,
}

type Check = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = CheckResult> + Send>> + Send + Sync>;
type Section = Box<dyn Fn() -> Value + Send + Sync>;

/// The health of the process. Cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    build: BuildInfo,
    started: Instant,
    draining: AtomicBool,
    checks: Arc<[NamedCheck]>,
    sections: Vec<(&'static str, Section)>,
    latest: Mutex<watch::Receiver<Option<Round>>>,
}

#[derive(Clone)]
struct NamedCheck {
    name: &'static str,
    /// The component's status if the check fails.
    failed: Status,
    check: Check,
}

/// The results of one run of all checks.
#[derive(Debug, Clone)]
struct Round {
    finished: Instant,
    components: Arc<BTreeMap<&'static str, Component>>,
}

/// The builder of a [`Health`] from checks and sections.
pub struct Builder {
    build: BuildInfo,
    checks: Vec<NamedCheck>,
    sections: Vec<(&'static str, Section)>,
}

impl Builder {
    /// Adds a check of a required dependency. While it fails, the service is not ready.
    #[must_use]
    pub fn required<F, C>(self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = CheckResult> + Send + 'static,
    {
        self.check(name, Status::Unhealthy, check)
    }

    /// Adds a check of an optional dependency. While it fails, the service is degraded.
    #[must_use]
    pub fn optional<F, C>(self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = CheckResult> + Send + 'static,
    {
        self.check(name, Status::Degraded, check)
    }

    fn check<F, C>(mut self, name: &'static str, failed: Status, check: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = CheckResult> + Send + 'static,
    {
        let check: Check = Arc::new(move || Box::pin(check()));
        self.checks.push(NamedCheck { name, failed, check });
        self
    }

    /// Adds a section to `/health`. The function must not block.
    #[must_use]
    pub fn section(
        mut self,
        name: &'static str,
        section: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Self {
        self.sections.push((name, Box::new(section)));
        self
    }

    /// Builds the health of a process. The uptime starts at this call.
    pub fn build(self) -> Health {
        let (_, no_round) = watch::channel(None);
        Health(Arc::new(Inner {
            build: self.build,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            checks: self.checks.into(),
            sections: self.sections,
            latest: Mutex::new(no_round),
        }))
    }
}

impl Health {
    /// Returns a builder without checks.
    pub fn builder(build: BuildInfo) -> Builder {
        Builder { build, checks: Vec::new(), sections: Vec::new() }
    }

    /// Makes the service not ready, permanently, so that load balancers send requests elsewhere.
    pub fn fail_readiness(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Returns whether the service is ready for requests, and the status of each component.
    pub async fn readiness(&self) -> Readiness {
        let checks = self.components().await.into_iter().map(|(name, component)| (name, component.status));
        let mut readiness = Readiness { status: "ready", checks: checks.collect() };
        if !readiness.is_ready() {
            readiness.status = "not_ready";
        }
        readiness
    }

    /// Returns the full report.
    pub async fn report(&self) -> Report {
        let checks = self.components().await;
        let worst = checks.values().map(|component| component.status).max_by_key(|status| *status as u8);
        Report {
            status: match worst {
                None | Some(Status::Healthy) => "ok",
                Some(Status::Degraded) => "degraded",
                Some(Status::Unhealthy) => "unhealthy",
            },
            version: self.0.build.version,
            uptime_seconds: self.0.started.elapsed().as_secs(),
            build: self.0.build,
            checks,
            sections: self.0.sections.iter().map(|(name, section)| ((*name).to_owned(), section())).collect(),
        }
    }

    async fn components(&self) -> BTreeMap<&'static str, Component> {
        let mut components = self.latest_round().await;
        // This component is not cached, so that a draining process is reported as not ready immediately.
        let status =
            if self.0.draining.load(Ordering::Relaxed) { Status::Unhealthy } else { Status::Healthy };
        let message = (status == Status::Unhealthy).then(|| "the process is shutting down".to_owned());
        components.insert("draining", Component { status, message, latency_ms: None });
        components
    }

    async fn latest_round(&self) -> BTreeMap<&'static str, Component> {
        let mut round = self.join_round();
        let finished = round.wait_for(Option::is_some).await;
        match finished.as_deref() {
            Ok(Some(round)) => (*round.components).clone(),
            // The round's task has ended because the runtime is shutting down. So every check counts as failed.
            _ => {
                self.0.checks.iter().map(|check| (check.name, check.component(Err(UNKNOWN), None))).collect()
            }
        }
    }

    /// Returns the round that is in progress, or that finished less than [`CACHE_TIME`] ago. Starts a new round if
    /// there is none.
    ///
    /// A round is a separate task, so that a probe that disconnects does not cancel the round for the other probes.
    fn join_round(&self) -> watch::Receiver<Option<Round>> {
        let mut latest = self.0.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = match &*latest.borrow() {
            Some(round) => round.finished.elapsed() < CACHE_TIME,
            None => latest.has_changed().is_ok(),
        };
        if !usable {
            let (finish, round) = watch::channel(None);
            let checks = Arc::clone(&self.0.checks);
            tokio::spawn(async move { finish.send(Some(run(&checks).await)) });
            *latest = round;
        }
        latest.clone()
    }
}

const UNKNOWN: CheckError = CheckError("the result of the check is unknown");
const TOO_SLOW: CheckError = CheckError("timed out");
const PANICKED: CheckError = CheckError("the check panicked");

/// Runs all checks concurrently.
async fn run(checks: &[NamedCheck]) -> Round {
    let began = Instant::now();
    let running: Vec<_> = checks
        .iter()
        .map(|named| {
            let NamedCheck { name, check, .. } = named.clone();
            let task = tokio::spawn(async move {
                let outcome = timeout_at(began + ROUND_TIMEOUT, check()).await.unwrap_or_else(|_| {
                    tracing::warn!(check = name, "health check timed out after {ROUND_TIMEOUT:?}");
                    Err(TOO_SLOW)
                });
                (outcome, began.elapsed())
            });
            (named, task)
        })
        .collect();
    let mut components = BTreeMap::new();
    for (named, task) in running {
        let component = match task.await {
            Ok((outcome, latency)) => named.component(outcome, Some(latency)),
            Err(_) => named.component(Err(PANICKED), None),
        };
        components.insert(named.name, component);
    }
    Round { finished: Instant::now(), components: Arc::new(components) }
}

impl NamedCheck {
    fn component(&self, outcome: CheckResult, latency: Option<Duration>) -> Component {
        let latency_ms = latency.map(|latency| latency.as_millis().try_into().unwrap_or(u64::MAX));
        match outcome {
            Ok(message) => Component { status: Status::Healthy, message, latency_ms },
            Err(CheckError(reason)) => {
                Component { status: self.failed, message: Some(reason.to_owned()), latency_ms }
            }
        }
    }
}

#[cfg(test)]
mod tests;
