//! The states of a breaker and their transitions, without a clock and without a lock.
use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{Open, Settings, State};

/// The verdict on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Succeeded,
    Failed,
    /// The permit was dropped before the caller reported a verdict.
    Cancelled,
}

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// A request waits for the call.
    Foreground,
    /// A worker makes the call.
    Background,
}

/// The current state of a breaker.
pub(super) struct Circuit {
    /// Number of transitions. The verdict on a call is ignored if a transition has happened since the call was
    /// admitted.
    pub(super) transitions: u64,
    phase: Phase,
}

enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { in_flight: u32, background: u32, succeeded: u32 },
}

impl Phase {
    fn closed(window: Duration) -> Self {
        Self::Closed(Window { length: window, slots: VecDeque::new() })
    }
}

/// The rejection in the half-open state, while no further call of the same kind is admitted. Its retry time is short,
/// because a call in flight will have an outcome soon.
pub(super) const PROBES_IN_FLIGHT: Open = Open { retry_after: Duration::from_secs(1) };

impl Circuit {
    pub(super) fn closed(settings: &Settings) -> Self {
        Self { transitions: 0, phase: Phase::closed(settings.window) }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Closed(_) => State::Closed,
            Phase::HalfOpen { .. } => State::HalfOpen,
            Phase::Open { .. } => State::Open,
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.transitions += 1;
        self.phase = phase;
    }

    pub(super) fn half_open_if_due(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Open { until } if until <= now) {
            self.enter(Phase::HalfOpen { in_flight: 0, background: 0, succeeded: 0 });
        }
    }

    /// Admits a call, and returns the number of transitions so far. In the half-open state, one background call at a
    /// time is admitted in addition to the foreground probes. A background call in flight uses up no foreground probe,
    /// and its success counts towards closing the breaker.
    pub(super) fn admit(&mut self, call: Call, settings: &Settings, now: Instant) -> Result<u64, Open> {
        self.half_open_if_due(now);
        match (&mut self.phase, call) {
            (Phase::Closed(_), _) => Ok(self.transitions),
            (Phase::Open { until }, _) => Err(Open { retry_after: until.duration_since(now) }),
            (Phase::HalfOpen { in_flight, succeeded, .. }, Call::Foreground)
                if *in_flight + *succeeded < settings.probes.max(1) =>
            {
                *in_flight += 1;
                Ok(self.transitions)
            }
            (Phase::HalfOpen { background, .. }, Call::Background) if *background == 0 => {
                *background += 1;
                Ok(self.transitions)
            }
            (Phase::HalfOpen { .. }, _) => Err(PROBES_IN_FLIGHT),
        }
    }

    pub(super) fn judge(
        &mut self,
        (transitions, call): (u64, Call),
        verdict: Verdict,
        settings: &Settings,
        now: Instant,
    ) {
        if transitions != self.transitions {
            return;
        }
        match (&mut self.phase, verdict) {
            (Phase::Closed(window), Verdict::Succeeded) => window.count(now, false),
            (Phase::Closed(window), Verdict::Failed) => {
                window.count(now, true);
                if window.exceeds_failure_ratio(settings) {
                    self.enter(Phase::Open { until: now + settings.open_for });
                }
            }
            (Phase::HalfOpen { .. }, Verdict::Failed) => {
                self.enter(Phase::Open { until: now + settings.open_for });
            }
            (
                Phase::HalfOpen { in_flight, background, succeeded },
                Verdict::Succeeded | Verdict::Cancelled,
            ) => {
                match call {
                    Call::Foreground => *in_flight -= 1,
                    Call::Background => *background -= 1,
                }
                *succeeded += u32::from(verdict == Verdict::Succeeded);
                if *succeeded >= settings.probes.max(1) {
                    self.enter(Phase::closed(settings.window));
                }
            }
            (Phase::Closed(_), Verdict::Cancelled) | (Phase::Open { .. }, _) => {}
        }
    }
}

/// The outcomes of a sliding window, counted in slots of a tenth of its length. Outcomes expire by slot, so that they
/// need not be stored one by one.
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

    fn exceeds_failure_ratio(&self, settings: &Settings) -> bool {
        let calls: u32 = self.slots.iter().map(|slot| slot.calls).fold(0, u32::saturating_add);
        let failures: u32 = self.slots.iter().map(|slot| slot.failures).fold(0, u32::saturating_add);
        calls >= settings.minimum_calls && f64::from(failures) >= settings.failure_ratio * f64::from(calls)
    }
}
