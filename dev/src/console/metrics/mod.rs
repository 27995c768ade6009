//! What the service measures: scraped, kept for a quarter of an hour, and asked in `PromQL`.
//!
//! Every figure of the page is the value of an expression that can be pasted into Prometheus, and has the value
//! that Prometheus would give for the same samples; a test compares the two. So the rules of extrapolation,
//! staleness and interpolation are Prometheus', to the letter, and no shorter arithmetic stands beside them.
//!
//! - [`exposition`]: reading the text format
//! - [`store`]: the samples
//! - [`query`]: the language, as far as it is needed here
//! - [`functions`]: what functions do with samples
//! - [`value`]: what an expression comes to
//! - [`vectors`]: aggregation and binary operators
mod exposition;
mod functions;
mod query;
mod store;
mod value;
mod vectors;

use std::collections::BTreeMap;

pub use self::{
    query::Expression,
    store::{RETENTION, Store},
    value::{Error, Value},
};

/// The labels of a series. The name of the metric is `__name__`.
pub type Labels = BTreeMap<String, String>;

/// The value of one series at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    pub labels: Labels,
    pub value: f64,
}

impl Element {
    /// A value without a name, as every operation gives it.
    fn unnamed(mut labels: Labels, value: f64) -> Self {
        labels.remove(exposition::NAME);
        Self { labels, value }
    }
}
