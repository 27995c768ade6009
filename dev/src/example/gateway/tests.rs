//! Tests of the payment-gateway simulator over HTTP: its API, faults, webhooks and ledger file.
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use chrono::Utc;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Charge, ChargeStatus, DeclineCode, Error, Event, Faults, RefundStatus, Settings, Simulator, Timings,
    Webhooks,
};

const API_KEY: &str = "sk_test";
const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// Timeout far above the duration of any test, even on a busy machine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

fn settings() -> Settings {
    Settings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        api_key: API_KEY.to_owned(),
        webhook_secret: SECRET.to_owned(),
        webhook_url: None,
        ledger_file: None,
    }
}

fn short_timings() -> Timings {
    Timings {
        slow_response: Duration::from_millis(300),
        webhook_delay: Duration::from_millis(1),
        webhook_lateness: Duration::from_millis(300),
        webhook_backoff: Duration::from_millis(5),
        webhook_attempts: 3,
    }
}

/// A simulator, and a client of it.
struct Fixture {
    gateway: Simulator,
    client: reqwest::Client,
}

impl Fixture {
    async fn open() -> Self {
        Self::open_with(settings()).await
    }

    async fn open_with(settings: Settings) -> Self {
        Self {
            gateway: Simulator::start_with(settings, short_timings()).await.unwrap(),
            client: crate::http::client(WAIT_TIMEOUT).unwrap(),
        }
    }

    fn url(&self, path: &str) -> url::Url {
        self.gateway.url().join(path).unwrap()
    }

    fn post(&self, path: &str, key: &str, body: &str) -> reqwest::RequestBuilder {
        self.client
            .post(self.url(path))
            .bearer_auth(API_KEY)
            .header("idempotency-key", key)
            .header("content-type", "application/json")
            .body(body.to_owned())
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.client.get(self.url(path)).bearer_auth(API_KEY).send().await.unwrap();
        assert_eq!(response.status(), 200, "GET {path}");
        response.json().await.unwrap()
    }

    async fn charge(&self, payment: &Payment) -> (u16, Value) {
        response(self.post("/v1/charges", &payment.key(), &payment.body()).send().await.unwrap()).await
    }

    async fn refund(&self, charge_id: &str, refund: Uuid, amount: i64) -> (u16, Value) {
        let body = json!({ "amount": amount, "reference": refund }).to_string();
        let path = format!("/v1/charges/{charge_id}/refunds");
        response(self.post(&path, &refund.to_string(), &body).send().await.unwrap()).await
    }

    async fn charges_of(&self, payment: &Payment) -> Vec<Value> {
        self.get(&format!("/v1/charges?reference={}", payment.id)).await["data"].as_array().unwrap().clone()
    }

    async fn faults(&self, faults: Value) -> u16 {
        self.client.put(self.url("/faults")).json(&faults).send().await.unwrap().status().as_u16()
    }
}

async fn response(response: reqwest::Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.unwrap())
}

#[derive(Clone)]
struct Payment {
    id: Uuid,
    method: &'static str,
    amount: i64,
}

impl Payment {
    fn with_method(method: &'static str) -> Self {
        Self { id: Uuid::now_v7(), method, amount: 4200 }
    }

    fn key(&self) -> String {
        self.id.to_string()
    }

    fn body(&self) -> String {
        json!({ "amount": self.amount, "currency": "EUR", "payment_method": self.method, "reference": self.id })
            .to_string()
    }
}

#[tokio::test]
async fn a_retried_payment_is_charged_once() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");

    let (status, charge) = fixture.charge(&payment).await;
    assert_eq!(status, 201);
    assert!(charge["id"].as_str().unwrap().starts_with("ch_"));
    assert_eq!(
        charge,
        json!({
            "id": charge["id"], "reference": payment.id, "status": "succeeded", "decline_code": null,
            "amount": 4200, "currency": "EUR",
        })
    );

    assert_eq!(fixture.charge(&payment).await, (201, charge.clone()));
    assert_eq!(fixture.charges_of(&payment).await, [charge]);
    assert_eq!(fixture.gateway.charges_for(payment.id).len(), 1);
    assert_eq!(fixture.gateway.calls_for(&payment.key()), 2);
}

