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
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use lazy_static::lazy_static;
use prometheus::{IntGauge, IntGaugeVec, register_int_gauge_vec};
use tokio::time::Instant;

use crate::platform::telemetry::metrics::registered;

lazy_static! {
    static ref STATE: IntGaugeVec = registered(register_int_gauge_vec!(
        "circuit_breaker_state",
        "State of the circuit breaker of a dependency: 0 closed, 1 half-open, 2 open.",
        &["service"]
    ));
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
        let circuit = Mutex::new(Circuit { epoch: 0, phase: Phase::closed(settings.window) });
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
        let epoch = self.0.change(Circuit::admit)?;
        Ok(Permit { breaker: Arc::clone(&self.0), epoch, judged: false })
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
    epoch: u64,
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
        let epoch = self.epoch;
        self.breaker.change(|circuit, settings, now| circuit.judge(epoch, verdict, settings, now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.judged {
            let epoch = self.epoch;
            self.breaker.change(|circuit, settings, now| circuit.judge(epoch, Verdict::None, settings, now));
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Succeeded,
    Failed,
    None,
}

/// The states and their transitions, without a clock.
struct Circuit {
    /// Counts transitions. A verdict on a call of an earlier epoch says nothing about this one.
    epoch: u64,
    phase: Phase,
}

enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { under_way: u32, succeeded: u32 },
}

impl Phase {
    fn closed(window: Duration) -> Self {
        Self::Closed(Window { length: window, slots: VecDeque::new() })
    }
}

/// What to wait for when all probes are under way: one of them will have an outcome soon.
const PROBES_UNDER_WAY: Open = Open { retry_after: Duration::from_secs(1) };

impl Circuit {
    fn state(&self) -> State {
        match self.phase {
            Phase::Closed(_) => State::Closed,
            Phase::HalfOpen { .. } => State::HalfOpen,
            Phase::Open { .. } => State::Open,
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.epoch += 1;
        self.phase = phase;
    }

    fn half_open_if_due(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Open { until } if until <= now) {
            self.enter(Phase::HalfOpen { under_way: 0, succeeded: 0 });
        }
    }

    fn admit(&mut self, settings: &Settings, now: Instant) -> Result<u64, Open> {
        self.half_open_if_due(now);
        match &mut self.phase {
            Phase::Closed(_) => Ok(self.epoch),
            Phase::Open { until } => Err(Open { retry_after: until.duration_since(now) }),
            Phase::HalfOpen { under_way, succeeded } if *under_way + *succeeded < settings.probes.max(1) => {
                *under_way += 1;
                Ok(self.epoch)
            }
            Phase::HalfOpen { .. } => Err(PROBES_UNDER_WAY),
        }
    }

    fn judge(&mut self, epoch: u64, verdict: Verdict, settings: &Settings, now: Instant) {
        if epoch != self.epoch {
            return;
        }
        match (&mut self.phase, verdict) {
            (Phase::Closed(window), Verdict::Succeeded) => window.count(now, false),
            (Phase::Closed(window), Verdict::Failed) => {
                window.count(now, true);
                if window.is_bad(settings) {
                    self.enter(Phase::Open { until: now + settings.open_for });
                }
            }
            (Phase::HalfOpen { .. }, Verdict::Failed) => {
                self.enter(Phase::Open { until: now + settings.open_for });
            }
            (Phase::HalfOpen { under_way, succeeded }, Verdict::Succeeded) => {
                *under_way -= 1;
                *succeeded += 1;
                if *succeeded >= settings.probes {
                    self.enter(Phase::closed(settings.window));
                }
            }
            (Phase::HalfOpen { under_way, .. }, Verdict::None) => *under_way -= 1,
            (Phase::Closed(_), Verdict::None) | (Phase::Open { .. }, _) => {}
        }
    }
}

/// Outcomes of the last while, in slots of a tenth of it: old ones leave without being stored one by one.
struct Window {
    length: Duration,
    slots: VecDeque<Slot>,
}

struct Slot {
    began: Instant,
    calls: u32,
    failures: u32,
}

impl Window {
    fn count(&mut self, now: Instant, failed: bool) {
        while self.slots.front().is_some_and(|slot| slot.began + self.length <= now) {
            self.slots.pop_front();
        }
        if self.slots.back().is_none_or(|slot| slot.began + self.length / 10 <= now) {
            self.slots.push_back(Slot { began: now, calls: 0, failures: 0 });
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.calls = slot.calls.saturating_add(1);
            slot.failures = slot.failures.saturating_add(u32::from(failed));
        }
    }

    fn is_bad(&self, settings: &Settings) -> bool {
        let calls: u32 = self.slots.iter().map(|slot| slot.calls).fold(0, u32::saturating_add);
        let failures: u32 = self.slots.iter().map(|slot| slot.failures).fold(0, u32::saturating_add);
        calls >= settings.minimum_calls && f64::from(failures) >= settings.failure_ratio * f64::from(calls)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const SETTINGS: Settings = Settings {
        window: Duration::from_secs(10),
        minimum_calls: 4,
        failure_ratio: 0.5,
        open_for: Duration::from_secs(5),
        probes: 2,
    };

    fn fail(breaker: &Breaker, times: usize) {
        for _ in 0..times {
            breaker.acquire().unwrap().failed();
        }
    }

    async fn half_open(name: &'static str) -> Breaker {
        let breaker = Breaker::new(name, SETTINGS);
        fail(&breaker, 4);
        advance(SETTINGS.open_for).await;
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_half_of_enough_calls_failed() {
        let breaker = Breaker::new("test_opens", SETTINGS);
        breaker.acquire().unwrap().succeeded();
        breaker.acquire().unwrap().succeeded();
        fail(&breaker, 1);
        assert_eq!(breaker.state(), State::Closed);
        fail(&breaker, 1);
        assert_eq!(breaker.state(), State::Open);
        advance(Duration::from_secs(2)).await;
        let refusal = breaker.acquire().unwrap_err();
        assert_eq!(refusal.retry_after, Duration::from_secs(3));
        assert_eq!(refusal.retry_after_seconds(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn old_failures_do_not_count() {
        let breaker = Breaker::new("test_window", SETTINGS);
        fail(&breaker, 3);
        advance(SETTINGS.window).await;
        fail(&breaker, 3);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn enough_probes_close_it_and_forget_the_past() {
        let breaker = half_open("test_closes").await;
        let (first, second) = (breaker.acquire().unwrap(), breaker.acquire().unwrap());
        assert_eq!(breaker.acquire().unwrap_err(), PROBES_UNDER_WAY);
        first.succeeded();
        assert_eq!(breaker.state(), State::HalfOpen);
        second.succeeded();
        assert_eq!(breaker.state(), State::Closed);
        fail(&breaker, 3);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_opens_it_again() {
        let breaker = half_open("test_reopens").await;
        let probe = breaker.acquire().unwrap();
        breaker.acquire().unwrap().succeeded();
        probe.failed();
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.acquire().unwrap_err().retry_after, SETTINGS.open_for);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_probe_makes_room_for_another() {
        let breaker = half_open("test_cancelled").await;
        for _ in 0..10 {
            drop(breaker.acquire().unwrap());
        }
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker.acquire().unwrap().succeeded();
        breaker.acquire().unwrap().succeeded();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_verdict_from_before_a_transition_changes_nothing() {
        let breaker = Breaker::new("test_late", SETTINGS);
        let late: Vec<_> = (0..4).map(|_| breaker.acquire().unwrap()).collect();
        fail(&breaker, 4);
        advance(SETTINGS.open_for).await;
        let probe = breaker.acquire().unwrap();
        late.into_iter().for_each(Permit::failed);
        assert_eq!(breaker.state(), State::HalfOpen);
        probe.succeeded();
        breaker.acquire().unwrap().succeeded();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_hears_of_every_transition() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let breaker = Breaker::new("test_heard", SETTINGS).on_transition({
            let heard = Arc::clone(&heard);
            move |state| heard.lock().unwrap().push(state)
        });
        let gauge = STATE.with_label_values(&["test_heard"]);
        fail(&breaker, 4);
        assert_eq!(gauge.get(), 2);
        advance(SETTINGS.open_for).await;
        breaker.acquire().unwrap().succeeded();
        assert_eq!(gauge.get(), 1);
        breaker.acquire().unwrap().succeeded();
        assert_eq!(gauge.get(), 0);
        assert_eq!(*heard.lock().unwrap(), [State::Open, State::HalfOpen, State::Closed]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_never_open_for_longer_than_ten_seconds() {
        let breaker = Breaker::new("test_longest", Settings { open_for: LONGEST_OPEN * 6, ..SETTINGS });
        fail(&breaker, 4);
        advance(LONGEST_OPEN).await;
        assert!(breaker.acquire().is_ok());
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Call,
        Succeed,
        Fail,
        Cancel,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Call),
            2 => Just(Step::Succeed),
            3 => Just(Step::Fail),
            1 => Just(Step::Cancel),
            1 => (1_u64..6_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_its_promises_hold(steps in proptest::collection::vec(step(), 1..200)) {
            let mut circuit = Circuit { epoch: 0, phase: Phase::closed(SETTINGS.window) };
            let mut now = Instant::now();
            let mut calls: VecDeque<u64> = VecDeque::new();
            let mut opened_at = None;
            for step in steps {
                let before = circuit.state();
                let verdict = match step {
                    Step::Call => {
                        if let Ok(epoch) = circuit.admit(&SETTINGS, now) {
                            calls.push_back(epoch);
                            if let Some(opened_at) = opened_at {
                                prop_assert!(now >= opened_at + SETTINGS.open_for, "admitted while open");
                            }
                        }
                        None
                    }
                    Step::Wait(milliseconds) => { now += Duration::from_millis(milliseconds); None }
                    Step::Succeed => Some(Verdict::Succeeded),
                    Step::Fail => Some(Verdict::Failed),
                    Step::Cancel => Some(Verdict::None),
                };
                if let Some(verdict) = verdict && let Some(epoch) = calls.pop_front() {
                    circuit.judge(epoch, verdict, &SETTINGS, now);
                }
                let probes = calls.iter().filter(|epoch| **epoch == circuit.epoch).count();
                if circuit.state() == State::HalfOpen {
                    prop_assert!(probes <= SETTINGS.probes as usize, "{probes} probes at once");
                }
                if before != State::Open && circuit.state() == State::Open {
                    prop_assert!(matches!(step, Step::Fail), "only a failure opens it");
                    opened_at = Some(now);
                }
                if circuit.state() != State::Open {
                    opened_at = None;
                }
            }
        }
    }
}
