//! The outputs in `docs/tour.md`, compared with the outputs of a run of this test.
//!
//! Each block of the document after a line `<!-- output: NAME -->` is compared with the output NAME of the run. Values
//! that can differ in every run, such as ids and times, are replaced in both texts first. `UPDATE_TOUR=1 cargo test
//! --test suite -- tour` writes the outputs of the run into the document.
use std::{collections::BTreeMap, fmt::Write, fs, time::Duration};

use dev::{
    example::gateway::Faults,
    harness::{Collector, HttpResponse, MUG, Service, Span, eventually},
};
use regex::Regex;
use serde_json::{Value, json};

use crate::{builder, stack::alerting::inbox, stack::repository};

const ORDERS: &str = "/v1/orders";
const PAYMENTS: &str = "/v1/orders/{id}/payments";
const HEADERS: [&str; 6] =
    ["location", "x-correlation-id", "idempotency-replayed", "retry-after", "ratelimit", "content-type"];

type Outputs = BTreeMap<&'static str, String>;

#[tokio::test]
async fn the_tour_shows_what_a_run_prints() {
    let collector = Collector::start().await;
    let inbox = inbox().await;
    let service = builder()
        .with_traces_to(&collector)
        .setting("ALERT_WEBHOOK_URL", &format!("http://{}/service", inbox.address()))
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .start()
        .await;
    service.disable_webhooks();
    let mut outputs = Outputs::new();

    // An order, and its payment.
    let customer = service.customer().await;
    let before = counters(&service).await;
    let order = json!({ "items": [{ "product_id": MUG, "quantity": 2 }] });
    let order = customer.post(ORDERS).json(&order).key("tour-order").header("x-correlation-id", "tour-1");
    let order = order.await.assert_status(201);
    outputs.insert("order", response(&order));
    let path = format!("{ORDERS}/{}/payments", order.id());
    let body = json!({ "payment_method": "pm_card_ok" });
    let pay = customer.post(&path).json(&body).key("tour-payment").header("x-correlation-id", "tour-2");
    let paid = pay.clone().await.assert_status(201);
    outputs.insert("payment", response(&paid));
    let replayed = pay.await.assert_status(201);
    assert_eq!(replayed.text, paid.text);
    outputs.insert("replay", head(&replayed));
    outputs.insert("gateway-request", gateway_request(&service));
    let row = "select id, gateway_key, order_id, amount, currency, status, attempts, gateway_charge_id from payments";
    outputs.insert("row", pretty(&service.database().rows(row).await[0]));

    // Telemetry.
    outputs.insert("logs", log_lines(&service, "tour-2").await);
    let request = collector.wait_for_request(PAYMENTS, "tour-2").await;
    eventually("the whole trace", async || {
        collector.children_of(&request).iter().any(|span| span.name == "settle payment").then_some(())
    })
    .await;
    let mut trace = String::new();
    write_span_tree(&collector, &request, 0, &mut trace);
    outputs.insert("trace", trace);
    outputs.insert("metrics", increments(&before, &counters(&service).await));

    // The audit log.
    outputs.insert("audit", table(&service.audit_events("correlation_id in ('tour-1', 'tour-2')").await));
    let seal = eventually("a seal of the payment's events", async || {
        let covers = "select number from audit_seals where last_sequence >= \
                      (select max(sequence) from audit_events where correlation_id = 'tour-2') order by number limit 1";
        service.database().rows(covers).await.first().map(|seal| seal["number"].clone())
    })
    .await;
    outputs.insert(
        "seal",
        log_line(&service.wait_for_log("the seal's line", |line| line["seal_number"] == seal).await),
    );
    let verified = service.command(&["audit", "verify"], &[]).await;
    outputs.insert("verify", verified.stdout);

    // The gateway is down.
    service.gateway().faults().set(Faults { error_rate: 1.0, error_status: 503, ..Faults::default() });
    let order = customer.places_an_order().await;
    let pay = order.pay("pm_card_ok").key("tour-outage").header("x-correlation-id", "tour-3");
    let processing = pay.clone().await.assert_status(202);
    outputs.insert("processing", response(&processing));
    let rejected = eventually("the breaker opens", async || {
        let order = customer.places_an_order().await;
        let paid = order.pay("pm_card_ok").header("x-correlation-id", "tour-4").await;
        (paid.status == 503).then_some(paid)
    })
    .await;
    outputs.insert("rejected", response(&rejected));
    let opened = service.wait_for_log("the breaker's line", |line| {
        line["level"] == "WARN" && line["field.service"] == "payment_gateway"
    });
    outputs.insert(
        "breaker",
        members(&opened.await, &["timestamp", "level", "target", "message", "field.service"]),
    );
    let alert = eventually("the alert", async || {
        inbox.alerts().into_iter().find(|alert| alert.name.contains("opened"))
    })
    .await;
    let alert = serde_json::to_value(alert).unwrap();
    outputs.insert("alert", members(&alert, &["source", "severity", "summary", "description", "started_at"]));

    // The gateway works again.
    service.gateway().faults().clear();
    order.wait_until("paid").await;
    let settled = service.wait_for_log("the settlement", |line| {
        line["correlation_id"] == "tour-3" && event(line)["action"] == "settle"
    });
    outputs.insert("recovered", log_line(&settled.await));
    outputs.insert("recovered-replay", head(&pay.await.assert_status(201)));

    compare(&outputs);
}

