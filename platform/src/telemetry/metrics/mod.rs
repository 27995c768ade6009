//! Metrics: the text that Prometheus scrapes, and how a slice declares its own.
//!
//! A metric is declared in the module that it tells about, and nowhere else is it changed:
//!
//! ```
//! use platform::telemetry::metrics::{declare, registered};
//! use lazy_static::lazy_static;
//! use prometheus::{IntCounter, IntCounterVec, register_int_counter, register_int_counter_vec};
//!
//! lazy_static! {
//!     static ref CREATED: IntCounter =
//!         registered(register_int_counter!("teapots_created_total", "Teapots that were made."));
//!     static ref BROKEN: IntCounterVec =
//!         registered(register_int_counter_vec!("teapots_broken_total", "Teapots that broke, by cause.", &["cause"]));
//! }
//!
//! /// Makes every series exist from the first scrape.
//! pub fn start() {
//!     lazy_static::initialize(&CREATED);
//!     declare(&BROKEN, [["dropped"], ["boiled_dry"]]);
//! }
//! # start();
//! ```
//!
//! `start` is called once, before the listeners open. Without it a series appears only with its first event:
//! `rate()` then misses that event, and a rule on a series that does not exist yet is silent.
mod openmetrics;
mod runtime;
mod traced;

use axum::http::HeaderMap;
use lazy_static::lazy_static;
use prometheus::{
    IntGaugeVec, TEXT_FORMAT, TextEncoder,
    core::{MetricVec, MetricVecBuilder},
    register_int_gauge_vec,
};
use tokio::runtime::Handle;

pub use self::traced::TracedHistograms;
use crate::build_info::BuildInfo;

lazy_static! {
    static ref BUILD_INFO: IntGaugeVec = registered(register_int_gauge_vec!(
        "build_info",
        "The build that runs, as labels; the value is always 1.",
        &["version", "commit"]
    ));
}

/// The metric, once it is registered.
///
/// # Panics
/// The name is taken or not valid: a mistake in the code, which the first start after it shows.
#[expect(clippy::expect_used, reason = "a mistake in the code, met at start-up and never later")]
pub fn registered<M>(metric: prometheus::Result<M>) -> M {
    metric.expect("a metric is declared once, under a valid name")
}

/// Makes these series of a family exist, at zero.
pub fn declare<B: MetricVecBuilder, const LABELS: usize>(
    family: &MetricVec<B>,
    series: impl IntoIterator<Item = [&'static str; LABELS]>,
) {
    for labels in series {
        family.with_label_values(&labels);
    }
}

/// Everything that the process counts, with its media type: as `OpenMetrics` for whoever prefers that, and
/// otherwise in Prometheus' older text format.
///
/// # Errors
/// Two metrics contradict each other: a mistake in the code.
pub fn render(headers: &HeaderMap) -> prometheus::Result<(&'static str, String)> {
    let families = prometheus::gather();
    if openmetrics::is_preferred(headers) {
        Ok((openmetrics::MEDIA_TYPE, openmetrics::encode(&families)))
    } else {
        Ok((TEXT_FORMAT, TextEncoder::new().encode_to_string(&families)?))
    }
}

pub(super) fn start(runtime: &Handle) {
    let BuildInfo { version, commit, .. } = BuildInfo::current();
    BUILD_INFO.with_label_values(&[version, commit]).set(1);
    runtime::watch(runtime);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_build_is_in_the_first_scrape() {
        start(&Handle::current());
        let (content_type, text) = render(&HeaderMap::new()).unwrap();
        assert_eq!(content_type, "text/plain; version=0.0.4");
        let BuildInfo { version, commit, .. } = BuildInfo::current();
        let expected = format!("build_info{{commit=\"{commit}\",version=\"{version}\"}} 1");
        assert!(text.contains(&expected), "{text}");
    }
}
