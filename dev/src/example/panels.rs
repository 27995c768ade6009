//! Charts and figures of orders, payments and the gateway, for the console and the terminal.
use std::collections::BTreeMap;

use crate::console::panels::{Panel, or_dash};

/// The domain's charts on the console.
pub(crate) const PANELS: &[Panel] = &[
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
        title: "Payments without an outcome",
        unit: "",
        lines: &[("processing", "max(payments_processing)"), ("needs review", "max(payments_parked)")],
    },
    Panel {
        id: "gateway",
        title: "Requests to the payment gateway",
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
];

/// The domain's figures: a name and a `PromQL` query each.
pub(crate) const FIGURES: &[(&str, &str)] = &[
    ("orders", "sum(orders_created_total)"),
    ("succeeded", r#"sum(payments_total{outcome="succeeded"})"#),
    ("declined", r#"sum(payments_total{outcome="declined"})"#),
    ("failed", r#"sum(payments_total{outcome="failed"})"#),
    ("processing", "max(payments_processing)"),
    ("breaker", "max(circuit_breaker_state)"),
];

/// Query for the id of the trace that `/traces/first` shows: the trace of the first successful payment that was created
/// since `$1`, the start of the console. The column `trace_parent` contains `00-TRACE-SPAN-01`.
pub(crate) const FIRST_TRACE: &str = "
    select split_part(trace_parent, '-', 2)
    from payments
    where status = 'succeeded' and created_at >= $1 and trace_parent is not null
    order by created_at
    limit 1";

/// Returns the end of the status line on the terminal.
pub(crate) fn status_line(figures: &BTreeMap<&str, f64>) -> String {
    let figure = |name: &str| or_dash(figures.get(name).copied(), 0);
    let breaker = match figures.get("breaker") {
        Some(2.0..) => "OPEN",
        Some(1.0..) => "half-open",
        Some(_) => "closed",
        None => "–",
    };
    format!("{} orders · {} processing · breaker {breaker}", figure("orders"), figure("processing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_is_shown_in_capitals() {
        assert_eq!(status_line(&BTreeMap::new()), "– orders · – processing · breaker –");
        let figures = BTreeMap::from([("orders", 7.0), ("processing", 1.0), ("breaker", 2.0)]);
        assert_eq!(status_line(&figures), "7 orders · 1 processing · breaker OPEN");
    }
}
