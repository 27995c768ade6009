//! Metrics of the service, which are scraped, stored for 15 minutes, and queried in `PromQL`.
//!
//! Every chart and figure of the view *Now* is the value of an expression that also works in Prometheus. Extrapolation,
//! staleness and interpolation follow Prometheus' rules. A test checks that the console and Prometheus compute the same
//! value from the same samples.
//!
//! - [`exposition`]: parser of the text format
//! - [`store`]: the samples
//! - [`query`]: the supported part of the language
//! - [`functions`]: functions over samples
//! - [`value`]: the result of an expression
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

/// The labels of a series, including the label `__name__` with the name of the metric.
pub type Labels = BTreeMap<String, String>;

/// The value of one series at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    pub labels: Labels,
    pub value: f64,
}

impl Element {
    /// Creates an element without a metric name, because `PromQL` removes the name from every computed value.
    fn unnamed(mut labels: Labels, value: f64) -> Self {
        labels.remove(exposition::NAME);
        Self { labels, value }
    }
}