#[tokio::test]
async fn each_declined_card_has_its_own_decline_code() {
    let fixture = Fixture::open().await;
    for (method, code) in [
        ("pm_card_declined", "insufficient_funds"),
        ("pm_card_expired", "card_expired"),
        ("pm_card_fraud", "fraud_suspected"),
    ] {
        let payment = Payment::with_method(method);
        let (status, charge) = fixture.charge(&payment).await;
        assert_eq!(
            (status, &charge["status"], &charge["decline_code"]),
            (201, &json!("declined"), &json!(code))
        );
        assert_eq!(fixture.charge(&payment).await, (201, charge));
    }
}

#[tokio::test]
async fn a_request_without_the_api_key_is_rejected() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    for token in [None, Some("sk_other")] {
        let mut request = fixture
            .client
            .post(fixture.url("/v1/charges"))
            .header("idempotency-key", payment.key())
            .body(payment.body());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    let response = fixture.client.get(fixture.url("/v1/charges?reference=x")).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(fixture.charges_of(&payment).await.is_empty());
}

#[tokio::test]
async fn an_invalid_request_is_rejected_and_stores_no_key() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    let id = payment.id;
    let no_key = fixture.client.post(fixture.url("/v1/charges")).bearer_auth(API_KEY).body(payment.body());
    assert_eq!(no_key.send().await.unwrap().status(), 400);

    for (expected, body) in [
        (400, "{".to_owned()),
        (422, json!({ "amount": 1 }).to_string()),
        (422, Payment::with_method("pm_card_unknown").body()),
        (422, Payment { amount: 0, ..payment.clone() }.body()),
        (422, Payment { amount: -1, ..payment.clone() }.body()),
        (
            422,
            json!({"amount": 1, "currency": "eur", "payment_method": "pm_card_ok", "reference": id})
                .to_string(),
        ),
        (
            422,
            json!({"amount": 1.5, "currency": "EUR", "payment_method": "pm_card_ok", "reference": id})
                .to_string(),
        ),
        (
            422,
            json!({"amount": 1, "currency": "EUR", "payment_method": "pm_card_ok", "reference": "7"})
                .to_string(),
        ),
        (
            422,
            json!({"amount": 1, "currency": "EUR", "payment_method": "pm_card_ok", "reference": id, "x": 1})
                .to_string(),
        ),
    ] {
        let (status, problem) =
            response(fixture.post("/v1/charges", &payment.key(), &body).send().await.unwrap()).await;
        assert_eq!(status, expected, "{body}: {problem}");
    }
    assert_eq!(fixture.charge(&payment).await.0, 201);
}

#[tokio::test]
async fn a_key_with_another_body_or_path_is_a_conflict() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    let (_, charge) = fixture.charge(&payment).await;

    for body in [payment.body().replace("4200", "4201"), payment.body().replace(':', ": ")] {
        let response = fixture.post("/v1/charges", &payment.key(), &body).send().await.unwrap();
        assert_eq!(response.status(), 409);
    }
    let path = format!("/v1/charges/{}/refunds", charge["id"].as_str().unwrap());
    let body = json!({ "amount": 1, "reference": Uuid::now_v7() }).to_string();
    let response = fixture.post(&path, &payment.key(), &body).send().await.unwrap();
    assert_eq!(response.status(), 409);
    assert_eq!(fixture.charge(&payment).await, (201, charge));
}

#[tokio::test]
async fn a_duplicate_waits_for_the_response_of_a_slow_card() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_slow");
    let started = Instant::now();
    let second = async {
        fixture
            .gateway
            .wait_for(|ledger| ledger.charges_for(payment.id).count() == 1, WAIT_TIMEOUT)
            .await
            .unwrap();
        assert_eq!(fixture.charges_of(&payment).await.len(), 1);
        fixture.charge(&payment).await
    };

    let (first, second) = tokio::join!(fixture.charge(&payment), second);
    assert!(started.elapsed() >= short_timings().slow_response);
    assert_eq!(first, second);
    assert_eq!(first.0, 201);
    assert_eq!(fixture.gateway.charges_for(payment.id).len(), 1);

    let retried = Instant::now();
    assert_eq!(fixture.charge(&payment).await, first);
    assert!(retried.elapsed() < short_timings().slow_response, "the retry was as slow as the first request");
}

