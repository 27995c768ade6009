//! The `OpenMetrics` text format, version 1.0.0, for the metrics of the `prometheus` crate, which writes only the older
//! format. `OpenMetrics` is needed for exemplars. The rest of the content is the same in both formats.
use std::{fmt::Write, time::UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::traced::{Exemplar, Exemplars};

/// The format's media type.
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns whether the client prefers this format to the older one. Prometheus expresses its preference with `q`
/// weights.
pub(super) fn is_preferred(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut openmetrics, mut older) = (0.0_f32, 0.0_f32);
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        match media_type.as_str() {
            "application/openmetrics-text" => openmetrics = openmetrics.max(weight),
            "text/plain" => older = older.max(weight),
            _ => {}
        }
    }
    openmetrics > 0.0 && openmetrics >= older
}

/// Encodes all families.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut text = String::new();
    for family in families {
        // Writing to a string never fails.
        let _never_fails = write_family(&mut text, family);
    }
    text.push_str("# EOF\n");
    text
}

fn write_family(text: &mut String, family: &MetricFamily) -> std::fmt::Result {
    let (kind, type_name) = (family.get_field_type(), type_name(family.get_field_type()));
    // The family name of a counter omits the `_total` suffix of its samples.
    let name = match kind {
        MetricType::COUNTER => family.name().strip_suffix("_total").unwrap_or(family.name()),
        _ => family.name(),
    };
    writeln!(text, "# TYPE {name} {type_name}")?;
    writeln!(text, "# HELP {name} {}", escaped(family.help()))?;
    let exemplars = Exemplars::of(family.name());
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match kind {
            MetricType::COUNTER => {
                let value = metric.get_counter().get_value();
                sample(text, name, "_total", labels, None, value, None)?;
            }
            MetricType::GAUGE => {
                sample(text, name, "", labels, None, metric.get_gauge().get_value(), None)?;
            }
            MetricType::HISTOGRAM => {
                let newest = exemplars.as_ref().map_or_else(Vec::new, |exemplars| exemplars.newest(metric));
                write_histogram(text, name, metric, newest)?;
            }
            // The service declares no summaries and no untyped metrics.
            MetricType::SUMMARY | MetricType::UNTYPED => {}
        }
    }
    Ok(())
}

fn type_name(kind: MetricType) -> &'static str {
    match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "unknown",
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "both formats write counts as floats, which are exact up to 2^53"
)]
fn write_histogram(
    text: &mut String,
    name: &str,
    metric: &Metric,
    newest: Vec<Option<Exemplar>>,
) -> std::fmt::Result {
    let (histogram, labels) = (metric.get_histogram(), metric.get_label());
    let count = histogram.get_sample_count() as f64;
    let bounded = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    let buckets = bounded.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count() as f64));
    let mut newest = newest.into_iter();
    for (bound, cumulative) in buckets.chain([(f64::INFINITY, count)]) {
        let exemplar = newest.next().flatten();
        sample(text, name, "_bucket", labels, Some(bound), cumulative, exemplar)?;
    }
    sample(text, name, "_sum", labels, None, histogram.get_sample_sum(), None)?;
    sample(text, name, "_count", labels, None, count, None)
}

