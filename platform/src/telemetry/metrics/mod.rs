//! Metrics: the text that Prometheus scrapes, and how a slice declares its own.
//!
//! A metric is declared with [`metrics!`](crate::metrics) in the module whose work it counts, and is changed nowhere
//! else.
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

/// The metric, once it is registered.
///
/// # Panics
/// The name is taken or not valid: a mistake in the code, which the first start after it shows.
#[expect(clippy::expect_used, reason = "a mistake in the code, met at start-up and never later")]
pub fn registered<M>(metric: prometheus::Result<M>) -> M {
    metric.expect("a metric is declared once, under a valid name")
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