#[tokio::test]
async fn a_card_that_times_out_is_charged_without_response() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_timeout");
    for attempt in 1..=2 {
        let request =
            fixture.post("/v1/charges", &payment.key(), &payment.body()).timeout(Duration::from_millis(200));
        assert!(request.send().await.unwrap_err().is_timeout());
        assert_eq!(fixture.gateway.calls_for(&payment.key()), attempt);
    }
    let charges = fixture.charges_of(&payment).await;
    assert_eq!(charges.len(), 1);
    assert_eq!(charges[0]["status"], "succeeded");
}

#[tokio::test]
async fn an_error_card_is_charged_by_the_fourth_request() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_error");
    for _ in 0..3 {
        assert_eq!(fixture.charge(&payment).await.0, 500);
        assert!(fixture.charges_of(&payment).await.is_empty(), "a rejected request created a charge");
    }
    let (status, charge) = fixture.charge(&payment).await;
    assert_eq!((status, &charge["status"]), (201, &json!("succeeded")));
    assert_eq!(fixture.charge(&payment).await, (201, charge));
}

#[tokio::test]
async fn a_charge_hidden_by_an_error_is_in_the_list() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_error_after_charge");
    for _ in 0..3 {
        assert_eq!(fixture.charge(&payment).await.0, 500);
    }
    let charges = fixture.charges_of(&payment).await;
    assert_eq!(charges.len(), 1);
    assert_eq!(charges[0]["status"], "succeeded");
}

#[tokio::test]
async fn every_other_request_with_a_flaky_card_is_rejected() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_flaky");
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(fixture.charge(&payment).await.0);
    }
    assert_eq!(statuses, [503, 201, 503, 201]);
    assert_eq!(fixture.gateway.charges_for(payment.id).len(), 1);
}

#[tokio::test]
async fn an_expired_key_charges_again() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    let first = fixture.charge(&payment).await;
    fixture.gateway.expire_keys();
    assert_ne!(fixture.charge(&payment).await, first);
    assert_eq!(fixture.gateway.charges_for(payment.id).len(), 2);

    let counts = fixture.get("/ledger").await["counts"].clone();
    assert_eq!((&counts["charges_succeeded"], &counts["payments_charged"]), (&json!(2), &json!(1)));
}

#[tokio::test]
async fn refunds_never_exceed_the_charge() {
    let fixture = Fixture::open().await;
    let (_, charge) = fixture.charge(&Payment::with_method("pm_card_ok")).await;
    let charge_id = charge["id"].as_str().unwrap();

    let part = Uuid::now_v7();
    let (status, refund) = fixture.refund(charge_id, part, 4000).await;
    assert_eq!(status, 201);
    assert!(refund["id"].as_str().unwrap().starts_with("re_"));
    assert_eq!(
        refund,
        json!({
            "id": refund["id"], "reference": part, "charge_id": charge_id, "status": "succeeded", "amount": 4000,
        })
    );
    assert_eq!(
        fixture.refund(charge_id, part, 4000).await,
        (201, refund.clone()),
        "a retry received a different response"
    );
    assert_eq!(fixture.refund(charge_id, part, 1).await.0, 409);
    assert_eq!(fixture.get(&format!("/v1/refunds?reference={part}")).await["data"], json!([refund]));

    let (status, too_much) = fixture.refund(charge_id, Uuid::now_v7(), 201).await;
    assert_eq!((status, &too_much["status"]), (201, &json!("failed")));
    let (status, rest) = fixture.refund(charge_id, Uuid::now_v7(), 200).await;
    assert_eq!((status, &rest["status"]), (201, &json!("succeeded")));
    let refunded_total: i64 = fixture
        .gateway
        .ledger()
        .refunds
        .iter()
        .filter(|refund| refund.status == RefundStatus::Succeeded)
        .map(|refund| refund.amount)
        .sum();
    assert_eq!(refunded_total, 4200);
}

