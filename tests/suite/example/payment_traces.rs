//! The trace of a payment (its request, the database, the gateway, recovery and webhooks), and the logs and metrics
//! that refer to it.
use dev::harness::{Collector, MUG, Span, SpanKind, SpanStatus, TEAPOT, eventually};
use serde_json::{Value, json};

use crate::{
    builder,
    telemetry::{
        metrics::openmetrics,
        traces::{assert_attributes, traced},
    },
};

const PAYMENTS: &str = "/v1/orders/{id}/payments";

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

#[tokio::test]
async fn the_gateway_call_has_the_trace_and_correlation_id() {
    // The service continues a caller's trace only if the caller is a trusted proxy.
    let service = builder().setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    // A webhook may arrive before the gateway's response, and then settles the payment in a trace of its own.
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let paying = order
        .pay("pm_card_ok")
        .header("x-correlation-id", "a-checkout")
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("baggage", "secret=of-the-caller");
    let payment = service.gateway_key(paying.await.assert_status(201).id()).await.to_string();

    let requests = service.gateway().requests();
    let charge = requests.iter().find(|request| request.idempotency_key.as_ref() == Some(&payment)).unwrap();
    assert_eq!(charge.correlation_id.as_deref(), Some("a-checkout"));
    assert_eq!(charge.traceparent.as_ref().unwrap().split('-').nth(1), Some(trace));
    let settled = service.audit_events("resource = 'payments' and action = 'settle'").await;
    assert_eq!(settled[0]["trace_id"], trace);
    let line =
        |line: &Value| line["correlation_id"] == "a-checkout" && line["route"] == "/v1/orders/{id}/payments";
    assert_eq!(service.wait_for_log("the request's line", line).await["trace_id"], trace);
}

#[tokio::test]
async fn a_payment_is_one_trace_across_database_and_gateway() {
    let collector = Collector::start().await;
    let service = traced(&collector).await;
    // A webhook may arrive before the gateway's response, and then settles the payment in a trace of its own.
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let paid = order.pay("pm_card_ok").header("x-correlation-id", "a-checkout").await.assert_status(201);

    let request = collector.wait_for_request(PAYMENTS, "a-checkout").await;
    assert_eq!(request.name, "POST /v1/orders/{id}/payments");
    assert_eq!((request.status, request.parent_id.as_str()), (SpanStatus::Unset, ""));
    assert_attributes(
        &request,
        &[
            ("http.request.method", json!("POST")),
            ("http.route", json!("/v1/orders/{id}/payments")),
            ("http.response.status_code", json!(201)),
            ("url.path", json!(format!("/v1/orders/{}/payments", order.id))),
            ("url.scheme", json!("http")),
            ("network.protocol.version", json!("1.1")),
            ("client.address", json!("127.0.0.1")),
        ],
    );

    let children = eventually("the whole trace", async || {
        let children = collector.children_of(&request);
        children.iter().any(|span| span.name == "settle payment").then_some(children)
    })
    .await;
    assert_eq!(
        names(&children),
        ["SELECT sessions", "SELECT orders", "INSERT payments", "POST", "settle payment"]
    );
    let settling = &children[4];
    assert_attributes(settling, &[("outcome", json!("succeeded")), ("payment_id", json!(paid.text("id")))]);
    let settled = collector.children_of(settling);
    assert_eq!(names(&settled), ["SETTLE payments", "UPDATE idempotency_keys"]);
    for span in children[..4].iter().chain(&settled) {
        assert_eq!((span.kind, span.status), (SpanKind::Client, SpanStatus::Unset), "{span:#?}");
        assert!(request.started <= span.started && span.started <= span.ended, "{span:#?}");
        assert!(span.ended <= request.ended, "the span ends after its request: {span:#?}");
    }
    let database = service.database().service_url();
    assert_attributes(
        &children[2],
        &[
            ("db.system.name", json!("postgresql")),
            ("db.namespace", json!(database.path().trim_start_matches('/'))),
            ("db.collection.name", json!("payments")),
            ("db.query.summary", json!("INSERT payments")),
            ("server.port", json!(database.port().unwrap_or(5432))),
        ],
    );
    let gateway = service.gateway().url();
    assert_attributes(
        &children[3],
        &[
            ("http.request.method", json!("POST")),
            ("http.response.status_code", json!(201)),
            ("url.full", json!(gateway.join("v1/charges").unwrap().as_str())),
            ("server.address", json!("127.0.0.1")),
            ("server.port", json!(gateway.port())),
        ],
    );
    for (name, value) in [
        ("service.name", json!(env!("CARGO_PKG_NAME"))),
        ("service.version", json!(env!("CARGO_PKG_VERSION"))),
        ("deployment.environment.name", json!("test")),
    ] {
        assert_eq!(request.resource.get(name), Some(&value), "{:#?}", request.resource);
    }
    assert!(request.resource["service.instance.id"].as_str().is_some_and(|id| !id.is_empty()));
}

