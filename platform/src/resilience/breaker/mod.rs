//! The circuit breaker: leaves a dependency alone that fails, and looks now and then whether it is back.
//!
//! *Closed*, every call is let through, and failures are counted over a sliding window. When enough of
//! enough calls failed it *opens*: calls are refused at once, so that nobody waits for an answer that does
//! not come, and the dependency can recover. After a while it is *half-open*: a few probes are let through,
//! and their outcome decides.
//!
//! The caller gives the verdict, because only the caller knows that a declined card is an answer and a
//! timeout is not. A call that was cancelled before its verdict counts as nothing. The crates that exist
//! (failsafe, recloser, tower-circuitbreaker) wrap the call as a function or as a tower service and judge its
//! `Result`; none has a permit whose verdict comes later, or not at all.
//!
//! State is per process: each replica finds out for itself.
mod circuit;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::time::Instant;

use self::circuit::{Call, Circuit, Verdict};

crate::metrics! {
    /// State of the circuit breaker of a dependency: 0 closed, 1 half-open, 2 open.
    static STATE: gauge = "circuit_breaker_state" { service };
}

/// When a breaker opens, for how long, and what closes it.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How far back outcomes count.
    pub window: Duration,
    /// Fewer outcomes than this in the window never open it: two failures of two calls prove little.
    pub minimum_calls: u32,
    /// The share of failures, of 1, that opens it.
    pub failure_ratio: f64,
    /// How long it refuses every call. At most [`LONGEST_OPEN`]; more is taken as that.
    pub open_for: Duration,
    /// How many probes run at once when half-open, and how many must succeed to close it.
    pub probes: u32,
}

/// A dependency that is back is found within this time: what waits for it must not wait much longer.
pub const LONGEST_OPEN: Duration = Duration::from_secs(10);

/// How a breaker treats calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Calls are let through.
    Closed,
    /// A few probes are let through.
    HalfOpen,
    /// No call is let through.
    Open,
}

impl State {
    /// Its value in `circuit_breaker_state`.
    pub fn as_metric(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        })
    }
}

/// The call was refused: nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open")]
pub struct Open {
    /// When a call may be let through again.
    pub retry_after: Duration,
}

impl Open {
    /// For `Retry-After`: whole seconds, at least one.
    pub fn retry_after_seconds(self) -> u64 {
        self.retry_after.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
    }
}

/// The breaker of one dependency. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

struct Inner {
    name: &'static str,
    settings: Settings,
    circuit: Mutex<Circuit>,
    gauge: IntGauge,
    on_transition: OnceLock<Hook>,
}

type Hook = Box<dyn Fn(State) + Send + Sync>;

impl Breaker {
    /// A closed breaker for the dependency `name`, which is its label in `circuit_breaker_state`.
    pub fn new(name: &'static str, settings: Settings) -> Self {
        let settings = Settings { open_for: settings.open_for.min(LONGEST_OPEN), ..settings };
        let gauge = STATE.with_label_values(&[name]);
        gauge.set(State::Closed.as_metric());
        let circuit = Mutex::new(Circuit::closed(&settings));
        Self(Arc::new(Inner { name, settings, circuit, gauge, on_transition: OnceLock::new() }))
    }

    /// Calls `hook` with the new state after every transition. Only the first hook counts.
    #[must_use]
    pub fn on_transition(self, hook: impl Fn(State) + Send + Sync + 'static) -> Self {
        let _only_the_first = self.0.on_transition.set(Box::new(hook));
        self
    }

    /// The name of the dependency.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The state at this moment. An open breaker whose time has passed is half-open, whoever looks first.
    pub fn state(&self) -> State {
        self.0.change(|circuit, _, now| {
            circuit.half_open_if_due(now);
            circuit.state()
        })
    }

    /// Asks for leave to make one call, whose verdict the permit takes.
    ///
    /// # Errors
    /// The breaker is open, or half-open with all its probes under way.
    pub fn acquire(&self) -> Result<Permit, Open> {
        self.permit(Call::Foreground)
    }

    /// The same for a call that no request waits for. While the breaker is half-open, such calls run one at a time,
    /// beside the probes of [`Self::acquire`]: a worker with much to do must not take all probes, because the requests
    /// of customers would be refused meanwhile.
    ///
    /// # Errors
    /// The breaker is open, or half-open with such a call in flight.
    pub fn acquire_in_background(&self) -> Result<Permit, Open> {
        self.permit(Call::Background)
    }

    fn permit(&self, call: Call) -> Result<Permit, Open> {
        let epoch = self.0.change(|circuit, settings, now| circuit.admit(call, settings, now))?;
        Ok(Permit { breaker: Arc::clone(&self.0), call: (epoch, call), judged: false })
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Breaker").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Inner {
    /// Every change of the circuit goes through here, so that none escapes the gauge, the log and the hook.
    fn change<T>(&self, change: impl FnOnce(&mut Circuit, &Settings, Instant) -> T) -> T {
        let (result, before, after) = {
            let mut circuit = self.lock();
            let before = circuit.state();
            let result = change(&mut circuit, &self.settings, Instant::now());
            let after = circuit.state();
            // Under the lock: of two transitions, the later one has the last word.
            self.gauge.set(after.as_metric());
            (result, before, after)
        };
        if before != after {
            self.announce(before, after);
        }
        result
    }

    fn announce(&self, before: State, after: State) {
        let service = self.name;
        match after {
            State::Open => tracing::warn!(service, "circuit breaker went from {before} to {after}"),
            State::HalfOpen | State::Closed => {
                tracing::info!(service, "circuit breaker went from {before} to {after}");
            }
        }
        if let Some(hook) = self.on_transition.get() {
            hook(after);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to make one call. Dropped without a verdict, the call counts as neither success nor failure.
#[derive(Debug)]
#[must_use = "the call's outcome must be reported"]
pub struct Permit {
    breaker: Arc<Inner>,
    /// Its epoch, and who waits for it.
    call: (u64, Call),
    judged: bool,
}

impl Permit {
    /// The dependency answered, whatever it said.
    pub fn succeeded(self) {
        self.judge(Verdict::Succeeded);
    }

    /// The dependency did not do its part.
    pub fn failed(self) {
        self.judge(Verdict::Failed);
    }

    fn judge(mut self, verdict: Verdict) {
        self.judged = true;
        let call = self.call;
        self.breaker.change(|circuit, settings, now| circuit.judge(call, verdict, settings, now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.judged {
            let call = self.call;
            self.breaker.change(|circuit, settings, now| circuit.judge(call, Verdict::None, settings, now));
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

#[cfg(test)]
mod tests;
