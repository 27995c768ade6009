//! No secret is exposed in logs of any level, standard error, spans, metrics, the audit log, error bodies, or responses
//! of the operations listener.
use dev::harness::{
    Client, Collector, GATEWAY_API_KEY, HttpResponse, MUG, PASSWORD as STAFF_PASSWORD, Service,
};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{builder, http::openapi};

const PASSWORD: &str = "a-password-SECRET1";
const WRONG_PASSWORD: &str = "a-wrong-password-SECRET2";
const NEW_PASSWORD: &str = "a-new-password-SECRET3";
const STRAY_TOKEN: &str = "a-token-that-is-not-one-SECRET4";
const OPS_TOKEN: &str = "an-operations-token-SECRET5";
const CARD: &str = "4111111111111111";
const WEBHOOK_SECRET: &str = "U0VDUkVUNiBmb3IgdGVzdHMgb25seSwgbmV2ZXI=";
const COOKIE: &str = "a-cookie-SECRET7";
const BAGGAGE: &str = "baggage-of-a-stranger-SECRET8";

/// Uses all routes with secrets in valid and invalid requests. Returns the responses that must contain no secret, and
/// session tokens that must not be exposed either.
async fn use_all_routes(service: &Service) -> (Vec<HttpResponse>, Vec<String>) {
    let mut rejections = Vec::new();
    let anonymous =
        service.anonymous().with_header("cookie", COOKIE).with_header("baggage", &format!("x={BAGGAGE}"));
    let credentials = |password: &str| json!({ "email": "ada@example.com", "password": password });
    let registration = json!({ "email": "ada@example.com", "password": PASSWORD, "name": "Ada" });
    let _registered = anonymous.post("/v1/users").json(&registration).await.assert_status(201);
    rejections.push(anonymous.post("/v1/users").json(&registration).await.assert_status(409));
    for body in [
        format!("{{\"email\":\"ada@example.com\",\"password\":\"{PASSWORD}\""),
        format!("{{\"email\":\"ada@example.com\",\"password\":[\"{PASSWORD}\"],\"name\":\"Ada\"}}"),
        format!("{{\"email\":\"{PASSWORD}\",\"password\":\"{WRONG_PASSWORD}\",\"name\":{CARD}}}"),
        format!("\"{PASSWORD}\""),
        format!("{{\"email\":\"ada@example.com\",\"password\":{CARD},\"name\":\"Ada\"}}"),
    ] {
        rejections
            .push(anonymous.post("/v1/users").header("content-type", "application/json").body(body).await);
    }
    rejections
        .push(anonymous.post("/v1/sessions").json(&credentials(WRONG_PASSWORD)).await.assert_status(401));
    let session = anonymous.post("/v1/sessions").json(&credentials(PASSWORD)).await.assert_status(201);
    let token = session.text("token");
    let ada = anonymous.with_token(&token);

    for authorization in
        [format!("Bearer {STRAY_TOKEN}"), format!("Basic {STRAY_TOKEN}"), STRAY_TOKEN.to_owned()]
    {
        rejections
            .push(anonymous.get("/v1/me").header("authorization", &authorization).await.assert_status(401));
    }
    rejections.push(anonymous.get(format!("/v1/products?token={STRAY_TOKEN}&limit={CARD}")).await);
    rejections.push(anonymous.get(format!("/v1/products?cursor={STRAY_TOKEN}")).await);
    rejections.push(ada.get(format!("/v1/orders?status={STRAY_TOKEN}")).await.assert_status(400));
    rejections.push(anonymous.get(format!("/v1/nothing?password={PASSWORD}")).await.assert_status(404));
    let change = |current: &str| json!({ "current_password": current, "new_password": NEW_PASSWORD });
    rejections.push(ada.put("/v1/me/password").json(&change(WRONG_PASSWORD)).await);

    let order = ada.post("/v1/orders").json(&json!({ "items": [{ "product_id": MUG, "quantity": 1 }] }));
    let order = order.new_key().await.assert_status(201).id();
    let pay = |method: &str| {
        ada.post(format!("/v1/orders/{order}/payments")).json(&json!({ "payment_method": method })).new_key()
    };
    rejections.push(pay(CARD).await);
    let with_card = json!({ "payment_method": "pm_card_ok", "card_number": 4_111_111_111_111_111_i64 });
    rejections.push(
        ada.post(format!("/v1/orders/{order}/payments")).json(&with_card).new_key().await.assert_status(422),
    );
    let event = anonymous.post("/v1/gateway/events").header("content-type", "application/json");
    let event = event.header("webhook-id", "1").header("webhook-timestamp", "1");
    rejections.push(
        event.header("webhook-signature", &format!("v1,{STRAY_TOKEN}")).body(CARD).await.assert_status(400),
    );

    rejections.push(pay("pm_card_declined").await.assert_status(201));
    let payment = pay("pm_card_ok").await.assert_status(201).id();
    let _shown = ada.get(format!("/v1/payments/{payment}")).await.assert_status(200);
    let _shown = ada.get(format!("/v1/orders/{order}")).await.assert_status(200);
    rejections.push(ada.post(format!("/v1/orders/{order}/cancel")).await.assert_status(409));
    let mut tokens = vec![token];
    tokens.extend(use_staff_routes(service, order, payment, &mut rejections).await);
    send_secrets_to_every_route(service, &mut rejections).await;

    let _changed = ada.put("/v1/me/password").json(&change(PASSWORD)).await.assert_status(204);
    let again = anonymous
        .post("/v1/sessions")
        .json(&credentials(NEW_PASSWORD))
        .await
        .assert_status(201)
        .text("token");
    let _me = anonymous.with_token(&again).get("/v1/me").await.assert_status(200);
    let _left = anonymous.with_token(&again).delete("/v1/sessions/current").await.assert_status(204);
    rejections.push(anonymous.with_token(&again).get("/v1/me").await.assert_status(401));
    tokens.push(again);

    let url = service.ops_url().join("/log-level").unwrap();
    let request = reqwest::Client::new().get(url).header("authorization", format!("Bearer {OPS_TOKEN}"));
    let _read = request.send().await.unwrap();

    // These requests fail with 500, and the service logs the cause.
    service.database().execute("alter table users rename to gone").await;
    rejections.push(anonymous.post("/v1/sessions").json(&credentials(NEW_PASSWORD)).await.assert_status(500));
    rejections.push(anonymous.post("/v1/users").json(&registration).await.assert_status(500));
    (rejections, tokens)
}

