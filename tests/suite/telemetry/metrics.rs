//! Metrics: names, correct values, a bounded number of series, and exemplars.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use dev::{
    harness::{Collector, INSERT_STATEMENT, PATH, Service, TABLE, eventually},
    process::Launch,
};
use rand::{RngExt as _, distr::Alphanumeric};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    builder,
    docs::{assert_complete, compliance::rows},
    service,
    stack::tools::tool,
};

/// The heading of the tables of metrics.
pub(crate) const HEADING: &str = "| name | type | labels | unit | what | for example |";

/// The type and the labels of each family.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

fn families(text: &str) -> Families {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    let scrape = prometheus_parse::Scrape::parse(lines).unwrap();
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut families: Families =
        typed.map(|(name, kind)| (name.to_owned(), (kind.to_owned(), BTreeSet::new()))).collect();
    for sample in scrape.samples {
        let parts =
            ["_sum", "_count", "_bucket"].into_iter().filter_map(|part| sample.metric.strip_suffix(part));
        let names: Vec<_> = parts.chain([sample.metric.as_str()]).map(str::to_owned).collect();
        let name = names.iter().find(|name| families.contains_key(*name)).unwrap();
        let labels = sample.labels.keys().filter(|label| *label != "le").cloned();
        families.get_mut(name).unwrap().1.extend(labels);
    }
    families
}

/// Returns the number of series.
fn series(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[tokio::test]
async fn the_document_lists_every_metric_with_its_type_and_labels() {
    let service = service().await;
    let exported = families(&service.metrics().await);
    let listed: Families = rows(HEADING)
        .iter()
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let labels = cells[3].split(", ").map(|label| label.trim_matches('`').to_owned());
            let labels = labels.filter(|label| !label.is_empty()).collect();
            let name = cells[1].trim_matches('`').to_owned();
            assert!(cells[6].contains(&name), "the row has no example of {name}: {row}");
            assert!(cells[4..=5].iter().all(|cell| !cell.is_empty()), "unit or meaning is missing: {row}");
            (name, (cells[2].to_owned(), labels))
        })
        .collect();
    assert_complete(
        &format!("the tables \"{HEADING}\" of docs"),
        &listed.into_iter().collect(),
        "/metrics",
        &exported.into_iter().collect(),
    );
}

