//! Retries: the backoff between them, and the budget that limits them.
//!
//! Two rules keep retries from making an outage worse. Callers that failed together must not retry together, so
//! [`Backoff`] randomizes each pause. And if a dependency fails every call, its load must not multiply, so a [`Budget`]
//! allows retries for only a fraction of calls. The caller decides which calls are safe to retry.
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Exponential backoff with full jitter: each pause is drawn uniformly from zero up to a ceiling that doubles.
///
/// In Marc Brooker's simulation, full jitter finished the same work with the fewest calls ("Exponential Backoff And
/// Jitter", AWS Architecture Blog, 2015).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling of the first pause.
    pub base: Duration,
    /// The maximum ceiling.
    pub cap: Duration,
}

impl Backoff {
    /// Returns a backoff whose ceiling starts at `base`, and doubles with each retry up to `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// Returns the longest pause before retry number `retry`, counted from 0.
    pub fn ceiling(self, retry: u32) -> Duration {
        2_u32.checked_pow(retry).map_or(self.cap, |factor| self.base.saturating_mul(factor)).min(self.cap)
    }

    /// Returns a random pause before retry number `retry`, counted from 0.
    pub fn pause(self, retry: u32) -> Duration {
        self.ceiling(retry).mul_f64(rand::random::<f64>())
    }
}

/// The retry budget that all callers of one dependency share. Each call earns a fraction of a retry. The balance starts
/// with a reserve, because a few calls alone would not earn a whole retry.
#[derive(Debug)]
pub struct Budget {
    percent: u32,
    capacity: u32,
    /// The balance in hundredths of a retry.
    balance: AtomicU32,
}

/// The cost of one retry, in hundredths of a retry. Each first attempt earns `percent` hundredths.
const RETRY_COST: u32 = 100;

impl Budget {
    /// Creates a budget of `percent` retries per 100 calls. The balance starts with `reserve` retries, and never
    /// exceeds them.
    pub const fn new(percent: u32, reserve: u32) -> Self {
        let capacity = reserve.saturating_mul(RETRY_COST);
        Self { percent, capacity, balance: AtomicU32::new(capacity) }
    }

    /// Adds the fraction of a retry that one call earns (`percent` hundredths) to the balance. The caller must call
    /// this function for each first attempt, and not for retries.
    pub fn earn(&self) {
        let earned = |balance: u32| Some(balance.saturating_add(self.percent).min(self.capacity));
        let _always_succeeds = self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earned);
    }

    /// Spends one retry. Returns `false` if no retry is left.
    pub fn spend(&self) -> bool {
        let spent = |balance: u32| balance.checked_sub(RETRY_COST);
        self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let ceilings: Vec<_> = (0..7).map(|retry| BACKOFF.ceiling(retry).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(BACKOFF.ceiling(u32::MAX), BACKOFF.cap);
    }

    #[test]
    fn backoff_pauses_are_spread_up_to_the_ceiling() {
        let pauses: Vec<_> = (0..1000).map(|_| BACKOFF.pause(3)).collect();
        let ceiling = BACKOFF.ceiling(3);
        let quarters: [bool; 4] = std::array::from_fn(|quarter| {
            let quarter = u32::try_from(quarter).unwrap();
            pauses.iter().any(|pause| (ceiling / 4 * quarter..ceiling / 4 * (quarter + 1)).contains(pause))
        });
        assert_eq!(quarters, [true; 4]);
    }

    #[test]
    fn retries_add_at_most_a_fifth_to_the_calls() {
        let budget = Budget::new(20, 10);
        let retries = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(retries.count(), 200 + 10 - 1);
    }

    proptest! {
        #[test]
        fn no_pause_is_above_its_ceiling(base in 0_u64..10_000, cap in 0_u64..100_000, retry in 0_u32..100) {
            let backoff = Backoff::new(Duration::from_millis(base), Duration::from_millis(cap));
            prop_assert!(backoff.pause(retry) <= backoff.ceiling(retry));
            prop_assert!(backoff.ceiling(retry) <= backoff.cap);
        }

        #[test]
        fn retries_never_exceed_the_percentage_and_the_reserve(percent in 0_u32..=100, reserve in 0_u32..50, calls in proptest::collection::vec(any::<bool>(), 0..500)) {
            let budget = Budget::new(percent, reserve);
            let (mut first_attempts, mut retries) = (0_u32, 0_u32);
            for is_retry in calls {
                if !is_retry {
                    budget.earn();
                    first_attempts += 1;
                } else if budget.spend() {
                    retries += 1;
                }
                prop_assert!(retries * RETRY_COST <= reserve * RETRY_COST + first_attempts * percent);
            }
        }
    }
}