#[tokio::test]
async fn a_declined_charge_cannot_be_refunded() {
    let fixture = Fixture::open().await;
    let (_, declined) = fixture.charge(&Payment::with_method("pm_card_declined")).await;
    let (status, refund) = fixture.refund(declined["id"].as_str().unwrap(), Uuid::now_v7(), 1).await;
    assert_eq!((status, &refund["status"]), (201, &json!("failed")));

    assert_eq!(fixture.refund("ch_unknown", Uuid::now_v7(), 1).await.0, 404);
    assert_eq!(fixture.refund(declined["id"].as_str().unwrap(), Uuid::now_v7(), 0).await.0, 422);
}

#[tokio::test]
async fn a_charge_exists_before_its_held_response() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    fixture.gateway.hold_responses();
    let watcher = async {
        fixture
            .gateway
            .wait_for(|ledger| ledger.charges_for(payment.id).count() == 1, WAIT_TIMEOUT)
            .await
            .unwrap();
        fixture.gateway.release();
        Instant::now()
    };
    let held = async { (fixture.charge(&payment).await, Instant::now()) };
    let ((response, responded_at), released_at) = tokio::join!(held, watcher);
    assert_eq!(response.0, 201);
    assert!(responded_at >= released_at);
}

#[tokio::test]
async fn a_client_that_disconnects_is_charged() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    fixture.gateway.hold_responses();
    let request =
        fixture.post("/v1/charges", &payment.key(), &payment.body()).timeout(Duration::from_millis(200));
    assert!(request.send().await.unwrap_err().is_timeout());
    fixture
        .gateway
        .wait_for(|ledger| ledger.charges_for(payment.id).count() == 1, WAIT_TIMEOUT)
        .await
        .unwrap();
    fixture.gateway.release();
    assert_eq!(fixture.charge(&payment).await.0, 201);
    assert_eq!(fixture.gateway.charges_for(payment.id).len(), 1);
}

#[tokio::test]
async fn an_outage_rejects_requests_before_any_work() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    assert_eq!(fixture.faults(json!({ "error_rate": 1, "error_status": 502 })).await, 200);
    assert_eq!(fixture.charge(&payment).await.0, 502);
    assert_eq!(fixture.client.get(fixture.url("/healthz")).send().await.unwrap().status(), 502);
    assert!(fixture.gateway.charges_for(payment.id).is_empty());

    assert_eq!(fixture.client.delete(fixture.url("/faults")).send().await.unwrap().status(), 200);
    assert_eq!(fixture.get("/faults").await, serde_json::to_value(Faults::default()).unwrap());
    assert_eq!(fixture.get("/healthz").await["status"], "ok");
    assert_eq!(fixture.charge(&payment).await.0, 201);
}

#[tokio::test]
async fn a_charge_remains_after_an_error_or_a_cut() {
    let fixture = Fixture::open().await;
    let unsent = Payment::with_method("pm_card_ok");
    fixture.gateway.faults().set(Faults { error_rate_after_charge: 1.0, ..Faults::default() });
    assert_eq!(fixture.charge(&unsent).await.0, 500);

    let cut = Payment::with_method("pm_card_ok");
    fixture.gateway.faults().set(Faults { cut_rate: 1.0, ..Faults::default() });
    let failure = fixture.post("/v1/charges", &cut.key(), &cut.body()).send().await.unwrap_err();
    assert!(!failure.is_timeout() && failure.status().is_none(), "{failure:?}");

    fixture.gateway.faults().clear();
    for payment in [unsent, cut] {
        assert_eq!(fixture.charges_of(&payment).await.len(), 1);
        assert_eq!(fixture.charge(&payment).await.0, 201);
        assert_eq!(fixture.gateway.charges_for(payment.id).len(), 1);
    }
}

#[tokio::test]
async fn declines_and_latency_follow_the_faults() {
    let fixture = Fixture::open().await;
    let latency = Duration::from_millis(150);
    fixture.faults(json!({ "decline_rate": 1, "latency_ms": 150 })).await;
    let started = Instant::now();
    let (status, charge) = fixture.charge(&Payment::with_method("pm_card_ok")).await;
    assert!(started.elapsed() >= latency);
    assert_eq!((status, &charge["status"]), (201, &json!("declined")));
    assert_ne!(charge["decline_code"], json!(null));
}

