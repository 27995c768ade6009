//! Platform behaviour in the example domain, with orders and payments.
use std::time::{Duration, Instant};

use dev::{
    example::gateway::{Charge, ChargeStatus, Event, Faults, Webhooks},
    harness::{Collector, MUG, PASSWORD, Signal, eventually},
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::{
    audit::WRITABLE,
    builder,
    database::{INSUFFICIENT_PRIVILEGE, nodes, statements},
    http::panics::{panics_at, the_only_panic},
    operations::{
        alerts::{Pager, assert_complete},
        outbound::CountingProxy,
        page,
        startup::{command, minimum_settings},
    },
    service,
    telemetry::metrics::openmetrics,
    tls::{Preamble, TlsProxy},
};

const PAYMENTS: &str = "/v1/orders/{id}/payments";

/// Starts a receiver of alerts, and a service whose payments need review after one second.
async fn service_with_pager() -> (dev::harness::Service, Pager) {
    let pager = Pager::start().await;
    let service = builder()
        .setting("ALERT_WEBHOOK_URL", &pager.url)
        .setting("PAYMENT_PARK_AFTER_SECONDS", "1")
        .start()
        .await;
    (service, pager)
}

#[tokio::test]
async fn each_breaker_transition_raises_one_alert() {
    let (service, pager) = service_with_pager().await;
    let customer = service.customer().await;
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the breaker opens", async || {
        (customer.places_an_order().await.pay("pm_card_ok").await.status == 503).then_some(())
    })
    .await;
    let opened = pager.wait_for("Circuit breaker opened").await;
    assert_complete(&opened, "warning");
    assert_eq!(opened["metadata"]["service"], "payment_gateway");

    service.gateway().faults().clear();
    let closed = pager.wait_for("Circuit breaker closed").await;
    assert_complete(&closed, "info");
    assert_eq!(pager.all("Circuit breaker opened").len(), 1, "the alert is sent once within the interval");
    assert!(service.metric("alerts_sent_total{outcome=\"sent\"}").await >= 2);
}

#[tokio::test]
async fn a_payment_that_needs_review_raises_an_alert() {
    let (service, pager) = service_with_pager().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(Faults {
        error_rate: 1.0,
        webhooks: Webhooks::Never,
        ..Faults::default()
    });
    let payment = order.pay("pm_card_ok").await.is(202).id();
    let parked = pager.wait_for("Review needed: payment").await;
    assert_complete(&parked, "critical");
    assert_eq!(parked["metadata"]["id"], json!(payment));
}

#[tokio::test]
async fn a_contradiction_with_the_gateway_raises_an_alert() {
    let (service, pager) = service_with_pager().await;
    let unknown = Charge {
        id: "ch_unknown".to_owned(),
        reference: Uuid::now_v7(),
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 1,
        currency: "EUR".to_owned(),
    };
    let event = Event::of_charge(&unknown).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&event).await.unwrap(), 204);
    let discrepancy = pager.wait_for("unknown reference").await;
    assert_complete(&discrepancy, "critical");
    assert_eq!(discrepancy["metadata"]["id"], json!(unknown.reference));

    let again = Event::of_charge(&unknown).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&again).await.unwrap(), 204);
    let recorded = service.audit_events("action = 'discrepancy'").await;
    assert_eq!(recorded.len(), 1, "another event with the same content is no new discrepancy");
    let suppressed = service.metric("alerts_sent_total{outcome=\"suppressed\"}").await;
    assert_eq!(suppressed, 0, "no second alert was raised, so none was suppressed");
}

#[tokio::test]
async fn an_unreachable_pager_delays_no_payment() {
    let service = builder().setting("ALERT_WEBHOOK_URL", "http://127.0.0.1:1/alerts").start().await;
    let customer = service.customer().await;
    let event = Event::new(
        "charge.succeeded",
        &json!({
            "id": "ch_1", "reference": Uuid::now_v7(), "status": "succeeded", "decline_code": null, "amount": 1, "currency": "EUR"
        }),
    );
    assert_eq!(service.gateway().deliver_webhook(&event.unwrap()).await.unwrap(), 204);
    customer.places_an_order().await.pay_successfully().await;
}

