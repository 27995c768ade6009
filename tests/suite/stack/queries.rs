//! The queries of dashboards, runbooks, documents and rules, run by a real Prometheus that has scraped the real service
//! under traffic. For documents and rules, the test runs only the series selectors of each query.
use std::{collections::BTreeSet, fs};

use dev::{
    harness::within,
    traffic::{self, Traffic},
};
use serde_json::Value;

use super::{
    files::{dashboards, files, rules},
    tools::{RULE_TIMEOUT, Server, tool},
};
use crate::service;

/// Prefixes of series that may be missing: alerts that do not fire, routes excluded from the latency indicator, and
/// series of targets that do not run in the test.
const OPTIONAL_SERIES: [&str; 6] =
    ["ALERTS", "slo:latency_excluded_path:info", "alertmanager_", "loki_", "otelcol_", "pg_"];

/// A query of Prometheus, and the document, dashboard or rule that contains the query.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Query {
    source: String,
    text: String,
}

/// Returns a dashboard's query with values in place of its variables, as Grafana sends it. `offset 1d` is removed,
/// because the test has no data of the day before.
fn dashboard_query(source: String, text: &str) -> Query {
    let text = text
        .replace("$job", ".+")
        .replace("$instance", ".+")
        .replace("$__rate_interval", "10s")
        .replace(" offset 1d", "");
    Query { source, text }
}

fn dashboard_queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for (_, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let source = format!("{} / {}", dashboard["title"], panel["title"]);
                queries.push(dashboard_query(source, target["expr"].as_str().unwrap()));
            }
        }
    }
    queries
}

/// Returns the queries of the runbooks.
fn runbook_queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for path in files("docs/runbooks", "md") {
        let text = fs::read_to_string(&path).unwrap();
        for block in text.split("```promql\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            queries.extend(block.lines().filter(|line| !line.trim().is_empty()).map(|line| Query {
                source: path.file_name().unwrap().to_str().unwrap().to_owned(),
                text: line.trim().to_owned(),
            }));
        }
    }
    queries
}

/// Texts with which the queries in documents begin.
const QUERY_STARTS: [&str; 9] =
    ["count", "db_", "histogram_quantile(", "max", "min", "predict_linear(", "rate(", "sum", "time()"];

/// Returns the queries in the documents of `docs`, without those in subdirectories. A query is inline code that begins
/// with one of [`QUERY_STARTS`], and contains `_`, and `(` or `/`.
fn document_queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for path in files("docs", "md") {
        let text = fs::read_to_string(&path).unwrap();
        let source = path.file_name().unwrap().to_str().unwrap();
        for line in text.lines() {
            let code = line.split('`').skip(1).step_by(2);
            queries.extend(
                code.filter(|code| QUERY_STARTS.iter().any(|start| code.starts_with(start)))
                    .filter(|code| code.contains(['(', '/']) && code.contains('_'))
                    .map(|code| Query { source: source.to_owned(), text: code.to_owned() }),
            );
        }
    }
    queries
}

fn rule_queries() -> Vec<Query> {
    let named = |rule: super::files::Rule| Query {
        source: rule.alert.or(rule.record).unwrap_or_default(),
        text: rule.expr.replace(" offset 1d", ""),
    };
    rules().into_iter().map(named).collect()
}

/// Returns each series selector of a query as a query of its own. The query of an alert that does not fire finds no
/// data, so the test runs its selectors.
async fn selectors(prometheus: &Server, query: &Query) -> Vec<Query> {
    fn collect(node: &Value, found: &mut Vec<String>) {
        match node {
            Value::Object(fields) => {
                if let (Some(name), Some(matchers)) = (fields.get("name"), fields.get("matchers")) {
                    let matchers: Vec<_> = matchers
                        .as_array()
                        .unwrap()
                        .iter()
                        .filter(|matcher| matcher["name"] != "__name__")
                        .map(|matcher| {
                            let text = |key: &str| matcher[key].as_str().unwrap().to_owned();
                            format!("{}{}{}", text("name"), text("type"), matcher["value"])
                        })
                        .collect();
                    found.push(format!("{}{{{}}}", name.as_str().unwrap(), matchers.join(",")));
                }
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let parsed = prometheus.query("api/v1/parse_query", &[("query", &query.text)]).await;
    let mut found = Vec::new();
    collect(&parsed["data"], &mut found);
    found.into_iter().map(|text| Query { source: query.source.clone(), text }).collect()
}

/// Returns whether the result of a query has a value other than NaN.
async fn has_data(prometheus: &Server, query: &Query) -> bool {
    let response = prometheus.query("api/v1/query", &[("query", &query.text)]).await;
    let series = response["data"]["result"].as_array().unwrap();
    series.iter().any(|series| series["value"][1].as_str().is_some_and(|value| value != "NaN"))
}

#[tokio::test]
async fn every_query_finds_data_on_the_running_service() {
    let Some(program) = tool("prometheus") else { return };
    let service = service().await;
    let traffic = Traffic::start(traffic::Settings {
        rate_per_second: 40.0,
        ..traffic::Settings::new(service.api_url().clone())
    })
    .unwrap();
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    let rule_files = files("prometheus/rules", "yml").into_iter().map(read).collect();
    // No Alertmanager listens at this address, so that the metrics of failed notifications exist too.
    let prometheus = Server::prometheus(&program, &service, "127.0.0.1:9", rule_files).await;

    let mut pending: Vec<_> = dashboard_queries().into_iter().chain(runbook_queries()).collect();
    let documents = document_queries();
    assert!(documents.len() > 20, "too few queries of documents were found: {documents:#?}");
    for query in pending.clone().into_iter().chain(rule_queries()).chain(documents) {
        pending.extend(selectors(&prometheus, &query).await);
    }
    let is_optional = |query: &Query| {
        OPTIONAL_SERIES
            .iter()
            .any(|metric| query.text.starts_with(metric) || query.text.contains(&format!("({metric}")))
    };
    pending.retain(|query| !is_optional(query));
    let mut pending: BTreeSet<_> = pending.into_iter().collect();
    assert!(pending.len() > 150, "too few queries were found");
    within(RULE_TIMEOUT, "every query finds data", async || {
        for query in pending.clone() {
            if has_data(&prometheus, &query).await {
                pending.remove(&query);
            }
        }
        println!("{} queries find nothing yet: {pending:#?}", pending.len());
        pending.is_empty().then_some(())
    })
    .await;

    let report = prometheus.query("api/v1/rules", &[]).await;
    for group in report["data"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{}: {}", rule["name"], rule["lastError"]);
        }
    }
    let report = traffic.stop().await;
    assert!(report.requests > 100, "{report}");
}
