//! Idempotency: until a key expires, repeated requests with this key have one effect. Once the outcome is known, all of
//! them get the same response.
use std::collections::BTreeSet;

use dev::harness::{MUG, Request, Service, eventually};
use serde_json::{Value, json};

use crate::{builder, service};

#[tokio::test]
async fn a_repeated_order_replays_the_bytes_and_is_placed_once() {
    let service = service().await;
    let order = service.customer().await.orders(&[(MUG, 2)]);
    let first = order.clone().await.assert_status(201);
    assert!(!first.is_replayed());
    for _ in 0..3 {
        let again = order.clone().await.assert_status(201);
        assert!(again.is_replayed());
        assert_eq!(again.text, first.text);
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(again.header("content-type"), first.header("content-type"));
    }
    assert_eq!(service.database().number("select count(*) from orders").await, 1);
    assert_eq!(service.metric("orders_created_total").await, 1);
}

#[tokio::test]
async fn a_repeated_payment_replays_the_first_outcome() {
    let service = service().await;
    let customer = service.customer().await;
    for card in ["pm_card_ok", "pm_card_declined", "pm_card_unknown"] {
        let order = customer.places_an_order().await;
        let payment = order.pay(card);
        let first = payment.clone().await.assert_status(201);
        assert!(!first.is_replayed());
        let again = payment.await.assert_status(201);
        assert!(again.is_replayed());
        assert_eq!(again.text, first.text);
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(order.payments().await.len(), 1);
    }
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_repeated_refund_replays_the_first_outcome() {
    let service = service().await;
    let support = service.support().await;
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    let refund = support.refund(payment, Some(500));
    let first = refund.clone().await.assert_status(201);
    assert!(!first.is_replayed());
    let again = refund.await.assert_status(201);
    assert!(again.is_replayed());
    assert_eq!(again.text, first.text);
    assert_eq!(service.gateway().ledger().refunds.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_key_cannot_be_reused_for_a_different_request() {
    let service = service().await;
    let customer = service.customer().await;
    let order = customer.orders(&[(MUG, 1)]).key("mine").await.assert_status(201).id();
    let _other_body =
        customer.orders(&[(MUG, 2)]).key("mine").await.assert_problem(422, "idempotency-key-reused");
    let _invalid_body =
        customer.orders(&[(MUG, 0)]).key("mine").await.assert_problem(422, "idempotency-key-reused");
    let _other_route =
        customer.pay(order, "pm_card_ok").key("mine").await.assert_problem(422, "idempotency-key-reused");

    let paid = customer.pay(order, "pm_card_ok").key("other").await.assert_status(201);
    let _other_card = customer
        .pay(order, "pm_card_declined")
        .key("other")
        .await
        .assert_problem(422, "idempotency-key-reused");
    let another = customer.places_an_order().await;
    let _other_order =
        another.pay("pm_card_ok").key("other").await.assert_problem(422, "idempotency-key-reused");
    let _invalid_card =
        customer.pay(order, "").key("other").await.assert_problem(422, "idempotency-key-reused");
    assert_eq!(customer.pay(order, "pm_card_ok").key("other").await.assert_status(201).text, paid.text);

    let support = service.support().await;
    let refunded = support.refund(paid.id(), Some(100)).key("back").await.assert_status(201);
    for other in [Some(200), Some(0), Some(i64::MAX), None] {
        let other = support.refund(paid.id(), other).key("back").await;
        let _other_amount = other.assert_problem(422, "idempotency-key-reused");
    }
    assert_eq!(support.refund(paid.id(), Some(100)).key("back").await.assert_status(201).text, refunded.text);
    service.invariants_hold().await;
}

#[tokio::test]
async fn keys_of_two_users_are_independent() {
    let service = service().await;
    let (one, other) = (service.customer().await, service.customer().await);
    let first = one.orders(&[(MUG, 1)]).key("everybodys-favourite").await.assert_status(201);
    let second = other.orders(&[(MUG, 1)]).key("everybodys-favourite").await.assert_status(201);
    assert!(!second.is_replayed());
    assert_ne!(first.id(), second.id());
}

#[tokio::test]
async fn a_reformatted_request_is_the_same_request() {
    let service = service().await;
    let customer = service.customer().await;
    let send = |body: &str| {
        customer.post("/v1/orders").key("spelling").header("content-type", "application/json").body(body)
    };
    let first =
        send(&format!(r#"{{"items":[{{"product_id":"{MUG}","quantity":1}}]}}"#)).await.assert_status(201);
    for body in [
        format!(r#"{{"items":[{{"quantity":1,"product_id":"{MUG}"}}]}}"#),
        format!("{{\n  \"items\": [\n    {{ \"product_id\": \"{MUG}\", \"quantity\": 1 }}\n  ]\n}}\n"),
    ] {
        let again = send(&body).await.assert_status(201);
        assert!(again.is_replayed());
        assert_eq!(again.text, first.text);
    }
}

#[tokio::test]
async fn orders_payments_and_refunds_require_a_key() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let order = customer.places_an_order().await;
    let payment = order.pay_successfully().await;
    for request in [customer.orders(&[(MUG, 1)]), order.pay("pm_card_ok"), support.refund(payment, Some(1))] {
        let keyless = request.without_header("idempotency-key");
        let _rejected = keyless.await.assert_problem(400, "missing-idempotency-key");
    }
}

#[tokio::test]
async fn a_key_has_1_to_255_visible_ascii_characters_without_quotes() {
    let service = service().await;
    let customer = service.customer().await;
    let order = |key: &str| customer.orders(&[(MUG, 1)]).key(key);

    let longest = "k".repeat(255);
    for key in ["k", "!~", &longest] {
        let _placed = order(key).await.assert_status(201);
    }
    for key in ["", "\"\"", "two words", "t\u{e4}st", &"k".repeat(256)] {
        let _rejected = order(key).await.assert_problem(400, "missing-idempotency-key");
    }

    let bare = order("quoted-or-not").await.assert_status(201);
    let quoted = order("\"quoted-or-not\"").await.assert_status(201);
    assert!(quoted.is_replayed());
    assert_eq!(quoted.text, bare.text);
    let longest_quoted = order(&format!("\"{longest}\"")).await.assert_status(201);
    assert!(longest_quoted.is_replayed());
}

#[tokio::test]
async fn a_rejection_stores_no_key() {
    let service = service().await;
    let customer = service.customer().await;
    let order = |items: &[(&str, i64)]| customer.orders(items).key("corrected");
    let _invalid = order(&[(MUG, 0)]).await.assert_status(422);
    let unknown = uuid::Uuid::now_v7().to_string();
    let _unknown = order(&[(&unknown, 1)]).await.assert_status(422);
    let _malformed = order(&[]).body("{").await.assert_status(400);
    let placed = order(&[(MUG, 1)]).await.assert_status(201);
    assert!(!placed.is_replayed());

    let cancelled = customer.places_an_order().await;
    let _cancelled = cancelled.cancel().await.assert_status(200);
    let _conflict = cancelled.pay("pm_card_ok").key("paid-after-all").await.assert_status(409);
    let order = customer.places_an_order().await;
    let paid = order.pay("pm_card_ok").key("paid-after-all").await.assert_status(201);
    assert!(!paid.is_replayed());
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_replay_ignores_later_changes_of_the_catalog() {
    let service = service().await;
    let (customer, admin) = (service.customer().await, service.admin().await);
    let order = customer.orders(&[(MUG, 1)]);
    let first = order.clone().await.assert_status(201);
    let retire = json!({ "active": false });
    let _retired = admin.patch(format!("/v1/products/{MUG}")).json(&retire).await.assert_status(200);
    assert_eq!(order.await.assert_status(201).text, first.text);
}

#[tokio::test]
async fn a_retry_during_a_payment_gets_409_and_then_the_outcome() {
    let service = service().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    order.wait_for_payment().await;

    let early = attempt.again().await.assert_problem(409, "request-under-way");
    let seconds: u64 = early.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3).contains(&seconds), "{early}");

    service.gateway().release();
    let again = attempt.again();
    let first = attempt.response().await.assert_status(201);
    let replayed = again.await.assert_status(201);
    assert!(replayed.is_replayed());
    assert_eq!(replayed.text, first.text);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_retry_of_a_payment_in_progress_gets_its_current_state() {
    let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "3").start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_timeout");
    let first = payment.clone().await.assert_status(202);
    let meanwhile = payment.clone().await.assert_status(202);
    assert!(meanwhile.is_replayed());
    assert_eq!(meanwhile.id(), first.id());

    order.wait_until("paid").await;
    let settled = payment.await.assert_status(201);
    assert!(settled.is_replayed());
    assert_eq!((settled.id(), settled.text("status")), (first.id(), "succeeded".to_owned()));
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_retry_after_the_lease_gets_the_current_state() {
    let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    order.wait_for_payment().await;

    service
        .database()
        .execute("update idempotency_keys set lease_expires_at = now() where completed_at is null")
        .await;
    assert!(attempt.again().await.assert_status(202).is_replayed());
    service.gateway().release();
    let _settled = attempt.response().await.assert_status(201);
}

/// Returns the idempotency keys of the next test that are still stored.
async fn stored_keys(service: &Service) -> Vec<Value> {
    let keys =
        "select key from idempotency_keys where key in ('old', 'young', 'never-complete') order by key";
    service.database().rows(keys).await
}

#[tokio::test]
async fn keys_expire_one_day_after_completion() {
    let mut service = service().await;
    service.disable_webhooks();
    let customer = service.customer().await;
    let order = |key: &str| customer.orders(&[(MUG, 1)]).key(key);
    let (old, young) = (order("old").await.assert_status(201), order("young").await.assert_status(201));
    service.gateway().hold_responses();
    let unpaid = customer.places_an_order().await;
    let _processing = unpaid.pay("pm_card_ok").key("never-complete").await.assert_status(202);

    service
        .database()
        .execute(
            "update idempotency_keys set completed_at = now() - interval '24 hours 1 second' where key = 'old';
             update idempotency_keys set completed_at = now() - interval '23 hours 58 minutes' where key = 'young';
             update idempotency_keys set created_at = now() - interval '3 days' where key = 'never-complete'",
        )
        .await;
    // The sweeper deletes expired keys at the start of the service and once a minute. Until the sweeper has run, the
    // response of an expired key is still replayed.
    assert_eq!(order("old").await.assert_status(201).text, old.text);
    assert_eq!(order("young").await.assert_status(201).text, young.text);
    service.terminate().await;
    service.restart().await;
    eventually("the sweeper has run", async || (stored_keys(&service).await.len() < 3).then_some(())).await;
    assert_eq!(stored_keys(&service).await, [json!({ "key": "never-complete" }), json!({ "key": "young" })]);
    assert_eq!(order("young").await.assert_status(201).text, young.text);
    let repeated = order("old").await.assert_status(201);
    assert!(!repeated.is_replayed());
    assert_ne!(repeated.id(), old.id());
    service.gateway().release();
    unpaid.wait_until("paid").await;
    service.invariants_hold().await;
}

/// Sends fifty concurrent duplicates of a request, and then the request once more. Checks that exactly one duplicate
/// was executed. Returns the distinct bodies of the successful responses.
async fn distinct_bodies_of_fifty_duplicates(request: Request) -> BTreeSet<String> {
    let duplicates: Vec<_> = (0..50).map(|_| request.clone().in_background()).collect();
    let mut bodies = BTreeSet::new();
    let mut executed = 0;
    for duplicate in duplicates {
        let response = duplicate.response().await;
        if response.status == 201 {
            executed += usize::from(!response.is_replayed());
            bodies.insert(response.text);
        } else {
            let conflict = response.assert_problem(409, "request-under-way");
            assert!(conflict.header("retry-after").is_some());
        }
    }
    assert_eq!(executed, 1, "exactly one duplicate must be executed");
    bodies.insert(request.await.assert_status(201).text);
    bodies
}

#[tokio::test]
async fn fifty_concurrent_duplicates_place_one_order() {
    let service = service().await;
    let customer = service.customer().await;
    let bodies = distinct_bodies_of_fifty_duplicates(customer.orders(&[(MUG, 3)])).await;
    assert_eq!(bodies.len(), 1, "the responses differ: {bodies:#?}");
    assert_eq!(service.database().number("select count(*) from orders").await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn fifty_concurrent_duplicates_charge_once() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let bodies = distinct_bodies_of_fifty_duplicates(order.pay("pm_card_ok")).await;
    assert_eq!(bodies.len(), 1, "the responses differ: {bodies:#?}");
    assert_eq!(service.gateway().ledger().charges.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn fifty_concurrent_duplicates_refund_once() {
    let service = service().await;
    let support = service.support().await;
    let payment = service.customer().await.places_an_order().await.pay_successfully().await;
    let bodies = distinct_bodies_of_fifty_duplicates(support.refund(payment, Some(100))).await;
    assert_eq!(bodies.len(), 1, "the responses differ: {bodies:#?}");
    assert_eq!(service.gateway().ledger().refunds.len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn fifty_duplicates_of_an_invalid_order_are_all_rejected() {
    let service = service().await;
    let request = service.customer().await.orders(&[(MUG, 1001)]);
    let duplicates: Vec<_> = (0..50).map(|_| request.clone().in_background()).collect();
    for duplicate in duplicates {
        let _rejected = duplicate.response().await.assert_invalid_at(&["/items/0/quantity"]);
    }
    assert_eq!(service.database().number("select count(*) from idempotency_keys").await, 0);
}