/// Uses the routes of support, an admin and an auditor, with secrets in invalid requests and in the reason of a refund.
/// Adds the responses that must contain no secret to `rejections`. Returns the tokens of the three users.
async fn use_staff_routes(
    service: &Service,
    order: Uuid,
    payment: Uuid,
    rejections: &mut Vec<HttpResponse>,
) -> Vec<String> {
    let (support, admin, auditor) = (service.support().await, service.admin().await, service.auditor().await);
    let _listed = support.get("/v1/orders").await.assert_status(200);
    rejections.push(support.get(format!("/v1/orders?customer_id={STRAY_TOKEN}")).await.assert_status(400));
    let _shown = support.get(format!("/v1/orders/{order}")).await.assert_status(200);
    let refund = |body: Value| {
        let client: &Client = &support;
        client.post(format!("/v1/payments/{payment}/refunds")).json(&body).new_key()
    };
    rejections.push(refund(json!({ "amount": STRAY_TOKEN })).await.assert_status(422));
    rejections.push(refund(json!({ "amount": 1, "card_number": CARD })).await.assert_status(422));
    let _refunded =
        refund(json!({ "amount": 1, "reason": format!("paid by {CARD}") })).await.assert_status(201);

    let product = json!({ "sku": "TEA-1", "name": "Tea", "unit_amount": 500, "currency": "EUR" });
    let mut wrong = product.clone();
    wrong["password"] = json!(PASSWORD);
    rejections.push(admin.post("/v1/products").json(&wrong).await.assert_status(422));
    let product = admin.post("/v1/products").json(&product).await.assert_status(201).id();
    let path = format!("/v1/products/{product}");
    rejections.push(admin.patch(&path).json(&json!({ "unit_amount": STRAY_TOKEN })).await.assert_status(422));
    let _changed = admin.patch(&path).json(&json!({ "unit_amount": 600 })).await.assert_status(200);
    let _shown = service.anonymous().get(&path).await.assert_status(200);

    let _read = auditor.get("/v1/audit-events").await.assert_status(200);
    rejections.push(auditor.get(format!("/v1/audit-events?user_id={STRAY_TOKEN}")).await.assert_status(400));
    rejections.push(auditor.get(format!("/v1/audit-events?cursor={STRAY_TOKEN}")).await.assert_status(400));
    [support.token.clone(), admin.token.clone(), auditor.token.clone()].into()
}