#[tokio::test]
async fn the_same_seed_causes_the_same_faults() {
    let fixture = Fixture::open().await;
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        fixture.gateway.faults().set(Faults { error_rate: 0.5, seed, ..Faults::default() });
        let mut statuses = Vec::new();
        for _ in 0..24 {
            statuses.push(fixture.charge(&Payment::with_method("pm_card_ok")).await.0);
        }
        assert!(statuses.contains(&201) && statuses.contains(&500));
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn invalid_faults_are_rejected() {
    let fixture = Fixture::open().await;
    for faults in [
        json!({ "error_rate": 1.5 }),
        json!({ "error_status": 200 }),
        json!({ "eror_rate": 1 }),
        json!({ "webhooks": "sometimes" }),
    ] {
        assert_eq!(fixture.faults(faults).await, 422);
    }
    assert_eq!(fixture.gateway.faults().get(), Faults::default());
}

#[tokio::test]
async fn requests_are_recorded_with_correlation_id_and_trace() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    fixture
        .post("/v1/charges", &payment.key(), &payment.body())
        .header("x-correlation-id", "corr-1")
        .header("traceparent", trace)
        .send()
        .await
        .unwrap();
    let requests = fixture.gateway.requests();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/charges"));
    assert_eq!(request.idempotency_key, Some(payment.key()));
    assert_eq!(request.correlation_id.as_deref(), Some("corr-1"));
    assert_eq!(request.traceparent.as_deref(), Some(trace));
    assert_eq!(request.body, payment.body());
}

/// A receiver that records every webhook. The receiver responds with the given statuses, then with 204.
struct Receiver {
    url: url::Url,
    received: watch::Receiver<Vec<(HeaderMap, Bytes)>>,
}

type Inbox = Arc<(watch::Sender<Vec<(HeaderMap, Bytes)>>, Vec<u16>)>;

impl Receiver {
    async fn start(statuses: &[u16]) -> Self {
        async fn receive(State(inbox): State<Inbox>, headers: HeaderMap, body: Bytes) -> StatusCode {
            let mut nth = 0;
            inbox.0.send_modify(|received| {
                nth = received.len();
                received.push((headers, body));
            });
            inbox.1.get(nth).map_or(StatusCode::NO_CONTENT, |status| StatusCode::from_u16(*status).unwrap())
        }
        let (sender, received) = watch::channel(Vec::new());
        let router = Router::new()
            .route("/v1/gateway/events", post(receive))
            .with_state(Arc::new((sender, statuses.to_vec())));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/gateway/events", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, received }
    }

    async fn wait_for_webhooks(&mut self, count: usize) -> Vec<(HeaderMap, Bytes)> {
        let arrival = self.received.wait_for(|received| received.len() >= count);
        tokio::time::timeout(WAIT_TIMEOUT, arrival).await.unwrap().unwrap().clone()
    }
}

#[tokio::test]
async fn every_outcome_has_a_signed_webhook_with_its_correlation_id() {
    let mut inbox = Receiver::start(&[]).await;
    let fixture = Fixture::open_with(Settings { webhook_url: Some(inbox.url.clone()), ..settings() }).await;
    let payment = Payment::with_method("pm_card_ok");
    let response = fixture
        .post("/v1/charges", &payment.key(), &payment.body())
        .header("x-correlation-id", "corr-7")
        .send()
        .await
        .unwrap();
    let charge: Value = response.json().await.unwrap();

    let (headers, body) = inbox.wait_for_webhooks(1).await.remove(0);
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&body, &headers).unwrap();
    assert_eq!(headers["x-correlation-id"], "corr-7");
    assert!(headers["webhook-id"].to_str().unwrap().starts_with("msg_"));
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&event["type"], &event["data"]), (&json!("charge.succeeded"), &charge));
    chrono::DateTime::parse_from_rfc3339(event["timestamp"].as_str().unwrap()).unwrap();

    fixture.charge(&Payment::with_method("pm_card_declined")).await;
    inbox.wait_for_webhooks(2).await;
    let charge_id = charge["id"].as_str().unwrap();
    fixture.refund(charge_id, Uuid::now_v7(), 4200).await;
    inbox.wait_for_webhooks(3).await;
    fixture.refund(charge_id, Uuid::now_v7(), 1).await;
    let kinds: Vec<_> = inbox
        .wait_for_webhooks(4)
        .await
        .iter()
        .map(|(_, body)| serde_json::from_slice::<Value>(body).unwrap()["type"].clone())
        .collect();
    assert_eq!(kinds, ["charge.succeeded", "charge.declined", "refund.succeeded", "refund.failed"]);
}

