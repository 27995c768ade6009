//! Whether the process lives, whether it may be given requests, and how it is.
//!
//! Being alive asks nobody: a liveness probe that touched the database would restart every replica when the
//! database is down. Being ready asks what the service cannot do without; what it can do without only makes
//! it *degraded*.
//!
//! Checks run side by side under one deadline, and their outcome is shared for a moment, so that probes never
//! become load. What a check says is shown to whoever can reach the listener: a fixed sentence, and no
//! credentials; the details of a failure go to the log.
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

/// All checks of a round together.
const DEADLINE: Duration = Duration::from_secs(1);

/// How long the outcome of a round is shared.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// How one component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It does what it should.
    Healthy,
    /// It does not, and the service can do without.
    Degraded,
    /// It does not, and the service cannot do without.
    Unhealthy,
}

/// Why a check failed, in a sentence that is written in the code: it cannot contain a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckError(pub &'static str);

/// What a check says: nothing or something worth knowing when all is well, otherwise why it is not.
pub type CheckResult = Result<Option<String>, CheckError>;

/// What `/health` says about one component.
#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// How it is.
    pub status: Status,
    /// What is worth knowing.
    pub message: Option<String>,
    /// How long the check took, in milliseconds.
    pub latency_ms: Option<u64>,
}

/// The answer to a readiness probe.
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    /// `ready` or `not_ready`.
    pub status: &'static str,
    /// How each component is.
    pub checks: BTreeMap<&'static str, Status>,
}

impl Readiness {
    /// Whether the service may be given requests.
    pub fn is_ready(&self) -> bool {
        !self.checks.values().any(|status| *status == Status::Unhealthy)
    }
}

/// The answer to `/health`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `ok`, `degraded` or `unhealthy`: the worst of the checks.
    pub status: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// How long the process has been running, in seconds.
    pub uptime_seconds: u64,
    /// The build that runs.
    pub build: BuildInfo,
    /// How each component is.
    pub checks: BTreeMap<&'static str, Component>,
    /// What else is worth knowing, by name.
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
    /// What a failure makes of the component.
    failed: Status,
    check: Check,
}

/// The outcome of all checks, at one time.
#[derive(Debug, Clone)]
struct Round {
    finished: Instant,
    components: Arc<BTreeMap<&'static str, Component>>,
}

/// Names what [`Health`] is made of.
pub struct Builder {
    build: BuildInfo,
    checks: Vec<NamedCheck>,
    sections: Vec<(&'static str, Section)>,
}

impl Builder {
    /// Without this, the service is not ready.
    #[must_use]
    pub fn required<F, C>(self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = CheckResult> + Send + 'static,
    {
        self.check(name, Status::Unhealthy, check)
    }

    /// Without this, the service is degraded.
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

    /// Adds a section to `/health`. It must not wait for anything.
    #[must_use]
    pub fn section(
        mut self,
        name: &'static str,
        section: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Self {
        self.sections.push((name, Box::new(section)));
        self
    }

    /// The health of a process that starts now.
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
    /// Begins with no checks.
    pub fn builder(build: BuildInfo) -> Builder {
        Builder { build, checks: Vec::new(), sections: Vec::new() }
    }

    /// From now on the service is not ready: load balancers are to look elsewhere. There is no way back.
    pub fn fail_readiness(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the service may be given requests, and why not.
    pub async fn readiness(&self) -> Readiness {
        let checks = self.components().await.into_iter().map(|(name, component)| (name, component.status));
        let mut readiness = Readiness { status: "ready", checks: checks.collect() };
        if !readiness.is_ready() {
            readiness.status = "not_ready";
        }
        readiness
    }

    /// Everything there is to know.
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
        // Never shared: a process that begins to drain must not look ready for a moment longer.
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
            // The round's task is gone: the runtime is ending, and nobody may rely on this process.
            _ => {
                self.0.checks.iter().map(|check| (check.name, check.component(Err(UNKNOWN), None))).collect()
            }
        }
    }

    /// The round under way or just finished; a new one where there is none.
    ///
    /// A round is a task of its own, so that a probe that gives up does not take the others' round with it.
    fn join_round(&self) -> watch::Receiver<Option<Round>> {
        let mut latest = self.0.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = match &*latest.borrow() {
            Some(round) => round.finished.elapsed() < SHARED_FOR,
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

const UNKNOWN: CheckError = CheckError("not known");
const TOO_SLOW: CheckError = CheckError("no answer within the deadline");
const PANICKED: CheckError = CheckError("the check itself failed");

/// Runs all checks side by side.
async fn run(checks: &[NamedCheck]) -> Round {
    let began = Instant::now();
    let running: Vec<_> = checks
        .iter()
        .map(|named| {
            let NamedCheck { name, check, .. } = named.clone();
            let task = tokio::spawn(async move {
                let outcome = timeout_at(began + DEADLINE, check()).await.unwrap_or_else(|_| {
                    tracing::warn!(check = name, "health check did not answer within {DEADLINE:?}");
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
            Err(CheckError(why)) => {
                Component { status: self.failed, message: Some(why.to_owned()), latency_ms }
            }
        }
    }
}

#[cfg(test)]
mod tests;