/// Checks that the document has a block for each output of the run. Then compares the blocks with the outputs, and
/// checks that the functions to which the document links exist. If `UPDATE_TOUR` is set, writes the outputs into the
/// blocks instead.
fn compare(outputs: &Outputs) {
    let path = repository().join("docs/tour.md");
    let document = fs::read_to_string(&path).unwrap();
    let block = Regex::new(r"(?s)(<!-- output: ([a-z-]+) -->\n```[a-z]*\n)(.*?)```").unwrap();
    let documented: Vec<_> = block.captures_iter(&document).map(|found| found[2].to_owned()).collect();
    let known: Vec<_> = outputs
        .keys()
        .copied()
        .filter(|name| documented.iter().any(|documented| documented == name))
        .collect();
    assert_eq!(known, outputs.keys().copied().collect::<Vec<_>>(), "docs/tour.md lacks outputs");
    let captured = |found: &regex::Captures<'_>| outputs.get(&found[2]).cloned();
    if std::env::var_os("UPDATE_TOUR").is_some() {
        let updated = block.replace_all(&document, |found: &regex::Captures<'_>| {
            format!("{}{}```", &found[1], captured(found).unwrap_or_default())
        });
        fs::write(path, updated.as_bytes()).unwrap();
        return;
    }
    let function = Regex::new(r"\[`(\w+)`\]\(\.\./([^)]+\.rs)\)").unwrap();
    for found in function.captures_iter(&document) {
        let source = fs::read_to_string(repository().join(&found[2])).unwrap();
        assert!(source.contains(&format!("fn {}", &found[1])), "{} has no `{}`", &found[2], &found[1]);
    }
    for found in block.captures_iter(&document) {
        let captured =
            captured(&found).unwrap_or_else(|| panic!("docs/tour.md shows an unknown output: {}", &found[2]));
        assert_eq!(
            normalized(&found[3]),
            normalized(&captured),
            "the block `{}` of docs/tour.md differs from this run; UPDATE_TOUR=1 updates it",
            &found[2]
        );
    }
}

