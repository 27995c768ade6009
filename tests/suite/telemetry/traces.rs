//! Traces as received by a collector, the settings of their export, and trace ids in log lines.
use axum::{Router, http::HeaderMap};
use dev::harness::{Collector, PATH, ROUTE, Service, Span, SpanKind, SpanStatus, TABLE, WAIT_TIMEOUT};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use crate::{
    builder,
    operations::startup::{command, minimum_settings},
    service,
};

/// A public route. A request to it needs no session, so its trace has a single span.
const PUBLIC: &str = "/problems";

pub async fn traced(collector: &Collector) -> Service {
    builder().with_traces_to(collector).start().await
}

#[track_caller]
pub fn assert_attributes(span: &Span, expected: &[(&str, Value)]) {
    for (name, value) in expected {
        assert_eq!(span.attributes.get(*name), Some(value), "{name} in {span:#?}");
    }
}

#[tokio::test]
async fn spans_are_sent_over_http_with_the_configured_resource() {
    let collector = Collector::start().await;
    let service = builder()
        .with_traces_to(&collector)
        .setting("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .setting("OTEL_SERVICE_NAME", "tea-time")
        .setting("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=blue,team=tea")
        .start()
        .await;
    let _served =
        service.anonymous().get(PUBLIC).header("x-correlation-id", "over-http").await.assert_status(200);
    let request = collector.wait_for_request(PUBLIC, "over-http").await;
    for (name, value) in
        [("service.name", "tea-time"), ("deployment.environment.name", "blue"), ("team", "tea")]
    {
        assert_eq!(request.resource[name], value);
    }
}

#[tokio::test]
async fn a_request_has_the_scheme_and_the_server_that_its_client_used() {
    let collector = Collector::start().await;
    for (proxies, scheme, port) in [("127.0.0.0/8", "https", 443), ("127.0.0.2/32", "http", 80)] {
        let service = builder().with_traces_to(&collector).setting("TRUSTED_PROXIES", proxies).start().await;
        let path = format!("{PUBLIC}?token=a-secret");
        let request = service.anonymous().get(path).header("host", "shop.example");
        let request = request.header("x-forwarded-proto", "https").header("x-correlation-id", scheme);
        let request = request.header("user-agent", "a-browser/1.0");
        let _served = request.await.assert_status(200);
        let span = collector.wait_for_request(PUBLIC, scheme).await;
        assert_attributes(
            &span,
            &[
                ("url.scheme", json!(scheme)),
                ("url.path", json!(PUBLIC)),
                ("server.address", json!("shop.example")),
                ("server.port", json!(port)),
                ("user_agent.original", json!("a-browser/1.0")),
            ],
        );
        assert!(!format!("{span:?}").contains("a-secret"), "{span:#?}");
    }
}

#[tokio::test]
async fn an_unknown_method_is_an_attribute_and_no_name() {
    let collector = Collector::start().await;
    let service = builder().with_traces_to(&collector).start().await;
    let brew = service.anonymous().request(Method::from_bytes(b"BREW").unwrap(), "/coffee");
    let _unknown = brew.header("x-correlation-id", "brew").await.assert_status(404);
    let is_brew = |span: &Span| span.attributes.get("correlation_id").is_some_and(|id| id == "brew");
    let span = collector.wait_for_span("the span of the request", is_brew).await;
    assert_attributes(
        &span,
        &[("http.request.method", json!("_OTHER")), ("http.request.method_original", json!("BREW"))],
    );
    assert!(!span.name.contains("BREW"), "{}", span.name);
}

#[tokio::test]
async fn attributes_are_decoded_and_ignored_variables_named() {
    let collector = Collector::start().await;
    let service = builder()
        .with_traces_to(&collector)
        .setting("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b,service.name=tea%2Dtime")
        .setting("OTEL_METRIC_EXPORT_INTERVAL", "1000")
        .setting("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem")
        .setting("OTEL_EXPORTER_OTLP_TIMEOUT", "1s")
        .setting("OTEL_BSP_MAX_QUEUE_SIZE", "0")
        .start()
        .await;
    let warnings = [
        "ignored OTEL_METRIC_EXPORT_INTERVAL, which is not supported",
        "ignored OTEL_EXPORTER_OTLP_CERTIFICATE, which is not supported",
        "ignored OTEL_EXPORTER_OTLP_TIMEOUT: it is not a number of at least 0",
        "ignored OTEL_BSP_MAX_QUEUE_SIZE: it is not a number of at least 1",
    ];
    for warning in warnings {
        service.wait_for_log("a warning", |line| line["level"] == "WARN" && line["message"] == warning).await;
    }
    let warned: Vec<_> = service.logs().into_iter().filter(|line| line["level"] == "WARN").collect();
    assert_eq!(
        warned.iter().filter(|line| line["message"].to_string().contains("OTEL_")).count(),
        warnings.len(),
        "{warned:#?}"
    );
    let _served =
        service.anonymous().get(PUBLIC).header("x-correlation-id", "decoded").await.assert_status(200);
    let span = collector.wait_for_request(PUBLIC, "decoded").await;
    assert_eq!((&span.resource["team"], &span.resource["service.name"]), (&json!("a b"), &json!("tea-time")));
}

/// Starts a receiver of exports. Returns its URL, and a channel with the compression of each export.
async fn receiver_of_encodings() -> (String, mpsc::UnboundedReceiver<Option<String>>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let take = async move |headers: HeaderMap| {
        let encoding = ["grpc-encoding", "content-encoding"].into_iter().find_map(|name| headers.get(name));
        let _receiver_may_be_dropped = sender.send(encoding.map(|value| value.to_str().unwrap().to_owned()));
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(take)).await });
    (url, receiver)
}