#[tokio::test]
async fn a_rejected_webhook_is_resent_under_the_same_id() {
    let mut inbox = Receiver::start(&[500, 404]).await;
    let fixture = Fixture::open_with(Settings { webhook_url: Some(inbox.url.clone()), ..settings() }).await;
    fixture.charge(&Payment::with_method("pm_card_ok")).await;

    let attempts = inbox.wait_for_webhooks(3).await;
    assert!(attempts.iter().all(|(headers, _)| headers["webhook-id"] == attempts[0].0["webhook-id"]));
    let statuses = |fixture: &Fixture| -> Vec<_> {
        fixture.gateway.deliveries().iter().map(|delivery| delivery.status).collect()
    };
    let expected = [Some(500), Some(404), Some(204)];
    fixture.gateway.wait_until(|gateway| gateway.deliveries().len() == 3, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(statuses(&fixture), expected);
    assert!(fixture.gateway.deliveries()[2].succeeded());
}

#[tokio::test]
async fn webhooks_are_late_duplicated_or_lost() {
    let mut inbox = Receiver::start(&[]).await;
    let fixture = Fixture::open().await;
    fixture.gateway.set_webhook_url(inbox.url.clone());

    fixture.faults(json!({ "webhooks": "never" })).await;
    fixture.charge(&Payment::with_method("pm_card_ok")).await;

    fixture.faults(json!({ "webhooks": "twice" })).await;
    let doubled = Payment::with_method("pm_card_ok");
    fixture.charge(&doubled).await;
    let received = inbox.wait_for_webhooks(2).await;
    assert_eq!(received[0].0["webhook-id"], received[1].0["webhook-id"]);
    assert_eq!(received[0].1, received[1].1);
    assert!(
        String::from_utf8_lossy(&received[0].1).contains(&doubled.id.to_string()),
        "an event was sent although webhooks were switched off"
    );

    fixture.gateway.faults().set(Faults { webhooks: Webhooks::Late, ..Faults::default() });
    let charged = Instant::now();
    fixture.charge(&Payment::with_method("pm_card_ok")).await;
    assert_eq!(inbox.wait_for_webhooks(3).await.len(), 3);
    assert!(charged.elapsed() >= short_timings().webhook_lateness);
}

#[tokio::test]
async fn any_event_can_be_delivered_on_request() {
    let mut inbox = Receiver::start(&[]).await;
    let fixture = Fixture::open().await;
    let (_, charge) = fixture.charge(&Payment::with_method("pm_card_ok")).await;
    let event = fixture.gateway.events().remove(0);
    assert!(matches!(fixture.gateway.deliver_webhook(&event).await, Err(Error::NoWebhookUrl)));

    fixture.gateway.set_webhook_url(inbox.url.clone());
    let before = inbox.wait_for_webhooks(0).await.len();
    assert_eq!(fixture.gateway.deliver_webhook(&event).await.unwrap(), 204);
    let unknown_type =
        Event::new("charge.pondered", &charge).unwrap().with_correlation_id(Some("corr-9".to_owned()));
    assert_eq!(fixture.gateway.deliver_webhook(&unknown_type).await.unwrap(), 204);

    let received = inbox.wait_for_webhooks(before + 2).await;
    let verifier = standardwebhooks::Webhook::new(SECRET).unwrap();
    for (headers, body) in &received {
        verifier.verify(body, headers).unwrap();
    }
    let now = Utc::now();
    let expected = verifier.sign("msg_1", now.timestamp(), b"{}").unwrap();
    assert_eq!(fixture.gateway.sign("{}", "msg_1", now).unwrap(), expected);
}

/// A path for the ledger file of one test. The file is removed when the value is dropped.
struct LedgerFile(PathBuf);

impl LedgerFile {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("gateway-{}.jsonl", Uuid::now_v7())))
    }

    fn settings(&self) -> Settings {
        Settings { ledger_file: Some(self.0.clone()), ..settings() }
    }
}