/// Replaces the values that can differ in every run.
fn normalized(text: &str) -> String {
    let rules = [
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
        (r"\b[0-9a-f]{64}\b", "SHA256"),
        (r"\b[0-9a-f]{32}\b", "TRACE"),
        (r"\b[0-9a-f]{16}\b", "SPAN"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", "TIME"),
        (r"\b(ch|re|evt)_[0-9A-Za-z_]+", "GATEWAY_ID"),
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"\b\d+(\.\d+)? ms", "DURATION"),
        (r#""(seal_number|duration_ms|response_bytes)": [\d.]+"#, "$1: N"),
        (r"(?i)(retry-after|ratelimit): .*", "$1: N"),
        (r"\b\d+ events, up to seal \d+", "N events, up to seal N"),
        (r" +", " "),
    ];
    rules.iter().fold(text.to_owned(), |text, (pattern, replacement)| {
        Regex::new(pattern).unwrap().replace_all(&text, *replacement).into_owned()
    })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

/// Parses the audit event that a log line contains as text.
fn event(line: &Value) -> Value {
    line["audit_log"].as_str().map_or(Value::Null, |event| serde_json::from_str(event).unwrap())
}

/// Formats a log line, with the audit event as an object. Omits the members `service` and `version`, which have the
/// same value in all lines.
fn log_line(line: &Value) -> String {
    let mut line = line.clone();
    for common in ["service", "version"] {
        line.as_object_mut().unwrap().remove(common);
    }
    if !event(&line).is_null() {
        line["audit_log"] = event(&line);
    }
    pretty(&line)
}

/// Formats these members of an object.
fn members(object: &Value, names: &[&str]) -> String {
    let members = names.iter().map(|name| ((*name).to_owned(), object[name].clone()));
    pretty(&Value::Object(members.collect()))
}

/// Formats the status, the headers that the tour explains, and the body.
fn response(response: &HttpResponse) -> String {
    format!("{}\n{}", head(response), pretty(&response.json()))
}

fn head(response: &HttpResponse) -> String {
    let mut text = format!("HTTP/1.1 {}\n", response.status);
    for name in HEADERS {
        if let Some(value) = response.header(name) {
            writeln!(text, "{name}: {value}").unwrap();
        }
    }
    text
}

fn gateway_request(service: &Service) -> String {
    let requests = service.gateway().requests();
    let charge = requests.iter().find(|request| request.method == "POST").unwrap();
    format!(
        "{} {}\nidempotency-key: {}\nx-correlation-id: {}\ntraceparent: {}\n\n{}\n",
        charge.method,
        charge.path,
        charge.idempotency_key.as_deref().unwrap_or_default(),
        charge.correlation_id.as_deref().unwrap_or_default(),
        charge.traceparent.as_deref().unwrap_or_default(),
        charge.body,
    )
}

/// Returns the log lines of one payment request, sorted by time. The service may print them in another order, because
/// the lines of the target `audit` have a separate queue.
async fn log_lines(service: &Service, correlation_id: &str) -> String {
    let is_last = |line: &Value| line["correlation_id"] == correlation_id && line["route"] == PAYMENTS;
    let last = service.wait_for_log("the request's line", is_last).await;
    let of_request = |line: &Value| line["request_id"] == last["request_id"];
    service
        .wait_for_log("the settlement", |line| of_request(line) && event(line)["action"] == "settle")
        .await;
    let mut lines = service.logs();
    lines.retain(of_request);
    lines.sort_by_key(|line| line["timestamp"].to_string());
    lines.iter().map(log_line).collect()
}

fn write_span_tree(collector: &Collector, span: &Span, depth: usize, output: &mut String) {
    let duration = Duration::from_nanos(span.ended - span.started).as_secs_f64() * 1000.0;
    let name = format!("{}{}", "  ".repeat(depth), span.name);
    writeln!(output, "{name:<44}{duration:>7.1} ms").unwrap();
    for child in collector.children_of(span) {
        write_span_tree(collector, &child, depth + 1, output);
    }
}

/// Returns the value of each series that is a counter or the count of a histogram, if its name starts with one of the
/// words below.
async fn counters(service: &Service) -> BTreeMap<String, f64> {
    let lines = service.metrics().await;
    lines
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| {
            let name = series.split('{').next().unwrap_or_default();
            (name.ends_with("_total") || name.ends_with("_count"))
                && ["order", "payment", "http_requests", "audit_events"]
                    .iter()
                    .any(|part| name.starts_with(part))
        })
        .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
        .collect()
}

fn increments(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> String {
    let mut text = String::new();
    for (series, value) in after {
        let increment = value - before.get(series).copied().unwrap_or_default();
        if increment > 0.0 {
            writeln!(text, "{series} +{increment}").unwrap();
        }
    }
    text
}

/// Formats rows as lines, after a line with the names of the columns.
fn table(rows: &[Value]) -> String {
    let columns = ["sequence", "event_type", "resource", "action", "result", "role", "correlation_id"];
    let mut text = columns.map(|column| format!("{column:<16}")).concat().trim_end().to_owned() + "\n";
    for row in rows {
        let cells = columns.map(|column| {
            let cell = &row[column];
            format!("{:<16}", cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
        });
        text += cells.concat().trim_end();
        text.push('\n');
    }
    text
}
