//! The charts and figures of the view *Now* that apply to every service.

/// A chart. It has one line for each element in the results of its `PromQL` expressions.
pub(crate) struct Panel {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    /// Names and expressions. A name in braces is a label, and each value of the label names one line. `WINDOW` is
    /// replaced with the time window of rates.
    pub(crate) lines: &'static [(&'static str, &'static str)],
}

/// The charts of requests, displayed before the charts of `example::PANELS`.
pub(super) const REQUEST_PANELS: &[Panel] = &[
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
        title: "Request latency",
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
];

/// The charts of the database, displayed after the charts of `example::PANELS`.
pub(super) const DATABASE_PANELS: &[Panel] = &[
    Panel {
        id: "database",
        title: "Database latency",
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
            ("max", "sum(db_connections_max)"),
        ],
    },
];

/// The figures: a name and a `PromQL` query each.
pub(super) const FIGURES: &[(&str, &str)] = &[
    ("requests", "sum(rate(http_requests_total[WINDOW]))"),
    ("errors", r#"sum(rate(http_requests_total{status=~"5.."}[WINDOW]))"#),
    ("p95", "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds_bucket[WINDOW])))"),
    ("in_flight", "sum(http_requests_in_flight)"),
];

/// Formats a figure with this number of decimal places. Returns a dash if the figure is missing.
pub(crate) fn or_dash(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}
