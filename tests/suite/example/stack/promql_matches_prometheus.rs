//! The values that the console computes for `PromQL` expressions, compared with those of Prometheus for the same
//! samples.
use std::collections::BTreeMap;

use dev::{
    console::{
        Console,
        metrics::{Element, Expression, Labels, Store},
    },
    harness::{Service, within},
    traffic::{self, Traffic},
};
use serde_json::Value;

use crate::{
    builder,
    stack::{
        repository,
        tools::{RULE_TIMEOUT, Server, tool},
    },
};

/// Relative tolerance. The console and Prometheus add some values in different orders, so the last digits may differ.
const TOLERANCE: f64 = 1e-9;

/// Additional expressions with many values, which neither the console's charts nor a rule uses.
const ADDITIONAL: [&str; 6] = [
    "histogram_quantile(0.95, sum by (method, path, le) (rate(http_request_duration_seconds_bucket[10s])))",
    "sum by (method, path, status) (increase(http_requests_total[15s]))",
    "rate(http_requests_total[7s]) > 0 and on (path) http_requests_total > 5",
    "avg_over_time(db_connections_active[10s]) / db_connections_max",
    "changes(http_requests_in_flight[15s])",
    "time() - max by (worker) (worker_last_success_timestamp_seconds) unless on (worker) audit_seal_lag_seconds",
];

/// Returns the expressions of the console's charts, the additional ones, and those of seven rule files. The other rule
/// files mostly use recorded series, or metrics of the monitoring programs.
async fn expressions() -> Vec<String> {
    let console =
        Console::start(([127, 0, 0, 1], 0).into(), &repository().join("prometheus/rules")).await.unwrap();
    let client = dev::http::client(dev::harness::WAIT_TIMEOUT).unwrap();
    let now: Value =
        client.get(format!("{}/api/now", console.url())).send().await.unwrap().json().await.unwrap();
    let of_page =
        now["charts"].as_array().unwrap().iter().flat_map(|chart| chart["expressions"].as_array().unwrap());
    let mut expressions: Vec<String> = of_page.map(|text| text.as_str().unwrap().to_owned()).collect();
    expressions.extend(ADDITIONAL.map(ToOwned::to_owned));
    for file in ["database", "payments", "presence", "security", "service", "telemetry", "audit"] {
        let text =
            std::fs::read_to_string(repository().join(format!("prometheus/rules/{file}.yml"))).unwrap();
        let rules: Value = yaml_serde::from_str(&text).unwrap();
        for group in rules["groups"].as_array().unwrap() {
            let of_group = group["rules"].as_array().unwrap().iter();
            expressions.extend(of_group.map(|rule| rule["expr"].as_str().unwrap().to_owned()));
        }
    }
    expressions
}