#[tokio::test]
async fn no_money_moves_that_cannot_be_audited() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let (unpaid, paid) = (customer.places_an_order().await, customer.places_an_order().await);
    let payment = paid.pay_successfully().await;
    let sessions = service.database().number("select count(*) from sessions").await;
    service.database().execute("revoke insert on audit_events from app_runtime").await;

    let order = customer.orders(&[(MUG, 1)]);
    let log_in = |password: &str| {
        let credentials = json!({ "email": customer.email, "password": password });
        service.anonymous().post("/v1/sessions").json(&credentials)
    };
    for (operation, request) in [
        ("placing", order.clone()),
        ("cancelling", unpaid.cancel()),
        ("paying", unpaid.pay("pm_card_ok")),
        ("refunding", support.refund(payment, None)),
        ("logging in", log_in(PASSWORD)),
        ("failing to log in", log_in("not the password of any user")),
        ("staff's reading an order", support.get(paid.path())),
        ("staff's reading a list", support.get("/v1/orders")),
        ("staff's reading a payment", support.get(format!("/v1/payments/{payment}"))),
    ] {
        let rejected = request.await;
        assert_eq!(rejected.status, 500, "{operation}: {rejected}");
    }
    // A rejection grants nothing, so it does not depend on its audit event.
    let _rejected = support.orders(&[(MUG, 1)]).await.is_problem(403, "forbidden");
    assert!(service.metric("audit_write_failures_total").await >= 5);

    service.database().execute(format!("grant insert ({WRITABLE}) on audit_events to app_runtime")).await;
    assert_eq!(unpaid.status().await, "pending_payment");
    assert_eq!(paid.status().await, "paid");
    assert_eq!(service.database().number("select count(*) from orders").await, 2);
    assert_eq!(service.database().number("select count(*) from refunds").await, 0);
    assert_eq!(service.database().number("select count(*) from sessions").await, sessions);
    assert_eq!(service.gateway().ledger().counts().charges_succeeded, 1);
    assert!(!order.await.is(201).is_replayed());
    service.invariants_hold().await;
}

#[tokio::test]
async fn the_service_cannot_rewrite_orders_payments_or_refunds() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let _refunded = service.support().await.refund(payment, Some(1)).await.is(201);
    for statement in [
        "delete from orders",
        "update orders set total_amount = 1",
        "update orders set customer_id = gen_random_uuid()",
        "update orders set currency = 'USD'",
        "delete from order_items",
        "update order_items set quantity = 1",
        "delete from payments",
        "update payments set amount = 1",
        "update payments set order_id = gen_random_uuid()",
        "update payments set gateway_request = ''",
        "update payments set first_sent_at = now()",
        "delete from refunds",
        "update refunds set amount = 1",
        "update refunds set payment_id = gen_random_uuid()",
        "truncate orders, order_items, payments, refunds",
        "update products set currency = 'USD'",
        "delete from products",
        "drop table orders",
        "alter table orders add column loot integer",
        "drop trigger order_status_moves_forward on orders",
    ] {
        let rejected = service.database().try_as_service(statement).await;
        assert_eq!(rejected, Err(INSUFFICIENT_PRIVILEGE.to_owned()), "{statement}");
    }
    service.invariants_hold().await;
}

#[tokio::test]
async fn the_database_itself_enforces_the_rules_of_payments() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    let check_violation = Err("23514".to_owned());
    for statement in [
        &format!("update orders set status = 'pending_payment' where id = '{}'", order.id),
        &format!("update orders set status = 'cancelled' where id = '{}'", order.id),
        &format!("update payments set status = 'declined', failure_reason = 'x' where id = '{payment}'"),
        &format!("update payments set status = 'processing' where id = '{payment}'"),
        &format!("update payments set refund_reserved_amount = amount + 1 where id = '{payment}'"),
        &format!("update payments set refunded_amount = 1 where id = '{payment}'"),
        &format!("update payments set refund_reserved_amount = -1 where id = '{payment}'"),
    ] {
        assert_eq!(service.database().try_as_service(statement).await, check_violation, "{statement}");
    }
    let second = format!(
        "insert into payments (id, order_id, gateway_key, amount, currency, gateway_request, correlation_id)
         values (gen_random_uuid(), '{}', gen_random_uuid(), 2580, 'EUR', '', 'x')",
        order.id
    );
    assert_eq!(service.database().try_as_service(&second).await, Err("23505".to_owned()), "one live payment");
    let unpaid = service.customer().await.places_an_order().await;
    let live = second.replace(&order.id.to_string(), &unpaid.id.to_string());
    assert_eq!(service.database().try_as_service(&live).await, Ok(()));
    for (ours, others) in [("2580", "2581"), ("EUR", "USD")] {
        let differs = live.replace(ours, others);
        assert_eq!(service.database().try_as_service(&differs).await, Err("23503".to_owned()), "{others}");
    }
    let known = |column: &str| format!("(select {column} from payments where id = '{payment}')");
    let of_its_key = live.replace("gen_random_uuid(), 2580", &format!("{}, 2580", known("gateway_key")));
    let of_its_charge =
        format!("{live}; update payments set gateway_charge_id = {}", known("gateway_charge_id"));
    for twice in [of_its_key, of_its_charge] {
        assert_eq!(service.database().try_as_service(&twice).await, Err("23505".to_owned()), "{twice}");
    }
}

