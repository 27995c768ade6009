//! The circuit breaker: stops calls to a failing dependency, and regularly admits a few calls as probes, which detect
//! its recovery.
//!
//! *Closed*: every call is admitted, and failures are counted over a sliding window. If the share of failed calls is
//! high enough, and there were enough calls, the breaker *opens*. *Open*: calls are rejected immediately. So callers do
//! not wait for a response that will not come, and the dependency can recover. After a while the breaker is
//! *half-open*: a few probes are admitted, and their outcomes decide whether the breaker closes or opens again.
//!
//! The caller reports the verdict on each call: succeeded or failed. Only the caller can distinguish a response such as
//! a declined card from a timeout. A call that was cancelled before its verdict does not count. The existing crates
//! (failsafe, recloser, tower-circuitbreaker) wrap the call as a function or a tower service and judge its `Result`.
//! None of them has a permit whose verdict is reported later, or never.
//!
//! State is per process: each replica detects outages by itself.
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

/// The rules for opening and closing a breaker.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Length of the sliding window.
    pub window: Duration,
    /// Minimum number of outcomes in the window before a closed breaker can open. Two failures in two calls do not
    /// prove an outage.
    pub minimum_calls: u32,
    /// The ratio of failures to calls, from 0 to 1, at which a closed breaker opens.
    pub failure_ratio: f64,
    /// Time for which an open breaker rejects every call. Limited to [`MAX_OPEN_TIME`].
    pub open_for: Duration,
    /// Maximum number of concurrent probes, which [`Breaker::acquire`] admits while the breaker is half-open. The same
    /// number of successful calls closes the breaker, including calls of [`Breaker::acquire_in_background`].
    pub probes: u32,
}

/// Maximum time for which a breaker stays open. It limits the delay until a recovered dependency is detected.
pub const MAX_OPEN_TIME: Duration = Duration::from_secs(10);

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Calls are admitted.
    Closed,
    /// A few probes are admitted.
    HalfOpen,
    /// No call is admitted.
    Open,
}

impl State {
    /// Returns the value in `circuit_breaker_state`.
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

/// The error of a rejected call. Nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open")]
pub struct Open {
    /// Time until a call may be admitted again.
    pub retry_after: Duration,
}

impl Open {
    /// Returns the value for `Retry-After`: whole seconds, at least one.
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
    /// Returns a closed breaker for the dependency `name`, which is the label `service` of `circuit_breaker_state`.
    pub fn new(name: &'static str, settings: Settings) -> Self {
        let settings = Settings { open_for: settings.open_for.min(MAX_OPEN_TIME), ..settings };
        let gauge = STATE.with_label_values(&[name]);
        gauge.set(State::Closed.as_metric());
        let circuit = Mutex::new(Circuit::closed(&settings));
        Self(Arc::new(Inner { name, settings, circuit, gauge, on_transition: OnceLock::new() }))
    }

    /// Sets `hook`, which is called with the new state after every transition. Later calls of this function are
    /// ignored.
    #[must_use]
    pub fn on_transition(self, hook: impl Fn(State) + Send + Sync + 'static) -> Self {
        let _already_set = self.0.on_transition.set(Box::new(hook));
        self
    }

    /// Returns the name of the dependency.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Returns the current state. If the breaker has been open for `open_for`, this call first makes it half-open.
    pub fn state(&self) -> State {
        self.0.change(|circuit, _, now| {
            circuit.half_open_if_due(now);
            circuit.state()
        })
    }

    /// Acquires a permit for one call. The caller reports the verdict to the permit.
    ///
    /// # Errors
    /// The breaker is open, or half-open with all of its probes in flight or succeeded.
    pub fn acquire(&self) -> Result<Permit, Open> {
        self.permit(Call::Foreground)
    }

    /// Acquires a permit for a call that no request waits for. While the breaker is half-open, such calls run one at
    /// a time, in addition to the probes of [`Self::acquire`]. A busy worker could otherwise use up all probes,
    /// and customers' requests would be rejected.
    ///
    /// # Errors
    /// The breaker is open, or half-open with a background call in flight.
    pub fn acquire_in_background(&self) -> Result<Permit, Open> {
        self.permit(Call::Background)
    }

    fn permit(&self, call: Call) -> Result<Permit, Open> {
        let transitions = self.0.change(|circuit, settings, now| circuit.admit(call, settings, now))?;
        Ok(Permit { breaker: Arc::clone(&self.0), call: (transitions, call), judged: false })
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Breaker").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Inner {
    /// Applies a change to the circuit. Every change uses this function, so that the gauge, the log and the hook record
    /// all transitions.
    fn change<T>(&self, change: impl FnOnce(&mut Circuit, &Settings, Instant) -> T) -> T {
        let (result, before, after) = {
            let mut circuit = self.lock();
            let before = circuit.state();
            let result = change(&mut circuit, &self.settings, Instant::now());
            let after = circuit.state();
            // Set under the lock, so that the gauge always has the value of the latest transition.
            self.gauge.set(after.as_metric());
            (result, before, after)
        };
        if before != after {
            self.report_transition(before, after);
        }
        result
    }

    fn report_transition(&self, before: State, after: State) {
        let service = self.name;
        match after {
            State::Open => tracing::warn!(service, "circuit breaker changed from {before} to {after}"),
            State::HalfOpen | State::Closed => {
                tracing::info!(service, "circuit breaker changed from {before} to {after}");
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

/// A permit for one call. If the permit is dropped without a verdict, the call counts as neither success nor failure.
#[derive(Debug)]
#[must_use = "the call's outcome must be reported"]
pub struct Permit {
    breaker: Arc<Inner>,
    /// The circuit's number of transitions when the call was admitted, and the call's kind.
    call: (u64, Call),
    judged: bool,
}

impl Permit {
    /// Reports that the dependency works. Any response that the caller does not count as a failure proves this.
    pub fn succeeded(self) {
        self.judge(Verdict::Succeeded);
    }

    /// Reports that the dependency failed.
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
            self.breaker
                .change(|circuit, settings, now| circuit.judge(call, Verdict::Cancelled, settings, now));
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