#[tokio::test]
async fn a_failed_gateway_call_has_its_cause_in_the_span() {
    let collector = Collector::start().await;
    let service = traced(&collector).await;
    let order = service.customer().await.places_an_order().await;
    let _paid = order.pay("pm_card_flaky").header("x-correlation-id", "flaky").await;
    let request = collector.wait_for_request(PAYMENTS, "flaky").await;
    let failed = collector
        .wait_for_span("the call that failed", |span| {
            span.parent_id == request.span_id && span.name == "POST" && span.status == SpanStatus::Error
        })
        .await;
    assert_attributes(&failed, &[("http.response.status_code", json!(503)), ("error.type", json!("503"))]);
    let rejected = order.customer.places(&[(TEAPOT, 1)]).await;
    let _rejected = rejected.pay("pm_card_unheard_of").header("x-correlation-id", "refused").await;
    let request = collector.wait_for_request(PAYMENTS, "refused").await;
    let call = collector
        .wait_for_span("the call", |span| span.parent_id == request.span_id && span.name == "POST")
        .await;
    assert_eq!(call.status, SpanStatus::Error, "a 422 must be an error of the gateway call");
    assert_attributes(&call, &[("http.response.status_code", json!(422)), ("error.type", json!("422"))]);
}

#[tokio::test]
async fn recovery_and_webhooks_link_to_the_payments_trace() {
    let collector = Collector::start().await;
    let service = traced(&collector).await;
    let order = service.customer().await.places_an_order().await;
    let _paid = order.pay("pm_card_ok").header("x-correlation-id", "with-webhook").await.assert_status(201);
    let began = collector.wait_for_request(PAYMENTS, "with-webhook").await;
    let webhook = collector
        .wait_for_span("the webhook", |span| {
            span.name == "POST /v1/gateway/events"
                && span.links.iter().any(|link| link.trace_id == began.trace_id)
        })
        .await;
    assert_eq!(webhook.attributes["correlation_id"], "with-webhook");
    assert_ne!(webhook.trace_id, began.trace_id, "the webhook must have a trace of its own");

    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let unknown =
        order.pay("pm_card_timeout").header("x-correlation-id", "without-webhook").await.assert_status(202);
    let began = collector.wait_for_request(PAYMENTS, "without-webhook").await;
    let recovery = collector
        .wait_for_span("the recovery", |span| {
            span.name == "recover payment" && span.links.iter().any(|link| link.trace_id == began.trace_id)
        })
        .await;
    let children = eventually("the spans of the recovery", async || {
        let children = collector.children_of(&recovery);
        children.iter().any(|span| span.name == "settle payment").then_some(children)
    })
    .await;
    assert_eq!(names(&children), ["GET", "settle payment"]);
    let called = format!("{}v1/charges?REDACTED", service.gateway().url());
    assert_attributes(&children[0], &[("url.full", json!(called))]);
    assert_attributes(&recovery, &[("payment_id", json!(unknown.text("id")))]);
}

#[tokio::test]
async fn baggage_is_accepted_from_a_proxy_and_never_sent_on() {
    let collector = Collector::start().await;
    let service =
        builder().with_traces_to(&collector).setting("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let order = service.customer().await.places_an_order().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let paid = order
        .pay("pm_card_ok")
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("baggage", "customer.tier=gold")
        .await
        .assert_status(201);
    let requests = service.gateway().requests();
    let key = service.gateway_key(paid.id()).await.to_string();
    let charge = requests.iter().find(|request| request.idempotency_key.as_ref() == Some(&key)).unwrap();
    assert!(charge.traceparent.as_ref().is_some_and(|parent| parent.contains(trace)), "{charge:?}");
    assert_eq!(charge.baggage, None);
}

#[tokio::test]
async fn every_line_of_a_request_has_its_ids_and_user() {
    let service = builder().setting("RUST_LOG", "info").start().await;
    let customer = service.customer().await;
    let order = customer.places_an_order().await;
    let _paid = order.pay("pm_card_error").header("x-correlation-id", "one-payment").await;
    // The task that carries out the payment logs this line. The request itself logs the access line.
    let failure = service
        .wait_for_log("the gateway's failure", |line| {
            line["correlation_id"] == "one-payment" && line["target"] == "app::slices::payments::gateway"
        })
        .await;
    // The webhook of this payment is another request with the same correlation id, so the route selects the access
    // line.
    let access = service
        .wait_for_log("the access line", |line| {
            line["correlation_id"] == "one-payment" && line["target"] == "access" && line["route"] == PAYMENTS
        })
        .await;
    for field in ["trace_id", "request_id", "user_id"] {
        assert!(failure[field].is_string(), "{field} in {failure:#}");
        assert_eq!(failure[field], access[field]);
    }
    assert_ne!(failure["span_id"], access["span_id"], "the failure must be logged in a span of its own");
}

#[tokio::test]
async fn gateway_latency_has_exemplars_of_payment_traces() {
    let collector = Collector::start().await;
    let service = builder().with_traces_to(&collector).start().await;
    // The first run of reconciliation also calls the gateway, and its exemplar would replace that of the payment.
    service.wait_for_first_work().await;
    let order = service.customer().await.places(&[(MUG, 1)]).await;
    let _paid = order.pay("pm_card_ok").header("x-correlation-id", "an-example").await.assert_status(201);
    let request = collector.wait_for_request("/v1/orders/{id}/payments", "an-example").await;
    let page = openmetrics(&service).await;
    assert!(page.ends_with("# EOF\n"));
    for series in [
        "http_request_duration_seconds_bucket{method=\"POST\",path=\"/v1/orders/{id}/payments\",",
        "db_query_duration_seconds_bucket{query_type=\"payments.insert\",",
        "http_client_request_duration_seconds_bucket{outcome=\"success\",service=\"payment_gateway\",",
    ] {
        let exemplar = format!("# {{trace_id=\"{}\",span_id=\"", request.trace_id);
        let found = page.lines().any(|line| line.starts_with(series) && line.contains(&exemplar));
        assert!(found, "{series} {exemplar}\n{page}");
    }
}