#[tokio::test]
async fn ten_thousand_paths_and_methods_make_no_series() {
    const REQUESTS: usize = 10_000;
    const CONCURRENCY: usize = 50;
    let service = service().await;
    let text = |length: usize| -> String {
        rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
    };
    // One request of each kind creates the series that all requests of this kind share.
    let resources = format!("{PATH}/");
    let routes = [resources.as_str(), "/v1/users/", "/v1/audit-events/", "/problems/", "/docs/", "/"];
    for route in routes {
        let _any_status = service.anonymous().get(format!("{route}{}", text(8))).await;
        let unknown_method = Method::from_bytes(text(5).as_bytes()).unwrap();
        let _any_status = service.anonymous().request(unknown_method, format!("{route}{}", text(8))).await;
    }
    let before = service.metrics().await;

    let mut senders = JoinSet::new();
    for sender in 0..CONCURRENCY {
        let anonymous = service.anonymous();
        let requests: Vec<_> = (0..REQUESTS / CONCURRENCY)
            .map(|number| {
                let path = format!("{}{}?{}", routes[(sender + number) % routes.len()], text(12), text(6));
                let method = if number % 2 == 0 {
                    Method::GET
                } else {
                    Method::from_bytes(text(6).as_bytes()).unwrap()
                };
                anonymous.request(method, path)
            })
            .collect();
        senders.spawn(async move {
            for request in requests {
                let _any_status = request.await;
            }
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent.unwrap();
    }
    let after = service.metrics().await;
    let counted = |text: &str| -> usize {
        let counts = text.lines().filter(|line| line.starts_with("http_requests_total{"));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
    };
    assert!(counted(&after) - counted(&before) >= REQUESTS, "not all requests were counted");
    // Series with the label `query_type` are ignored, because workers may add such series. The code has a fixed number
    // of query types.
    let names = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("query_type="));
        lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    let grown: Vec<_> = names(&after).difference(&names(&before)).cloned().collect();
    assert_eq!(grown, [""; 0], "{} series became {}", series(&before), series(&after));
}

async fn pool(service: &Service) -> [i64; 3] {
    let metrics = service.metrics().await;
    ["active", "idle", "max"].map(|gauge| {
        let name = format!("db_connections_{gauge} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
    })
}

#[tokio::test]
async fn the_pools_gauges_are_correct_while_it_is_in_use() {
    // The workers are idle, because they would otherwise use a connection occasionally.
    let service = builder().with_idle_workers().start().await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let waiting: Vec<_> = (0..3).map(|_| customer.lists().in_background()).collect();
    // Connections are opened on demand, so the fourth connection of the pool may not exist yet.
    eventually("three connections are held", async || {
        matches!(pool(&service).await, [3, 0 | 1, 4]).then_some(())
    })
    .await;
    let one_more = customer.lists().in_background();
    let another = customer.lists().in_background();
    eventually("all connections are held", async || (pool(&service).await == [4, 0, 4]).then_some(())).await;
    held.release().await;
    for request in waiting.into_iter().chain([one_more, another]) {
        let _listed = request.response().await.assert_status(200);
    }
    eventually("all connections are free", async || (pool(&service).await == [0, 4, 4]).then_some(())).await;
}

/// Returns `/metrics` in the format that Prometheus requests.
pub async fn openmetrics(service: &Service) -> String {
    let client = reqwest::Client::new();
    let page = client.get(service.ops_url().join("/metrics").unwrap());
    let page = page.header("accept", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3");
    let response = page.send().await.unwrap();
    let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert_eq!(media_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.text().await.unwrap()
}

#[tokio::test]
async fn a_bucket_of_each_histogram_of_work_leads_to_a_trace() {
    let collector = Collector::start().await;
    let service = builder().with_traces_to(&collector).start().await;
    let customer = service.customer().await;
    let _created = customer.creates().header("x-correlation-id", "an-example").await.assert_status(201);
    let request = collector.wait_for_request(PATH, "an-example").await;
    let page = openmetrics(&service).await;
    assert!(page.ends_with("# EOF\n"));
    for series in [
        format!("http_request_duration_seconds_bucket{{method=\"POST\",path=\"{PATH}\","),
        format!("db_query_duration_seconds_bucket{{query_type=\"{INSERT_STATEMENT}\","),
    ] {
        let exemplar = format!("# {{trace_id=\"{}\",span_id=\"", request.trace_id);
        let found = page.lines().any(|line| line.starts_with(&series) && line.contains(&exemplar));
        assert!(found, "{series} {exemplar}\n{page}");
    }
}

#[tokio::test]
async fn prometheus_scrapes_the_page_and_its_exemplars() {
    let Some(prometheus) = tool("prometheus") else { return };
    let service = service().await;
    let _served =
        service.anonymous().get("/problems").header("x-correlation-id", "scraped").await.assert_status(200);
    let line = service.wait_for_log("the access line", |line| line["correlation_id"] == "scraped").await;
    let trace = line["trace_id"].as_str().unwrap().to_owned();

    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus");
    let _may_be_missing = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let ops = service.ops_url();
    let target = format!("{}:{}", ops.host_str().unwrap(), ops.port().unwrap());
    let scrapes = json!({ "scrape_configs": [{
        "job_name": "service", "scrape_interval": "1s", "scrape_timeout": "1s",
        "static_configs": [{ "targets": [target] }]
    }] });
    std::fs::write(directory.join("prometheus.yml"), scrapes.to_string()).unwrap();
    let running = Launch::new(prometheus)
        .args([
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            "--enable-feature=exemplar-storage",
            "--web.listen-address=127.0.0.1:0",
        ])
        .directory(&directory)
        .start()
        .unwrap();
    // The system selects the port, because another process could take a port that the test selects. Prometheus logs
    // the address.
    let address = eventually("Prometheus listens", async || {
        let lines = running.lines();
        let line = lines.iter().find(|line| line.text.contains("msg=\"Listening on\""))?;
        Some(line.text.split_once(" address=")?.1.trim().to_owned())
    })
    .await;

    let query = async |path: &str| -> Option<Value> {
        let response = reqwest::get(format!("http://{address}/api/v1/{path}")).await.ok()?;
        serde_json::from_str(&response.text().await.ok()?).ok()
    };
    let found = eventually("Prometheus has the exemplar", async || {
        let path = "query_exemplars?query=http_request_duration_seconds_bucket&start=0&end=9999999999";
        let exemplars = query(path).await?.to_string();
        exemplars.contains(&trace).then_some(exemplars)
    })
    .await;
    assert!(found.contains("/problems"), "{found}");
    let state = query("targets").await.unwrap();
    let target = &state["data"]["activeTargets"][0];
    assert_eq!((&target["health"], &target["lastError"]), (&json!("up"), &json!("")), "{state:#}");
    drop(running);
}