impl Drop for LedgerFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn the_ledger_survives_a_restart_and_a_truncated_last_line() {
    let file = LedgerFile::new();
    let fixture = Fixture::open_with(file.settings()).await;
    let payment = Payment::with_method("pm_card_ok");
    let (_, charge) = fixture.charge(&payment).await;
    let refund = Uuid::now_v7();
    let refunded = fixture.refund(charge["id"].as_str().unwrap(), refund, 100).await;
    let ledger = fixture.gateway.ledger();
    fixture.gateway.stop().await;

    let mut file_handle = std::fs::OpenOptions::new().append(true).open(&file.0).unwrap();
    std::io::Write::write_all(&mut file_handle, br#"{"at":"2026-01-01T00:00:00Z","keyed":nu"#).unwrap();

    let fixture = Fixture::open_with(file.settings()).await;
    assert_eq!(fixture.gateway.ledger(), ledger);
    assert_eq!(
        fixture.charge(&payment).await,
        (201, charge.clone()),
        "the retry after a restart received a different response"
    );
    assert_eq!(fixture.refund(charge["id"].as_str().unwrap(), refund, 100).await, refunded);
    fixture.charge(&Payment::with_method("pm_card_declined")).await;
    fixture.gateway.stop().await;

    let reopened = Simulator::start(file.settings()).await.unwrap();
    assert_eq!(reopened.ledger().charges.len(), 2);
    reopened.stop().await;
}

#[tokio::test]
async fn a_ledger_with_a_damaged_complete_line_is_rejected() {
    let file = LedgerFile::new();
    std::fs::write(&file.0, "{}\n").unwrap();
    let rejected = Simulator::start(file.settings()).await;
    assert!(matches!(rejected, Err(Error::LedgerLine { line: 1, .. })));
}

#[tokio::test]
async fn stopping_cuts_pending_responses_and_frees_the_port() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_timeout");
    let stopping = async {
        fixture
            .gateway
            .wait_for(|ledger| ledger.charges_for(payment.id).count() == 1, WAIT_TIMEOUT)
            .await
            .unwrap();
        fixture.gateway.stop().await;
        fixture.gateway.stop().await;
    };
    let (cut, ()) =
        tokio::join!(fixture.post("/v1/charges", &payment.key(), &payment.body()).send(), stopping);
    assert!(!cut.unwrap_err().is_timeout());

    let next = Simulator::start(Settings { address: fixture.gateway.address(), ..settings() }).await.unwrap();
    assert_eq!(next.url(), fixture.gateway.url());
    next.stop().await;
}

#[tokio::test]
async fn a_charge_can_be_recorded_without_a_request() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    let recorded = Charge {
        id: "ch_recorded".to_owned(),
        reference: payment.id,
        status: ChargeStatus::Declined,
        decline_code: Some(DeclineCode::DoNotHonor),
        amount: 1,
        currency: "USD".to_owned(),
    };
    fixture.gateway.record(recorded.clone()).unwrap();
    fixture.charge(&payment).await;
    assert_eq!(fixture.charges_of(&payment).await.len(), 2);
    assert_eq!(fixture.gateway.charges_for(payment.id)[0], recorded);
}

#[tokio::test]
async fn waiting_ends_at_the_deadline() {
    let fixture = Fixture::open().await;
    let waited =
        fixture.gateway.wait_for(|ledger| !ledger.charges.is_empty(), Duration::from_millis(10)).await;
    assert!(matches!(waited, Err(Error::Deadline(_))));
}

