//! What stands in the view *Now* and in the line on the terminal, as expressions: the part that a service changes first.
use super::now::{Panel, Point};

pub(super) const PANELS: &[Panel] = &[
    Panel {
        id: "requests",
        title: "Requests",
        unit: "/s",
        lines: &[
            ("all", "sum(rate(http_requests_total[WINDOW]))"),
            ("4xx", r#"sum(rate(http_requests_total{status=~"4.."}[WINDOW]))"#),
            ("5xx", r#"sum(rate(http_requests_total{status=~"5.."}[WINDOW]))"#),
        ],
    },
    Panel {
        id: "latency",
        title: "Latency of requests",
        unit: "s",
        lines: &[
            (
                "p50",
                "histogram_quantile(0.5, sum by (le) (rate(http_request_duration_seconds_bucket[WINDOW])))",
            ),
            (
                "p95",
                "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds_bucket[WINDOW])))",
            ),
            (
                "p99",
                "histogram_quantile(0.99, sum by (le) (rate(http_request_duration_seconds_bucket[WINDOW])))",
            ),
        ],
    },
    Panel {
        id: "created",
        title: "Created {{resource_plural}}",
        unit: "/min",
        lines: &[("{{resource_plural}}", "60 * sum(rate({{resource_plural}}_created_total[WINDOW]))")],
    },
    Panel {
        id: "database",
        title: "Latency of the database",
        unit: "s",
        lines: &[
            (
                "query p95",
                "histogram_quantile(0.95, sum by (le) (rate(db_query_duration_seconds_bucket[WINDOW])))",
            ),
            (
                "acquire p95",
                "histogram_quantile(0.95, sum by (le) (rate(db_connection_acquire_duration_seconds_bucket[WINDOW])))",
            ),
        ],
    },
    Panel {
        id: "pool",
        title: "Database connections",
        unit: "",
        lines: &[
            ("active", "sum(avg_over_time(db_connections_active[WINDOW]))"),
            ("idle", "sum(avg_over_time(db_connections_idle[WINDOW]))"),
            ("most", "sum(db_connections_max)"),
        ],
    },
];

/// Single numbers.
pub(super) const FIGURES: &[(&str, &str)] = &[
    ("requests", "sum(rate(http_requests_total[WINDOW]))"),
    ("errors", r#"sum(rate(http_requests_total{status=~"5.."}[WINDOW]))"#),
    ("p95", "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds_bucket[WINDOW])))"),
    ("created", "sum({{resource_plural}}_created_total)"),
    ("in_flight", "sum(http_requests_in_flight)"),
];

/// The trace that a newcomer is led to, once there is one: that of the first {{resource_words}} that is created from `$1` on.
pub(super) const FIRST_TRACE: &str = "
    select trace_id
    from audit_events
    where resource = '{{resource_plural}}' and action = 'create' and recorded_at >= $1 and trace_id is not null
    order by sequence
    limit 1";

/// The one line that says how it goes, for a terminal of 80 columns.
pub(super) fn essentials(point: &Point) -> String {
    let figure = |name: &str| point.figures.get(name).copied();
    let or_dash = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    format!(
        "{} req/s · p95 {} ms · {} errors/s · {} {{resource_plural}}",
        or_dash(figure("requests"), 1),
        or_dash(figure("p95").map(|seconds| seconds * 1000.0), 0),
        or_dash(figure("errors"), 1),
        or_dash(figure("created"), 0),
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::{metrics::Store, now::Overview},
        essentials,
    };

    #[test]
    fn what_is_not_known_yet_is_a_dash() {
        let point = Overview::new().unwrap().look(&Store::default(), 0);
        assert_eq!(
            essentials(&point),
            "– req/s · p95 – ms · – errors/s · – {{resource_plural}}"
        );
    }
}