#[tokio::test]
async fn requests_continue_while_a_migration_waits_for_a_reader() {
    let service = service().await;
    let customer = service.customer().await;
    let payment = customer.places_an_order().await.pay_successfully().await;
    // This undoes a migration that changes tables which requests use.
    service
        .database()
        .execute(
            "drop table reconciliations;
             alter table payments drop column listed_at;
             alter table refunds drop column listed_at;
             delete from _sqlx_migrations where version = 11",
        )
        .await;
    // A backup keeps such a transaction open for its whole run.
    let reader = service.database().hold("select count(*) from payments").await;
    let (migrated, ()) = tokio::join!(service.command(&["migrate"], &[]), async {
        service.database().wait_for_blocked_statements(1).await;
        for _ in 0..5 {
            let started = Instant::now();
            let _shown = customer.get(format!("/v1/payments/{payment}")).await.is(200);
            assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        }
        reader.release().await;
    });
    assert!(migrated.succeeded().starts_with("applied 1 migrations"));
}

#[tokio::test]
async fn no_statement_scans_the_orders_of_all_customers() {
    let service = service().await;
    // The orders have no items, because the trigger that requires items would take most of the time.
    service
        .database()
        .execute(
            "alter table orders disable trigger total_amount_is_the_sum_of_the_items;
             insert into users (id, email, name, password_hash, role)
             select gen_random_uuid(), format('u%s@example.com', n), 'U', '', 'customer'
             from generate_series(1, 500) n;
             insert into orders (id, customer_id, status, currency, total_amount)
             select
               gen_random_uuid(), users.id, case when n % 5 = 0 then 'cancelled' else 'pending_payment' end, 'EUR', 100
             from generate_series(1, 200) n, users;
             analyze orders",
        )
        .await;
    assert!(service.database().number("select count(*) from orders").await >= 100_000);

    // The connection has the service's rights, and the plan mode that `migrate` has set on its role.
    let mut connection = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    let mut checked = 0;
    for (number, (statement, parameters)) in statements().into_iter().enumerate() {
        if !statement.contains("orders") {
            continue;
        }
        let prepare = format!("prepare statement_{number} as {statement}");
        connection.execute(AssertSqlSafe(prepare)).await.unwrap();
        let nulls = vec!["null"; parameters].join(", ");
        let explain = format!("explain (format json) execute statement_{number}({nulls})");
        let plan: Value =
            sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut connection).await.unwrap();
        for node in nodes(&plan) {
            let is_full_scan = node["Node Type"] == "Seq Scan" && node["Relation Name"] == "orders";
            assert!(!is_full_scan, "{statement}\n{plan:#}");
        }
        checked += 1;
    }
    assert!(checked >= 5, "only {checked} statements on orders were found");
}