/// Returns the samples that Prometheus has scraped from its targets in the 14 minutes before a time. Omits the series
/// that Prometheus itself adds, such as `up`, alerts and recorded rules.
async fn samples(prometheus: &Server, until: i64) -> Store {
    let everything = [
        ("query", r#"{job=~".+", __name__!~"scrape_.+|ALERTS.*|up|.*:.*"}[14m]"#),
        ("time", &seconds(until)),
    ];
    let response = prometheus.query("api/v1/query", &everything).await;
    let mut scrapes: BTreeMap<(i64, String, String), String> = BTreeMap::new();
    for series in response["data"]["result"].as_array().unwrap() {
        let mut labels: Labels = serde_json::from_value(series["metric"].clone()).unwrap();
        let (job, instance) = (labels.remove("job").unwrap(), labels.remove("instance").unwrap());
        let name = labels.remove("__name__").unwrap();
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
        for sample in series["values"].as_array().unwrap() {
            #[expect(clippy::cast_possible_truncation, reason = "whole milliseconds")]
            let at = (sample[0].as_f64().unwrap() * 1000.0).round() as i64;
            let line = format!("{name}{{{}}} {}\n", labels.join(","), sample[1].as_str().unwrap());
            scrapes.entry((at, job.clone(), instance.clone())).or_default().push_str(&line);
        }
    }
    let mut store = Store::default();
    for ((at, job, instance), text) in scrapes {
        store.record_scrape(at, &job, &instance, Some(&text));
    }
    store
}

fn seconds(milliseconds: i64) -> String {
    format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
}

/// Returns the value that Prometheus computes for an expression at a time.
async fn value_of_prometheus(prometheus: &Server, expression: &str, at: i64) -> Vec<Element> {
    let response = prometheus.query("api/v1/query", &[("query", expression), ("time", &seconds(at))]).await;
    let value = |pair: &Value| pair[1].as_str().unwrap().parse().unwrap();
    let mut elements = match response["data"]["resultType"].as_str().unwrap() {
        "scalar" => vec![Element { labels: Labels::new(), value: value(&response["data"]["result"]) }],
        _ => response["data"]["result"]
            .as_array()
            .unwrap()
            .iter()
            .map(|found| Element {
                labels: serde_json::from_value(found["metric"].clone()).unwrap(),
                value: value(&found["value"]),
            })
            .collect(),
    };
    elements.sort_by(|one, other| one.labels.cmp(&other.labels));
    elements
}

fn are_equal(one: f64, other: f64) -> bool {
    (one.is_nan() && other.is_nan())
        || one.to_bits() == other.to_bits()
        || (one - other).abs() <= TOLERANCE * one.abs().max(other.abs())
}

#[tokio::test]
async fn the_console_computes_the_same_values_as_prometheus() {
    let Some(program) = tool("prometheus") else { return };
    let service: Service = builder().start().await;
    let prometheus = Server::prometheus(&program, &service, "127.0.0.1:9", Vec::new()).await;
    let _traffic = Traffic::start(traffic::Settings {
        rate_per_second: 60.0,
        ..traffic::Settings::new(service.api_url().clone())
    })
    .unwrap();
    let scrapes = [("query", "count_over_time(orders_created_total[5m])")];
    within(RULE_TIMEOUT, "Prometheus has enough samples", async || {
        let response = prometheus.query("api/v1/query", &scrapes).await;
        let count: f64 = response["data"]["result"][0]["value"][1].as_str()?.parse().ok()?;
        (count >= 15.0 && service.gateway().ledger().charges.len() > 20).then_some(())
    })
    .await;

    // The time is in the recent past, so that Prometheus has stored all samples until then.
    let at = chrono::Utc::now().timestamp_millis() - 2_500;
    let store = samples(&prometheus, at).await;
    let (mut compared, mut values) = (0, 0);
    for text in expressions().await {
        let expression = Expression::parse(&text).unwrap();
        let is_unsupported = expression.metrics().iter().any(|name| name.contains(':') || name == "up");
        if is_unsupported || expression.longest_range() > std::time::Duration::from_mins(14) {
            continue;
        }
        let mut console_values = expression.value(&store, at).unwrap().into_elements();
        console_values.sort_by(|one, other| one.labels.cmp(&other.labels));
        let prometheus_values = value_of_prometheus(&prometheus, &text, at).await;
        let labels = |elements: &[Element]| -> Vec<Labels> {
            elements.iter().map(|element| element.labels.clone()).collect()
        };
        assert_eq!(labels(&console_values), labels(&prometheus_values), "{text}");
        for (console_value, prometheus_value) in console_values.iter().zip(&prometheus_values) {
            assert!(
                are_equal(console_value.value, prometheus_value.value),
                "{text}: {console_value:?}, and Prometheus has {prometheus_value:?}"
            );
        }
        compared += 1;
        values += console_values.len();
    }
    println!("{compared} expressions with {values} values");
    assert!(compared >= 40 && values >= 100, "{compared} expressions with {values} values");
}