fn sample(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &[LabelPair],
    bound: Option<f64>,
    value: f64,
    exemplar: Option<Exemplar>,
) -> std::fmt::Result {
    let mut pairs: Vec<_> =
        labels.iter().map(|label| format!("{}=\"{}\"", label.name(), escaped(label.value()))).collect();
    pairs.extend(bound.map(|bound| format!("le=\"{}\"", format_bound(bound))));
    write!(text, "{name}{suffix}")?;
    if !pairs.is_empty() {
        write!(text, "{{{}}}", pairs.join(","))?;
    }
    write!(text, " {}", number(value))?;
    if let Some(Exemplar { trace_id, span_id, value, at }) = exemplar {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        write!(text, " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {value} {at:.3}")?;
    }
    writeln!(text)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

/// Formats a bucket bound, which the format requires to be written as a float.
fn format_bound(bound: f64) -> String {
    if bound.is_finite() { format!("{bound:?}") } else { number(bound) }
}

fn number(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::HeaderValue;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use prometheus::{Counter, Gauge, HistogramOpts, HistogramVec, IntCounterVec, Opts, core::Collector};
    use tracing_subscriber::layer::SubscriberExt;

    use super::{super::traced::TracedHistograms, *};
    use crate::telemetry::current_span;

    fn accepts(accept: &'static str) -> bool {
        is_preferred(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn the_older_format_is_the_default() {
        assert!(!is_preferred(&HeaderMap::new()));
        for accept in [
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.1,text/plain;q=0.5",
        ] {
            assert!(!accepts(accept), "{accept}");
        }
    }

    #[test]
    fn the_accept_header_selects_the_format() {
        for accept in [
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            // The `Accept` headers of Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        ] {
            assert!(accepts(accept), "{accept}");
        }
    }

    #[test]
    fn families_follow_the_specification() {
        let poured = Counter::new("tea_poured_litres_total", "Tea that was poured").unwrap();
        poured.inc_by(1.5);
        let warmth = Gauge::new("tea_warmth_celsius", "How warm, \"roughly\"\nor not at all").unwrap();
        warmth.set(f64::NEG_INFINITY);
        let spilt = IntCounterVec::new(Opts::new("tea_spilt_total", "Cups"), &["on"]).unwrap();
        spilt.with_label_values(&["the \"good\" \\ carpet\n"]).inc();
        let options = HistogramOpts::new("tea_drawn_seconds", "How long").buckets(vec![0.25, 60.0]);
        let drawn = HistogramVec::new(options, &["tea"]).unwrap();
        drawn.with_label_values(&["green"]).observe(2.0);
        let families: Vec<_> =
            [poured.collect(), warmth.collect(), spilt.collect(), drawn.collect()].concat();
        let expected = r#"# TYPE tea_poured_litres counter
# HELP tea_poured_litres Tea that was poured
tea_poured_litres_total 1.5
# TYPE tea_warmth_celsius gauge
# HELP tea_warmth_celsius How warm, \"roughly\"\nor not at all
tea_warmth_celsius -Inf
# TYPE tea_spilt counter
# HELP tea_spilt Cups
tea_spilt_total{on="the \"good\" \\ carpet\n"} 1
# TYPE tea_drawn_seconds histogram
# HELP tea_drawn_seconds How long
tea_drawn_seconds_bucket{tea="green",le="0.25"} 0
tea_drawn_seconds_bucket{tea="green",le="60.0"} 1
tea_drawn_seconds_bucket{tea="green",le="+Inf"} 1
tea_drawn_seconds_sum{tea="green"} 2
tea_drawn_seconds_count{tea="green"} 1
# EOF
"#;
        assert_eq!(encode(&families), expected);
    }

    #[test]
    fn a_bucket_has_the_newest_sampled_trace_as_exemplar() {
        let bounds = [0.1, 1.0];
        let steeped = TracedHistograms::new("tea_steeped_seconds", "How long", &["tea", "cup"], &bounds);
        let provider = SdkTracerProvider::default();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let trace = |milliseconds| {
            let span = tracing::info_span!("steep");
            let _within = span.enter();
            steeped.observe(&["green", "1"], Duration::from_millis(milliseconds));
            current_span::current_trace_id().unwrap().to_string()
        };
        let (older, newest, slowest) =
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                (trace(200), trace(300), trace(3_000))
            });
        steeped.observe(&["green", "1"], Duration::from_millis(1));
        let text = encode(&prometheus::gather());
        let bucket = |bound: &str| {
            let series = format!("tea_steeped_seconds_bucket{{cup=\"1\",tea=\"green\",le=\"{bound}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&series)).unwrap()
        };
        assert_eq!(bucket("0.1"), "1", "an observation without a sampled trace has an exemplar");
        let exemplar = bucket("1.0").strip_prefix("3 # ").unwrap();
        assert!(exemplar.starts_with(&format!("{{trace_id=\"{newest}\",span_id=\"")), "{exemplar}");
        assert_eq!(exemplar.split_whitespace().nth(1), Some("0.3"), "{exemplar}");
        assert!(bucket("+Inf").contains(&slowest) && !text.contains(&older));
        let (_, older_format) = super::super::render(&HeaderMap::new()).unwrap();
        assert!(older_format.contains("tea_steeped_seconds_bucket") && !older_format.contains(&newest));
    }
}
