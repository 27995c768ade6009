//! What goes wrong, on top of what the payment methods do, and the dice that decide when.
use std::time::Duration;

use axum::http::HeaderValue;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::{charges::DeclineCode, spoiling::Spoil};

/// The faults of the gateway, all of them off by default. Rates are shares of the requests, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Requests that are answered with `error_status` before anything is done.
    pub error_rate: f64,
    /// Charges and refunds that are made and then answered with `error_status`.
    pub error_rate_after_charge: f64,
    /// The status of both, from 400 to 599.
    pub error_status: u16,
    /// Sent with both as `Retry-After`, whatever it says; not sent where it is empty.
    pub retry_after: String,
    /// Charges that are declined whatever the payment method says.
    pub decline_rate: f64,
    /// Added to every answer.
    pub latency_ms: u64,
    /// Requests are carried out, and their answers held back until this is off again.
    pub hold_answers: bool,
    /// Requests that are carried out and then see their connection cut in place of an answer.
    pub cut_rate: f64,
    /// Requests that are carried out and then answered with something wrong.
    pub spoil_rate: f64,
    /// What is wrong with it.
    pub spoil: Spoil,
    /// How webhooks arrive.
    pub webhooks: Webhooks,
    /// The same seed and the same order of requests make the same faults.
    pub seed: u64,
}

/// How webhooks arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Webhooks {
    #[default]
    Normal,
    Late,
    Twice,
    Never,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            error_rate: 0.0,
            error_rate_after_charge: 0.0,
            error_status: 500,
            retry_after: String::new(),
            decline_rate: 0.0,
            latency_ms: 0,
            hold_answers: false,
            cut_rate: 0.0,
            spoil_rate: 0.0,
            spoil: Spoil::Garbage,
            webhooks: Webhooks::Normal,
            seed: 0,
        }
    }
}

impl Faults {
    /// What is wrong with them, if anything.
    pub(super) fn mistake(&self) -> Option<&'static str> {
        let rates = [
            self.error_rate,
            self.error_rate_after_charge,
            self.decline_rate,
            self.cut_rate,
            self.spoil_rate,
        ];
        if rates.iter().any(|rate| !(0.0..=1.0).contains(rate)) {
            return Some("a rate is from 0 to 1");
        }
        (!(400..=599).contains(&self.error_status)).then_some("error_status is from 400 to 599")
    }
}

/// What will go wrong with one request.
#[derive(Debug, Clone)]
pub(super) struct Fate {
    pub(super) error_before: bool,
    pub(super) error_after: bool,
    pub(super) error_status: u16,
    pub(super) retry_after: Option<HeaderValue>,
    pub(super) cut: bool,
    pub(super) spoiled: Option<Spoil>,
    pub(super) decline: Option<DeclineCode>,
    pub(super) latency: Duration,
}

/// The source of chance. It is thrown the same number of times for every request, so that one fault's rate does
/// not change when the others strike.
pub(super) struct Dice {
    rng: StdRng,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed) }
    }

    pub(super) fn throw(&mut self, faults: &Faults) -> Fate {
        const DECLINES: [DeclineCode; 4] = [
            DeclineCode::InsufficientFunds,
            DeclineCode::CardExpired,
            DeclineCode::FraudSuspected,
            DeclineCode::DoNotHonor,
        ];
        let mut strikes = |rate: f64| self.rng.random::<f64>() < rate;
        let error_before = strikes(faults.error_rate);
        let error_after = strikes(faults.error_rate_after_charge);
        let cut = strikes(faults.cut_rate);
        let declined = strikes(faults.decline_rate);
        let spoiled = strikes(faults.spoil_rate);
        let code = DECLINES.get(self.rng.random_range(0..DECLINES.len())).copied();
        Fate {
            error_before,
            error_after,
            error_status: faults.error_status,
            retry_after: HeaderValue::from_str(&faults.retry_after).ok().filter(|value| !value.is_empty()),
            cut,
            spoiled: spoiled.then_some(faults.spoil),
            decline: code.filter(|_| declined),
            latency: Duration::from_millis(faults.latency_ms),
        }
    }
}