#[tokio::test]
async fn every_line_of_a_request_has_its_ids_and_user() {
    let service = builder().setting("RUST_LOG", "info").start().await;
    let customer = service.customer().await;
    let order = customer.places_an_order().await;
    let _paid = order.pay("pm_card_error").header("x-correlation-id", "one-payment").await;
    // The task that carries out the payment logs this line. The request itself logs the access line.
    let failure = service
        .logs_that("the gateway's failure", |line| {
            line["correlation_id"] == "one-payment" && line["target"] == "app::slices::payments::gateway"
        })
        .await;
    // The webhook of this payment is another request with the same correlation id, so the route selects the access
    // line.
    let access = service
        .logs_that("the access line", |line| {
            line["correlation_id"] == "one-payment" && line["target"] == "access" && line["route"] == PAYMENTS
        })
        .await;
    for field in ["trace_id", "request_id", "user_id"] {
        assert!(failure[field].is_string(), "{field} in {failure:#}");
        assert_eq!(failure[field], access[field]);
    }
    assert_ne!(failure["span_id"], access["span_id"], "the line has the span of the call");
}

#[tokio::test]
async fn an_unreachable_gateway_degrades_the_service() {
    let service = service().await;
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the gateway is reported as unreachable", async || {
        let (status, body) = page(&service, "/readyz").await;
        (status == 200 && body["checks"]["external_api"] == "degraded").then_some(())
    })
    .await;
    assert_eq!(page(&service, "/health").await.1["status"], "degraded");
    service.gateway().faults().clear();
    eventually("the gateway is reported as reachable", async || {
        (page(&service, "/readyz").await.1["checks"]["external_api"] == "healthy").then_some(())
    })
    .await;
}

#[tokio::test]
async fn gateway_latency_has_exemplars_of_payment_traces() {
    let collector = Collector::start().await;
    let service = builder().traced_by(&collector).start().await;
    // Reconciliation calls the gateway too, and its exemplar would replace that of a payment.
    service.wait_for_first_work().await;
    let order = service.customer().await.places(&[(MUG, 1)]).await;
    let _paid = order.pay("pm_card_ok").header("x-correlation-id", "an-example").await.is(201);
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

#[tokio::test]
async fn invalid_fields_have_pointers() {
    let service = service().await;
    let customer = service.customer().await;
    for (body, pointer) in [
        (json!({}), "/items"),
        (json!({ "items": null }), "/items"),
        (json!({ "items": "a mug" }), "/items"),
        (json!({ "items": [{ "product_id": MUG }] }), "/items/0/quantity"),
        (json!({ "items": [{ "quantity": 1 }] }), "/items/0/product_id"),
        (json!({ "items": [{ "product_id": 7, "quantity": 1 }] }), "/items/0/product_id"),
        (json!({ "items": [{ "product_id": "a mug", "quantity": 1 }] }), "/items/0/product_id"),
        (json!({ "items": [{ "product_id": MUG, "quantity": "1" }] }), "/items/0/quantity"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1.5 }] }), "/items/0/quantity"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1, "price": 1 }] }), "/items/0/price"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1 }], "coupon": "FREE" }), "/coupon"),
        (json!({ "items": [{ "product_id": MUG, "quantity": 1 }], "a/b~c": 1 }), "/a~1b~0c"),
        (json!([]), ""),
        (json!("an order"), ""),
    ] {
        let rejected = customer.post("/v1/orders").new_key().json(&body).await;
        assert_eq!(rejected.status, 422, "{body}: {rejected}");
        let _rejected = rejected.is_invalid_at(&[pointer]);
    }
    assert_eq!(service.database().number("select count(*) from orders").await, 0);
}

#[tokio::test]
async fn a_malformed_filter_of_orders_gets_400() {
    let service = service().await;
    let customer = service.customer().await;
    for query in [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=ten",
        "limit=1.5",
        "limit=",
        "limit=1&limit=2",
        "cursor=nonsense",
        "cursor=",
        "cursor=AAAA",
        "status=lost",
        "status=",
        "status=PAID",
        "customer_id=me",
    ] {
        let rejected = customer.get(format!("/v1/orders?{query}")).await;
        assert_eq!(rejected.status, 400, "{query}: {rejected}");
        let _rejected = rejected.is_problem(400, "malformed-request");
    }
    for query in ["limit=0", "limit=101", "cursor=nonsense"] {
        let _rejected =
            customer.get(format!("/v1/products?{query}")).await.is_problem(400, "malformed-request");
    }
}