#[tokio::test]
async fn charges_and_refunds_are_listed_page_by_page_with_their_time() {
    let fixture = Fixture::open().await;
    let before = Utc::now();
    let (mut charges, mut refunds) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (_, charge) = fixture.charge(&Payment::with_method("pm_card_ok")).await;
        refunds.push(fixture.refund(charge["id"].as_str().unwrap(), Uuid::now_v7(), 100).await.1);
        charges.push(charge);
    }
    let after = before.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    for (path, expected) in [("charges", charges), ("refunds", refunds)] {
        let first = fixture.get(&format!("/v1/{path}?created_after={after}&limit=2")).await;
        let cursor = first["next_cursor"].as_str().unwrap();
        let second = fixture.get(&format!("/v1/{path}?created_after={after}&limit=2&cursor={cursor}")).await;
        assert_eq!(second["next_cursor"], Value::Null);
        let mut listed =
            [first["data"].as_array().unwrap().clone(), second["data"].as_array().unwrap().clone()];
        assert_eq!((listed[0].len(), listed[1].len()), (2, 1));
        for object in listed.iter_mut().flatten() {
            let created = object.as_object_mut().unwrap().remove("created").unwrap();
            let created: chrono::DateTime<Utc> = created.as_str().unwrap().parse().unwrap();
            assert!((before..=Utc::now()).contains(&created));
        }
        assert_eq!(listed.concat(), expected);
    }
}

#[tokio::test]
async fn a_listing_with_an_invalid_query_is_a_bad_request() {
    let fixture = Fixture::open().await;
    let id = Uuid::now_v7();
    for query in [
        String::new(),
        "?created_after=yesterday".to_owned(),
        "?created_after=2026-01-01T00:00:00Z&limit=101".to_owned(),
        "?created_after=2026-01-01T00:00:00Z&limit=-1".to_owned(),
        "?created_after=2026-01-01T00:00:00Z&cursor=7".to_owned(),
        format!("?reference={id}&created_after=2026-01-01T00:00:00Z"),
        "?reference=x".to_owned(),
    ] {
        for path in ["charges", "refunds"] {
            let url = fixture.url(&format!("/v1/{path}{query}"));
            let response = fixture.client.get(url).bearer_auth(API_KEY).send().await.unwrap();
            assert_eq!(response.status(), 400, "{path}{query}");
        }
    }
}

#[tokio::test]
async fn list_faults_do_not_change_the_ledger() {
    let fixture = Fixture::open().await;
    let payment = Payment::with_method("pm_card_ok");
    fixture.charge(&payment).await;
    fixture.charge(&Payment::with_method("pm_card_ok")).await;
    let listed = async |cursor: &str| {
        let page =
            fixture.get(&format!("/v1/charges?created_after=2026-01-01T00:00:00Z&limit=1{cursor}")).await;
        (page["data"].as_array().unwrap().len(), page["next_cursor"] != Value::Null)
    };
    assert_eq!(listed("").await, (1, true));
    fixture.faults(json!({ "list_omit_rate": 1.0 })).await;
    assert_eq!(listed("").await, (0, true));
    fixture.faults(json!({ "list_lost_page_rate": 1.0 })).await;
    assert_eq!(listed("").await, (0, true));
    fixture.faults(json!({ "list_repeat_rate": 1.0 })).await;
    assert_eq!(listed("&cursor=at_1").await, (2, false));
    fixture.faults(json!({ "list_delay_ms": 3_600_000 })).await;
    assert_eq!(listed("").await, (0, false));
    assert_eq!(fixture.charges_of(&payment).await.len(), 1);
    assert_eq!(fixture.faults(json!({ "list_omit_rate": 1.5 })).await, 422);
}

#[tokio::test]
async fn the_times_of_creation_survive_a_restart() {
    let file = LedgerFile::new();
    let fixture = Fixture::open_with(file.settings()).await;
    fixture.charge(&Payment::with_method("pm_card_ok")).await;
    let query = "/v1/charges?created_after=2026-01-01T00:00:00Z";
    let listed = fixture.get(query).await;
    fixture.gateway.stop().await;
    let fixture = Fixture::open_with(file.settings()).await;
    assert_eq!(fixture.get(query).await, listed);
    fixture.gateway.stop().await;
}
