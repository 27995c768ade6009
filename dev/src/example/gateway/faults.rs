//! Faults of the gateway, and the random generator that selects the affected requests. Some payment methods of the
//! simulator, such as `pm_card_timeout`, cause further faults.
use std::time::Duration;

use axum::http::HeaderValue;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::{charges::DeclineCode, listing::PageFaults, malformed_responses::Malformation};

/// The faults of the gateway, all off by default. Faults do not affect the routes `/ledger` and `/faults`. Rates are
/// from 0 to 1. The faults `list_…` affect only lists by time of creation, which clients request with the query
/// parameter `created_after`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Fraction of requests that receive `error_status` before any effect.
    pub error_rate: f64,
    /// Fraction of the requests for charges and refunds that are executed and then receive `error_status`.
    pub error_rate_after_charge: f64,
    /// Status of the error responses that both error rates cause, from 400 to 599.
    pub error_status: u16,
    /// Value of `Retry-After` in these error responses, sent unmodified. An empty value, or a value that a header
    /// cannot contain, omits the header.
    pub retry_after: String,
    /// Fraction of charges that are declined regardless of the payment method.
    pub decline_rate: f64,
    /// Delay added to every response, in milliseconds.
    pub latency_ms: u64,
    /// True while all responses are delayed. Requests are still executed, and their responses are sent when the value
    /// becomes false.
    pub hold_responses: bool,
    /// Fraction of requests that are executed and then have their connection cut before the response.
    pub cut_rate: f64,
    /// Fraction of requests that are executed and then receive a malformed response.
    pub malformation_rate: f64,
    /// The kind of malformed response.
    pub malformation: Malformation,
    /// Fraction of the entries of a page of a `created_after` list that are missing in the response. Each request omits
    /// different entries.
    pub list_omit_rate: f64,
    /// Fraction of the pages of a `created_after` list that are empty, with the cursor of the complete page.
    pub list_lost_page_rate: f64,
    /// Fraction of the pages of a `created_after` list that begin with the last entry of the previous page.
    pub list_repeat_rate: f64,
    /// Fraction of the pages of a `created_after` list whose entries are in the wrong order.
    pub list_reorder_rate: f64,
    /// Time for which a new charge or refund is missing in a `created_after` list, in milliseconds.
    pub list_delay_ms: u32,
    /// The delivery of webhooks.
    pub webhooks: Webhooks,
    /// Seed of the random generator. The same seed with the same order of requests causes the same faults.
    pub seed: u64,
}

/// The delivery of webhooks.
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
            hold_responses: false,
            cut_rate: 0.0,
            malformation_rate: 0.0,
            malformation: Malformation::Garbage,
            list_omit_rate: 0.0,
            list_lost_page_rate: 0.0,
            list_repeat_rate: 0.0,
            list_reorder_rate: 0.0,
            list_delay_ms: 0,
            webhooks: Webhooks::Normal,
            seed: 0,
        }
    }
}

impl Faults {
    /// Returns the validation error, if any.
    pub(super) fn validation_error(&self) -> Option<&'static str> {
        let rates = [
            self.error_rate,
            self.error_rate_after_charge,
            self.decline_rate,
            self.cut_rate,
            self.malformation_rate,
            self.list_omit_rate,
            self.list_lost_page_rate,
            self.list_repeat_rate,
            self.list_reorder_rate,
        ];
        if rates.iter().any(|rate| !(0.0..=1.0).contains(rate)) {
            return Some("a rate must be from 0 to 1");
        }
        (!(400..=599).contains(&self.error_status)).then_some("error_status must be from 400 to 599")
    }
}

/// The faults of one request.
#[derive(Debug, Clone)]
pub(super) struct RequestFaults {
    pub(super) error_before: bool,
    pub(super) error_after: bool,
    pub(super) error_status: u16,
    pub(super) retry_after: Option<HeaderValue>,
    pub(super) cut: bool,
    pub(super) malformation: Option<Malformation>,
    pub(super) decline: Option<DeclineCode>,
    pub(super) latency: Duration,
}

/// The random generators of the faults.
pub(super) struct FaultGenerator {
    /// The generator of all faults except those of pages. It draws the same number of values for every request, so that
    /// the rate of one fault does not affect the other faults.
    rng: StdRng,
    /// The generator of the faults of pages. The number of its draws depends on the page limit, and must not affect the
    /// draws of `rng`.
    listing: StdRng,
}

impl FaultGenerator {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), listing: StdRng::seed_from_u64(!seed) }
    }

    /// Draws the faults of a page with at most `limit` entries.
    pub(super) fn draw_for_page(&mut self, faults: &Faults, limit: usize) -> PageFaults {
        let mut occurs = |rate: f64| self.listing.random::<f64>() < rate;
        PageFaults {
            lost: occurs(faults.list_lost_page_rate),
            repeats_last_entry: occurs(faults.list_repeat_rate),
            reordered: occurs(faults.list_reorder_rate),
            omitted: (0..limit).map(|_| occurs(faults.list_omit_rate)).collect(),
        }
    }

    pub(super) fn draw(&mut self, faults: &Faults) -> RequestFaults {
        const DECLINES: [DeclineCode; 4] = [
            DeclineCode::InsufficientFunds,
            DeclineCode::CardExpired,
            DeclineCode::FraudSuspected,
            DeclineCode::DoNotHonor,
        ];
        let mut occurs = |rate: f64| self.rng.random::<f64>() < rate;
        let error_before = occurs(faults.error_rate);
        let error_after = occurs(faults.error_rate_after_charge);
        let cut = occurs(faults.cut_rate);
        let declined = occurs(faults.decline_rate);
        let malformation = occurs(faults.malformation_rate);
        let code = DECLINES.get(self.rng.random_range(0..DECLINES.len())).copied();
        RequestFaults {
            error_before,
            error_after,
            error_status: faults.error_status,
            retry_after: HeaderValue::from_str(&faults.retry_after).ok().filter(|value| !value.is_empty()),
            cut,
            malformation: malformation.then_some(faults.malformation),
            decline: code.filter(|_| declined),
            latency: Duration::from_millis(faults.latency_ms),
        }
    }
}