/// Sends a password, a card number and a token to every route of the OpenAPI document. The document also has the routes
/// of new slices (the domain modules in `src/slices`).
async fn send_secrets_to_every_route(service: &Service, rejections: &mut Vec<HttpResponse>) {
    let body = json!({ "password": PASSWORD, "card_number": CARD, "token": STRAY_TOKEN });
    let admin = service.admin().await;
    for (method, path, _) in openapi::operations() {
        let path = path.replace("{id}", &Uuid::now_v7().to_string());
        // Each request has a new session, because one of the routes ends the session.
        for user in [service.customer().await, service.log_in(&admin.email).await] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            rejections.push(user.request(method, &path).json(&body).new_key().await);
        }
    }
}

#[tokio::test]
async fn no_secret_is_in_logs_spans_metrics_audit_log_or_errors() {
    let collector = Collector::start().await;
    let service = builder()
        .with_traces_to(&collector)
        .setting("RUST_LOG", "trace")
        .setting("OPS_TOKEN", OPS_TOKEN)
        .setting("GATEWAY_WEBHOOK_SECRET", &format!("whsec_{WEBHOOK_SECRET}"))
        .start()
        .await;
    let _document = service.anonymous().get("/openapi.json").await.assert_status(200);
    let (rejections, tokens) = use_all_routes(&service).await;
    let events = service.audit_events("true").await;
    let (_, health) = service.ops("/health").await;
    let metrics = service.metrics().await;
    let (_, problem) = service.request_ops(Method::PUT, "/log-level", STRAY_TOKEN).await.unwrap();
    assert!(service.terminate().await.success());

    let outputs: [(&str, Vec<String>); 7] = [
        ("a log line", service.logs().iter().map(ToString::to_string).collect()),
        ("standard error", vec![service.stderr().join("\n")]),
        ("a span", collector.spans().iter().map(|span| format!("{span:?}")).collect()),
        ("a metric", metrics.lines().map(str::to_owned).collect()),
        ("the audit log", events.iter().map(ToString::to_string).collect()),
        ("an error's body", rejections.iter().map(ToString::to_string).collect()),
        ("a response of the operations listener", vec![health, problem]),
    ];
    let first = service.logs().into_iter().find(|line| line["message"] == "the service is up");
    assert!(first.is_some(), "the logs lack the first line of the service");
    let database_password = service.database().service_url().password().unwrap().to_owned();
    let mut secrets =
        vec!["SECRET", CARD, WEBHOOK_SECRET, GATEWAY_API_KEY, STAFF_PASSWORD, &database_password];
    secrets.extend(tokens.iter().map(String::as_str));
    for (output, texts) in outputs {
        assert!(!texts.is_empty(), "{output}");
        for secret in &secrets {
            let leak = texts.iter().find(|text| text.contains(secret));
            assert_eq!(leak, None, "{secret} is in {output}");
        }
    }
}
