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
        id: "money",
        title: "Orders and payments",
        unit: "/min",
        lines: &[
            ("orders", "60 * sum(rate(orders_created_total[WINDOW]))"),
            ("{outcome}", "60 * sum by (outcome) (rate(payments_total[WINDOW]))"),
        ],
    },
    Panel {
        id: "processing",
        title: "Payments without an outcome yet",
        unit: "",
        lines: &[("processing", "max(payments_processing)"), ("parked", "max(payments_parked)")],
    },
    Panel {
        id: "gateway",
        title: "Calls of the payment gateway",
        unit: "/s",
        lines: &[(
            "{outcome}",
            "sum by (outcome) (rate(http_client_request_duration_seconds_count[WINDOW])) > 0",
        )],
    },
    Panel {
        id: "gateway-latency",
        title: "Latency of the gateway",
        unit: "s",
        lines: &[(
            "p95",
            "histogram_quantile(0.95, sum by (le) (rate(http_client_request_duration_seconds_bucket[WINDOW])))",
        )],
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
    ("orders", "sum(orders_created_total)"),
    ("succeeded", r#"sum(payments_total{outcome="succeeded"})"#),
    ("declined", r#"sum(payments_total{outcome="declined"})"#),
    ("failed", r#"sum(payments_total{outcome="failed"})"#),
    ("processing", "max(payments_processing)"),
    ("breaker", "max(circuit_breaker_state)"),
    ("in_flight", "sum(http_requests_in_flight)"),
];

/// The trace that a newcomer is led to, once there is one: that of the first order paid since `$1`. It is stored with
/// the payment: `00-TRACE-SPAN-01`.
pub(super) const FIRST_TRACE: &str = "
    select split_part(trace_parent, '-', 2)
    from payments
    where status = 'succeeded' and created_at >= $1 and trace_parent is not null
    order by created_at
    limit 1";

/// The one line that says how it goes, for a terminal of 80 columns.
pub(super) fn essentials(point: &Point) -> String {
    let figure = |name: &str| point.figures.get(name).copied();
    let or_dash = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let breaker = match figure("breaker") {
        Some(2.0..) => "OPEN",
        Some(1.0..) => "half-open",
        Some(_) => "closed",
        None => "–",
    };
    format!(
        "{} req/s · p95 {} ms · {} errors/s · {} orders · {} processing · breaker {breaker}",
        or_dash(figure("requests"), 1),
        or_dash(figure("p95").map(|seconds| seconds * 1000.0), 0),
        or_dash(figure("errors"), 1),
        or_dash(figure("orders"), 0),
        or_dash(figure("processing"), 0),
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
            "– req/s · p95 – ms · – errors/s · – orders · – processing · breaker –"
        );
    }
}