#[tokio::test]
async fn exports_are_compressed_as_configured() {
    for protocol in ["grpc", "http/protobuf"] {
        for (compression, encoding) in [("gzip", Some("gzip")), ("none", None)] {
            let (url, mut encodings) = receiver_of_encodings().await;
            let _service = builder()
                .setting("OTEL_EXPORTER_OTLP_ENDPOINT", &url)
                .setting("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
                .setting("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
                .setting("OTEL_BSP_SCHEDULE_DELAY", "50")
                .start()
                .await;
            let used = timeout(WAIT_TIMEOUT, encodings.recv()).await.unwrap().unwrap();
            assert_eq!(used.as_deref(), encoding, "{protocol} {compression}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_without_a_scheme_is_rejected_by_name() {
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
        for endpoint in ["collector:4317", "10.0.0.1:4317", "nonsense", "ftp://collector"] {
            let settings = [&minimum_settings()[..], &[(name, endpoint)]].concat();
            let stopped = command(&["serve"], &settings).await;
            assert_eq!(stopped.code(), Some(1), "{name}={endpoint}");
            let rule = format!("{name} must be an http or https URL");
            assert!(stopped.stderr.contains(&rule), "{endpoint}: {}", stopped.stderr);
        }
    }
}

#[tokio::test]
async fn only_failures_of_the_service_are_span_errors() {
    let collector = Collector::start().await;
    let service = traced(&collector).await;
    let customer = service.customer().await;
    let request = |id: &str| customer.lists().header("x-correlation-id", id);
    let is_list = |span: &Span| span.name.starts_with("LIST") && span.name.ends_with(TABLE);
    let status = |span: &Span| (span.status, span.attributes["http.response.status_code"].clone());

    let unknown = format!("{PATH}/{}", uuid::Uuid::nil());
    let _unknown = customer.get(unknown).header("x-correlation-id", "client_error").await.assert_status(404);
    let client_error = collector.wait_for_request(ROUTE, "client_error").await;
    assert_eq!(status(&client_error), (SpanStatus::Unset, json!(404)));
    assert!(!client_error.attributes.contains_key("error.type"), "{client_error:#?}");

    // A client disconnect is no error of the service. The span of the request has the status code 499, and the span of
    // the cancelled statement is an error.
    let held = service.database().lock(TABLE).await;
    let disconnected = request("disconnected").in_background();
    service.database().wait_for_blocked_statements(1).await;
    let _given_up = disconnected.give_up().await;
    let disconnected = collector.wait_for_request(PATH, "disconnected").await;
    assert_eq!(status(&disconnected), (SpanStatus::Unset, json!(499)));
    let cancelled = collector
        .wait_for_span("the cancelled statement", |span| {
            is_list(span) && span.parent_id == disconnected.span_id
        })
        .await;
    assert_eq!(cancelled.status, SpanStatus::Error);
    assert_attributes(&cancelled, &[("error.type", json!("cancelled"))]);
    held.release().await;

    service.database().execute(format!("revoke select on {TABLE} from app_runtime")).await;
    let _failed = request("server_error").await.assert_status(500);
    let server_error = collector.wait_for_request(PATH, "server_error").await;
    assert_eq!(status(&server_error), (SpanStatus::Error, json!(500)));
    assert_attributes(&server_error, &[("error.type", json!("500"))]);
    let statement = collector
        .wait_for_span("the failed statement", |span| is_list(span) && span.parent_id == server_error.span_id)
        .await;
    assert_eq!(statement.status, SpanStatus::Error);
    assert_attributes(
        &statement,
        &[("error.type", json!("42501")), ("db.response.status_code", json!("42501"))],
    );
}

#[tokio::test]
async fn the_span_of_sealing_reports_its_result() {
    let collector = Collector::start().await;
    let service =
        builder().with_traces_to(&collector).setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    service.customer().await;
    let sealed =
        |span: &Span| span.name == "seal batch" && span.attributes.get("seal_number") == Some(&json!(1));
    let batch = collector.wait_for_span("the first seal", sealed).await;
    let events =
        service.database().number("select event_count::bigint from audit_seals where number = 1").await;
    assert_attributes(&batch, &[("event_count", json!(events))]);
    let run = collector.wait_for_span("the worker's run", |span| span.span_id == batch.parent_id).await;
    assert_eq!(run.name, "audit_sealing");
}

/// Sends requests to a service with this sampler. Returns the number of sampled traces. Panics if a trace is
/// incomplete.
async fn count_sampled(sampler: &str, ratio: &str, requests: usize) -> usize {
    let collector = Collector::start().await;
    let service = builder()
        .with_traces_to(&collector)
        .setting("OTEL_TRACES_SAMPLER", sampler)
        .setting("OTEL_TRACES_SAMPLER_ARG", ratio)
        .start()
        .await;
    for _ in 0..requests {
        let _listed = service.anonymous().get(PUBLIC).await.assert_status(200);
    }
    assert!(
        service.terminate().await.success(),
        "the service must stop without an error, because it sends its last spans before the exit"
    );
    let spans = collector.spans();
    for span in &spans {
        let is_first = span.parent_id.is_empty();
        let parent = spans.iter().find(|other| other.span_id == span.parent_id);
        assert!(is_first || parent.is_some(), "the parent is missing: {span:#?}");
    }
    spans.iter().filter(|span| span.kind == SpanKind::Server && span.name == "GET /problems").count()
}

#[tokio::test]
async fn sampled_traces_are_complete() {
    const REQUESTS: usize = 200;
    for sampler in ["traceidratio", "parentbased_traceidratio"] {
        assert_eq!(count_sampled(sampler, "0", 20).await, 0, "{sampler}");
        assert_eq!(count_sampled(sampler, "1", 20).await, 20, "{sampler}");
        // The mean is 100 requests, and the standard deviation is 7 requests. The bounds are six standard deviations
        // below and above the mean.
        let half = count_sampled(sampler, "0.5", REQUESTS).await;
        assert!((58..=142).contains(&half), "{sampler}: {half} of {REQUESTS}");
    }
}

#[tokio::test]
async fn the_standard_exporter_setting_is_supported() {
    let collector = Collector::start().await;
    let silent = builder().with_traces_to(&collector).setting("OTEL_TRACES_EXPORTER", "none").start().await;
    let _served =
        silent.anonymous().get(PUBLIC).header("x-correlation-id", "not-exported").await.assert_status(200);
    let line = silent.wait_for_log("the access line", |line| line["correlation_id"] == "not-exported").await;
    assert!(line["trace_id"].is_string(), "the line must have a trace id without an exporter: {line:#}");
    assert!(silent.terminate().await.success(), "the service must stop without an error");
    assert_eq!(collector.requests(), 0);

    let sending = builder().with_traces_to(&collector).setting("OTEL_TRACES_EXPORTER", "otlp").start().await;
    let _served = sending.anonymous().get(PUBLIC).header("x-correlation-id", "sent").await.assert_status(200);
    collector.wait_for_request(PUBLIC, "sent").await;

    let other = builder().with_traces_to(&collector).setting("OTEL_TRACES_EXPORTER", "zipkin").start().await;
    let warned = |line: &Value| {
        line["message"] == "OTEL_TRACES_EXPORTER: ignored zipkin; supported values are otlp and none"
    };
    other.wait_for_log("a warning", warned).await;
    let _served =
        other.anonymous().get(PUBLIC).header("x-correlation-id", "sent-too").await.assert_status(200);
    collector.wait_for_request(PUBLIC, "sent-too").await;
}

#[tokio::test]
async fn an_untrusted_trace_is_linked_and_a_trusted_one_is_continued() {
    let collector = Collector::start().await;
    let service =
        builder().with_traces_to(&collector).setting("TRUSTED_PROXIES", "127.0.0.2/32").start().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let unsampled = format!("00-{trace}-00f067aa0ba902b7-00");
    let request = |id: &str| service.anonymous().get(PUBLIC).header("x-correlation-id", id);
    let _untrusted = request("untrusted").header("traceparent", &unsampled).await.assert_status(200);
    let untrusted = collector.wait_for_request(PUBLIC, "untrusted").await;
    assert_eq!(untrusted.parent_id, "", "an untrusted trace must not be continued");
    assert_ne!(untrusted.trace_id, trace);
    let links: Vec<_> =
        untrusted.links.iter().map(|link| (link.trace_id.as_str(), link.span_id.as_str())).collect();
    assert_eq!(links, [(trace, "00f067aa0ba902b7")]);

    let trusting =
        builder().with_traces_to(&collector).setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let request = |id: &str| trusting.anonymous().get(PUBLIC).header("x-correlation-id", id);
    let _unsampled = request("unsampled").header("traceparent", &unsampled).await.assert_status(200);
    let sampled = format!("00-{trace}-00f067aa0ba902b7-01");
    let _sampled = request("sampled").header("traceparent", &sampled).await.assert_status(200);
    let sampled = collector.wait_for_request(PUBLIC, "sampled").await;
    assert_eq!((sampled.trace_id.as_str(), sampled.parent_id.as_str()), (trace, "00f067aa0ba902b7"));
    assert!(sampled.links.is_empty());
    assert!(
        collector
            .spans()
            .iter()
            .all(|span| span.attributes.get("correlation_id") != Some(&json!("unsampled")))
    );
}

#[tokio::test]
async fn only_the_configured_propagators_are_read() {
    let collector = Collector::start().await;
    let service = builder()
        .with_traces_to(&collector)
        .setting("OTEL_PROPAGATORS", "b3,jaeger")
        .setting("TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    let request = |id: &str| service.anonymous().get(PUBLIC).header("x-correlation-id", id);
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let _b3 = request("b3").header("b3", &format!("{trace}-{parent}-1")).await.assert_status(200);
    let multiple = request("b3multi").header("x-b3-traceid", trace).header("x-b3-spanid", parent);
    let _multiple = multiple.await.assert_status(200);
    let _jaeger =
        request("jaeger").header("uber-trace-id", &format!("{trace}:{parent}:0:1")).await.assert_status(200);
    let _w3c =
        request("w3c").header("traceparent", &format!("00-{trace}-{parent}-01")).await.assert_status(200);
    for id in ["b3", "b3multi", "jaeger"] {
        let request = collector.wait_for_request(PUBLIC, id).await;
        assert_eq!((request.trace_id.as_str(), request.parent_id.as_str()), (trace, parent), "{id}");
    }
    assert_ne!(collector.wait_for_request(PUBLIC, "w3c").await.trace_id, trace);
}

#[tokio::test]
async fn logs_have_trace_ids_without_a_collector_unless_disabled() {
    let line = async |service: &Service| {
        let _served =
            service.anonymous().get(PUBLIC).header("x-correlation-id", "seen").await.assert_status(200);
        service.wait_for_log("the access line", |line| line["correlation_id"] == "seen").await
    };
    let untraced = line(&service().await).await;
    assert!(untraced["trace_id"].as_str().is_some_and(|id| id.len() == 32), "{untraced:#}");
    let disabled = line(&builder().setting("OTEL_SDK_DISABLED", "true").start().await).await;
    assert_eq!((&disabled["trace_id"], &disabled["span_id"]), (&Value::Null, &Value::Null));
}