#[tokio::test]
async fn an_invalid_id_in_any_path_gets_404() {
    let service = service().await;
    let (customer, admin) = (service.customer().await, service.admin().await);
    for id in ["7", "me", "00000000-0000-0000-0000-00000000000g", "%00", "..%2f..%2fetc"] {
        let card = json!({ "payment_method": "pm_card_ok" });
        for request in [
            customer.get(format!("/v1/products/{id}")),
            customer.get(format!("/v1/orders/{id}")),
            customer.post(format!("/v1/orders/{id}/cancel")),
            customer.post(format!("/v1/orders/{id}/payments")).json(&card).new_key(),
            customer.get(format!("/v1/payments/{id}")),
            admin.post(format!("/v1/payments/{id}/refunds")).json(&json!({})).new_key(),
            admin.patch(format!("/v1/products/{id}")).json(&json!({})),
        ] {
            let description = format!("{request:?}");
            let rejected = request.await;
            assert_eq!(rejected.status, 404, "{description}: {rejected}");
            let _rejected = rejected.is_problem(404, "not-found");
        }
    }
}

#[tokio::test]
async fn a_payment_in_flight_is_finished_before_the_service_ends() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    order.wait_for_payment().await;
    service.signal(Signal::SIGTERM);
    service
        .logs_that("the shutdown has begun", |line| line["message"] == "the service is shutting down")
        .await;
    service.gateway().release();

    assert_eq!(attempt.response().await.is(201).text("status"), "succeeded");
    assert_eq!(service.wait_for_exit().await.code(), Some(0));
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_past_the_deadline_is_cancelled_and_logged() {
    let service = builder()
        .setting("SHUTDOWN_DEADLINE_SECONDS", "3")
        .setting("GATEWAY_TIMEOUT_MS", "9000")
        .setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600")
        .start()
        .await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    order.wait_for_payment().await;
    assert_eq!(service.terminate().await.code(), Some(1));
    assert!(service.logs().iter().any(|line| line.to_string().contains("shutdown deadline exceeded")));
    let _cut = attempt.give_up().await;
}

