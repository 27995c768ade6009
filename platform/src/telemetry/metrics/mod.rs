//! Metrics: the text that Prometheus scrapes, and the declaration of metrics.
//!
//! A metric is declared with [`metrics!`](crate::metrics) in the module whose work it measures. Only that module
//! changes the metric, or passes it to the code that changes it. A value that exists elsewhere, such as the load of the
//! runtime, is read at each scrape by a `Collector`.
mod declare;
mod openmetrics;
mod runtime;
mod traced;

use axum::http::HeaderMap;
use prometheus::{TEXT_FORMAT, TextEncoder};
use tokio::runtime::Handle;

pub use self::{
    declare::{Family, create_series},
    traced::TracedHistograms,
};
use crate::build_info::BuildInfo;

crate::metrics! {
    /// The running build, as labels; the value is always 1.
    static BUILD_INFO: gauge = "build_info" { version, commit };
}

/// Returns the registered metric.
///
/// # Panics
/// The name is taken or invalid. This is a bug, which the first start reveals.
#[expect(clippy::expect_used, reason = "a defect of the code, which every start reveals")]
pub fn registered<M>(metric: prometheus::Result<M>) -> M {
    metric.expect("failed to register a metric: the name is taken or invalid")
}

/// Returns all metrics of the process, with their media type: `OpenMetrics` if the client prefers it, and Prometheus'
/// older text format otherwise.
///
/// # Errors
/// The metrics cannot be encoded, which is a bug.
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
    runtime::register(runtime);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_scrape_contains_the_build() {
        start(&Handle::current());
        let (content_type, text) = render(&HeaderMap::new()).unwrap();
        assert_eq!(content_type, "text/plain; version=0.0.4");
        let BuildInfo { version, commit, .. } = BuildInfo::current();
        let expected = format!("build_info{{commit=\"{commit}\",version=\"{version}\"}} 1");
        assert!(text.contains(&expected), "{text}");
    }
}