#[tokio::test]
async fn a_payment_survives_a_panic_of_recovery() {
    let service = panics_at("recovery.leased").await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let _unknown = order.pay("pm_card_timeout").header("x-correlation-id", "unlucky").await.is(202);
    let panic = the_only_panic(&service, "recovery.leased").await;
    assert_eq!(panic["correlation_id"], "unlucky", "the id of the request that began the payment");
    order.becomes("paid").await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_payment_survives_a_panic_of_its_request() {
    let service = panics_at("payment.settling").await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let request = order.pay("pm_card_ok").header("x-correlation-id", "unlucky");
    let failed = request.await;
    assert!([202, 500].contains(&failed.status), "{failed}");
    let panic = the_only_panic(&service, "payment.settling").await;
    assert_eq!(panic["correlation_id"], "unlucky");
    order.becomes("paid").await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn every_invalid_payment_setting_is_reported_without_values() {
    let mistakes = [
        ("API_ADDRESS", "8080"),
        ("MIGRATE_ON_START", "perhaps"),
        ("SESSION_TTL_SECONDS", "-1"),
        ("TRUSTED_PROXIES", "everybody"),
        ("GATEWAY_WEBHOOK_SECRET", "not-a-webhook-secret"),
        ("CORS_ALLOWED_ORIGINS", "https://shop.example/"),
        ("LOG_FORMAT", "xml"),
        ("OPS_TOKEN", "too-short"),
        ("GATEWAY_TIMEOUT_MS", "99999"),
        ("ARGON2_MEMORY_KIB", "0"),
    ];
    let stopped = command(&["serve"], &mistakes).await;
    assert_eq!(stopped.code(), Some(1));
    let missing = ["DATABASE_URL", "GATEWAY_URL", "GATEWAY_API_KEY"];
    // A contradiction between settings is reported only if each of them is valid.
    let alone = mistakes
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"].contains(name));
    for name in alone.chain(missing) {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
    assert!(!stopped.stderr.contains("not-a-webhook-secret"), "{}", stopped.stderr);

    let together =
        [&minimum_settings()[..], &[("OPS_TOKEN", "too-short"), ("GATEWAY_TIMEOUT_MS", "99999")]].concat();
    let stopped = command(&["serve"], &together).await;
    assert_eq!(stopped.code(), Some(1));
    for name in ["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"] {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
}

#[tokio::test]
async fn a_short_or_empty_webhook_secret_is_rejected() {
    let long = "whsec_YSB3ZWJob29rIHNlY3JldCBvZiAyNCBieXRlcw==";
    for secret in ["whsec_", "whsec_YSB3ZWJob29rIHNlY3JldA==", &format!("{long} whsec_")] {
        let settings = [&minimum_settings()[..], &[("GATEWAY_WEBHOOK_SECRET", secret)]].concat();
        let stopped = command(&["config"], &settings).await;
        assert_eq!(stopped.code(), Some(1), "{secret}");
        assert!(
            stopped.stderr.contains("\n  GATEWAY_WEBHOOK_SECRET must be whsec_ and"),
            "{}",
            stopped.stderr
        );
    }
    let rotated = format!("{long} {long}");
    let settings = [&minimum_settings()[..], &[("GATEWAY_WEBHOOK_SECRET", rotated.as_str())]].concat();
    command(&["config"], &settings).await.succeeded();
}

#[tokio::test]
async fn the_settings_of_payments_are_shown_without_secrets() {
    let output = command(&["config"], &minimum_settings()).await.succeeded();
    for line in ["DATABASE_URL=<redacted>", "GATEWAY_API_KEY=<redacted>", "GATEWAY_WEBHOOK_SECRET=<redacted>"]
    {
        assert!(output.lines().any(|known| known == line), "{line} in {output}");
    }
    for line in [
        "GATEWAY_URL=http://127.0.0.1:1",
        "API_ADDRESS=127.0.0.1:8080",
        "APP_ENV=test",
        "# OPS_TOKEN is not set",
    ] {
        assert!(output.lines().any(|known| known == line), "{line} in {output}");
    }
    for secret in ["a-password", "an-api-key", "YSB3ZWJob29rIHNlY3JldCBvZiAyNCBieXRlcw"] {
        assert!(!output.contains(secret), "{output}");
    }
}

#[tokio::test]
async fn staging_and_production_reject_a_gateway_without_tls() {
    let config = async |environment, url, more: &[(&'static str, &'static str)]| {
        let settings = [("APP_ENV", environment), ("GATEWAY_URL", url)];
        command(&["config"], &[&minimum_settings()[..], &settings, more].concat()).await
    };
    for environment in ["staging", "production"] {
        for url in ["http://gateway.example", "http://10.0.0.1:9090"] {
            let stopped = config(environment, url, &[]).await;
            assert_eq!(stopped.code(), Some(1), "{environment} {url}");
            assert!(stopped.stderr.contains("\n  GATEWAY_URL must be https"), "{}", stopped.stderr);
            config(environment, url, &[("GATEWAY_ALLOW_PLAINTEXT", "true")]).await.succeeded();
        }
        for url in ["https://gateway.example", "http://127.0.0.1:9090", "http://[::1]:9090"] {
            config(environment, url, &[]).await.succeeded();
        }
    }
    config("development", "http://gateway.example", &[]).await.succeeded();
}

#[tokio::test]
async fn the_gateway_call_needs_a_trusted_certificate_and_no_proxy() {
    let proxy = CountingProxy::start().await;
    let service = proxy.set_in_environment(builder()).start().await;
    let tls = TlsProxy::to(&service.gateway().url(), Preamble::Nothing).await;
    let replica = [("GATEWAY_URL", &*tls.url()), ("SSL_CERT_FILE", tls.authority())];
    let replica = service.replica_with(&replica).await;
    // On a busy machine, a handshake may take longer than the gateway timeout, so the test expects no status.
    let _paid = replica.customer().await.places_an_order().await.pay("pm_card_ok").await;
    eventually("the gateway is called", async || (tls.handshakes() > 0).then_some(())).await;
    assert!(replica.terminate().await.success());
    let handshakes = tls.handshakes();

    let other = service.replica_with(&[("GATEWAY_URL", &*tls.url())]).await;
    let _unknown = other.customer().await.places_an_order().await.pay("pm_card_ok").await.is(202);
    assert_eq!((tls.handshakes(), proxy.clients()), (handshakes, 0));
}

#[tokio::test]
async fn a_replay_of_a_refund_requires_the_role() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let payment = customer.places_an_order().await.pay_successfully().await;
    let _made = support.refund(payment, Some(1)).key("one-key").await.is(201);
    let _not_replayed = customer.refund(payment, Some(1)).key("one-key").await.is_problem(403, "forbidden");
}
