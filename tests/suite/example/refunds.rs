//! Refunds of a part or all of a payment, never more than the paid amount.
use dev::{
    example::gateway::{Event, Faults, RefundStatus, Webhooks},
    harness::{GATEWAY_API_KEY, Order, Service, User, eventually},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{builder, service};

/// Returns a paid order of 25.80 EUR, the id of its payment, and a support user.
async fn a_paid_order(service: &Service) -> (Order, Uuid, User) {
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay_successfully().await;
    (order, payment, service.support().await)
}

/// Returns a payment's status and its refunded amount.
async fn payment(support: &User, id: Uuid) -> (String, i64) {
    let payment = support.get(format!("/v1/payments/{id}")).await.assert_status(200);
    (payment.text("status"), payment.json()["refunded_amount"].as_i64().unwrap())
}

fn refunded_total(service: &Service) -> i64 {
    let refunds = service.gateway().ledger().refunds;
    refunds.iter().filter(|refund| refund.status == RefundStatus::Succeeded).map(|refund| refund.amount).sum()
}

#[tokio::test]
async fn a_payment_is_refunded_in_parts() {
    let service = service().await;
    let (order, id, support) = a_paid_order(&service).await;

    let first = support.refund(id, Some(580)).await.assert_status(201).json();
    assert_eq!(first["payment_id"], json!(id));
    assert_eq!(
        (&first["status"], &first["amount"], &first["currency"]),
        (&json!("succeeded"), &json!(580), &json!("EUR"))
    );
    assert_eq!(payment(&support, id).await, ("partially_refunded".to_owned(), 580));
    assert_eq!(order.status().await, "partially_refunded");

    let _second = support.refund(id, Some(1000)).await.assert_status(201);
    assert_eq!(payment(&support, id).await, ("partially_refunded".to_owned(), 1580));

    let rest = support.refund(id, None).await.assert_status(201).json();
    assert_eq!((&rest["status"], &rest["amount"]), (&json!("succeeded"), &json!(1000)));
    assert_eq!(payment(&support, id).await, ("refunded".to_owned(), 2580));
    assert_eq!(order.status().await, "refunded");

    let _nothing_left = support.refund(id, None).await.assert_problem(409, "conflict");
    let _nothing_left = support.refund(id, Some(1)).await.assert_problem(409, "conflict");
    assert_eq!(refunded_total(&service), 2580);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_refund_without_an_amount_refunds_everything() {
    let service = service().await;
    let (order, id, support) = a_paid_order(&service).await;
    let refund = support.refund(id, None).await.assert_status(201).json();
    assert_eq!((&refund["status"], &refund["amount"]), (&json!("succeeded"), &json!(2580)));
    assert_eq!(payment(&support, id).await, ("refunded".to_owned(), 2580));
    assert_eq!(order.status().await, "refunded");
    service.invariants_hold().await;
}

#[tokio::test]
async fn refunds_never_exceed_the_payment() {
    let service = service().await;
    let (_, id, support) = a_paid_order(&service).await;
    let _too_much = support.refund(id, Some(2581)).await.assert_invalid_at(&["/amount"]);
    let _far_too_much = support.refund(id, Some(i64::MAX)).await.assert_invalid_at(&["/amount"]);
    let _nothing = support.refund(id, Some(0)).await.assert_invalid_at(&["/amount"]);
    let _less_than_nothing = support.refund(id, Some(-1)).await.assert_invalid_at(&["/amount"]);
    let _part = support.refund(id, Some(2000)).await.assert_status(201);
    let _more_than_the_rest = support.refund(id, Some(581)).await.assert_problem(409, "conflict");
    assert_eq!(refunded_total(&service), 2000);
    service.invariants_hold().await;
}

#[tokio::test]
async fn twenty_refunds_at_once_never_exceed_the_payment() {
    let service = service().await;
    let (_, id, support) = a_paid_order(&service).await;
    let refunds: Vec<_> = (0..20).map(|_| support.refund(id, Some(500)).in_background()).collect();
    let mut accepted = 0;
    for refund in refunds {
        match refund.response().await {
            response if response.status == 201 => accepted += 1,
            response => drop(response.assert_problem(409, "conflict")),
        }
    }
    assert_eq!(accepted, 5, "five refunds of 500 fit into the payment of 2580");
    assert_eq!(payment(&support, id).await, ("partially_refunded".to_owned(), 2500));
    assert_eq!(refunded_total(&service), 2500);
    service.invariants_hold().await;
}

#[tokio::test]
async fn two_concurrent_full_refunds_refund_once() {
    let service = service().await;
    let (_, id, support) = a_paid_order(&service).await;
    let (one, other) = tokio::join!(support.refund(id, None), support.refund(id, None));
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
    assert_eq!(refunded_total(&service), 2580);
    service.invariants_hold().await;
}

#[tokio::test]
async fn only_charged_payments_can_be_refunded() {
    let service = service().await;
    service.disable_webhooks();
    let (customer, support) = (service.customer().await, service.support().await);
    let declined = customer.places_an_order().await.pay("pm_card_declined").await.assert_status(201).id();
    let _rejected = support.refund(declined, None).await.assert_problem(409, "conflict");

    let order = customer.places_an_order().await;
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_ok").in_background();
    let processing = order.wait_for_payment().await;
    let _rejected = support.refund(processing, None).await.assert_problem(409, "conflict");
    service.gateway().release();
    let _paid = attempt.response().await.assert_status(201);

    let _rejected = support.refund(Uuid::now_v7(), None).await.assert_problem(404, "not-found");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_failed_refund_releases_its_amount() {
    let service = service().await;
    let (order, id, support) = a_paid_order(&service).await;
    // 20.00 EUR are refunded directly at the gateway, and the database does not record this refund.
    let charge = service.charges_for(id).await.remove(0).id;
    let gateway_url = service.gateway().url().join(&format!("/v1/charges/{charge}/refunds")).unwrap();
    let response = dev::http::client(dev::harness::WAIT_TIMEOUT)
        .unwrap()
        .post(gateway_url)
        .bearer_auth(GATEWAY_API_KEY)
        .header("idempotency-key", "at the counter")
        .json(&json!({ "amount": 2000, "reference": Uuid::now_v7() }))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 201);

    let failed = support.refund(id, Some(1000)).await.assert_status(201);
    assert_eq!(failed.text("status"), "failed");
    assert_eq!(payment(&support, id).await, ("succeeded".to_owned(), 0));
    assert_eq!(order.status().await, "paid");
    // The gateway can still refund 5.80 EUR of the charge, because the failed refund has refunded nothing.
    let rest = support.refund(id, Some(580)).await.assert_status(201);
    assert_eq!(rest.text("status"), "succeeded");
    assert_eq!(payment(&support, id).await, ("partially_refunded".to_owned(), 580));
}

#[tokio::test]
async fn polling_settles_a_refund_of_unknown_outcome_once() {
    let service = service().await;
    let (order, id, support) = a_paid_order(&service).await;
    service.gateway().faults().set(Faults {
        error_rate_after_charge: 1.0,
        webhooks: Webhooks::Never,
        ..Faults::default()
    });
    let request = support.refund(id, Some(1000));
    let refund = request.clone().await.assert_status(202);
    assert_eq!(refund.text("status"), "processing");
    // The amount of a refund in progress is reserved and cannot be refunded again.
    let _reserved = support.refund(id, Some(2000)).await.assert_problem(409, "conflict");
    assert_eq!(payment(&support, id).await.1, 0, "the amount must not be refunded yet");

    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    order.wait_until("partially_refunded").await;
    assert_eq!(payment(&support, id).await, ("partially_refunded".to_owned(), 1000));
    let repeated = request.await.assert_status(201);
    assert!(repeated.is_replayed());
    assert_eq!((repeated.id(), repeated.text("status")), (refund.id(), "succeeded".to_owned()));
    assert_eq!(refunded_total(&service), 1000);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_refund_survives_a_crash_before_its_settlement() {
    let mut service = service().await;
    let (order, id, support) = a_paid_order(&service).await;
    service.disable_webhooks();
    service.gateway().hold_responses();
    let attempt = support.refund(id, None).in_background();
    eventually("the gateway has refunded the payment", async || {
        (refunded_total(&service) == 2580).then_some(())
    })
    .await;
    let retry = attempt.again();
    service.kill_9().await;
    let _cut_off = attempt.give_up().await;
    service.gateway().release();
    service.restart().await;

    order.wait_until("refunded").await;
    assert!(retry.await.assert_status(201).is_replayed());
    assert_eq!(refunded_total(&service), 2580);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_webhook_settles_a_refund_during_its_request() {
    let service = service().await;
    let (order, id, support) = a_paid_order(&service).await;
    service.gateway().hold_responses();
    let attempt = support.refund(id, None).in_background();
    order.wait_until("refunded").await;
    service.gateway().release();
    assert_eq!(attempt.response().await.assert_status(201).text("status"), "succeeded");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_refund_is_not_started_while_the_gateway_is_down() {
    let service = service().await;
    let (_, id, support) = a_paid_order(&service).await;
    let customer = service.customer().await;
    service.gateway().faults().set(Faults { error_rate: 1.0, ..Faults::default() });
    eventually("the breaker opens", async || {
        (customer.places_an_order().await.pay("pm_card_ok").await.status == 503).then_some(())
    })
    .await;
    let rejected = support.refund(id, Some(1)).await.assert_problem(503, "unavailable");
    assert!(rejected.header("retry-after").is_some());
    assert_eq!(service.database().number("select count(*) from refunds").await, 0);
}

#[tokio::test]
async fn a_refund_has_a_reason_of_at_most_500_characters() {
    let service = service().await;
    let (_, id, support) = a_paid_order(&service).await;
    let with_reason = |reason: &str| {
        let refund = json!({ "amount": 1, "reason": reason });
        support.post(format!("/v1/payments/{id}/refunds")).json(&refund).new_key()
    };
    let _refunded = with_reason(&"\u{e4}".repeat(500)).await.assert_status(201);
    let _too_long = with_reason(&"x".repeat(501)).await.assert_invalid_at(&["/reason"]);
    let _unstorable = with_reason("\u{0}").await.assert_invalid_at(&["/reason"]);
    service.invariants_hold().await;
}

#[tokio::test]
async fn the_audit_log_records_a_refund_and_its_user() {
    let service = service().await;
    // Without webhooks the request itself settles the refund, so both events name the support user.
    service.disable_webhooks();
    let (_, id, support) = a_paid_order(&service).await;
    let refund = support.refund(id, Some(100)).await.assert_status(201).id();
    let events = service.audit_events(&format!("metadata -> 'record_ids' ? '{refund}'")).await;
    let action_and_user =
        |event: &Value| (event["action"].clone(), event["user_id"].clone(), event["role"].clone());
    let by_support = |action: &str| (json!(action), json!(support.id), json!("support"));
    assert_eq!(
        events.iter().map(action_and_user).collect::<Vec<_>>(),
        [by_support("create"), by_support("settle")]
    );
}

#[tokio::test]
async fn a_retry_does_not_refund_again_after_its_row_is_lost() {
    let mut service = service().await;
    service.disable_webhooks();
    let (order, id, support) = a_paid_order(&service).await;
    service.terminate().await;
    service.database().back_up().await;
    service.restart().await;
    let request = support.refund(id, Some(1000));
    let lost = request.clone().await.assert_status(201);

    service.terminate().await;
    service.database().restore().await;
    service.restart().await;
    assert_eq!(payment(&support, id).await, ("succeeded".to_owned(), 0));
    let retried = request.await.assert_status(201);

    assert_ne!(retried.id(), lost.id());
    assert_eq!(service.gateway().ledger().refunds.len(), 1);
    assert_eq!(order.status().await, "partially_refunded");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_retry_after_its_key_has_expired_finds_the_refund() {
    let service = service().await;
    let (_, id, support) = a_paid_order(&service).await;
    for amount in [Some(1000), None] {
        let request = support.refund(id, amount);
        let first = request.clone().await.assert_status(201);
        service.database().execute("delete from idempotency_keys where scope <> 'gateway'").await;
        let again = request.await.assert_status(201);
        assert!(again.is_replayed());
        assert_eq!(again.id(), first.id());
    }
    assert_eq!(refunded_total(&service), 2580);
    assert_eq!(service.gateway().ledger().refunds.len(), 2);
}

#[tokio::test]
async fn constraints_keep_reserved_amounts_within_the_payment() {
    let service = service().await;
    let (_, id, support) = a_paid_order(&service).await;
    let _part = support.refund(id, Some(1000)).await.assert_status(201);
    for change in [
        "refund_reserved_amount = amount + 1",
        "refund_reserved_amount = refunded_amount - 1",
        "refunded_amount = -1",
    ] {
        let update = format!("update payments set {change} where id = '{id}'");
        assert_eq!(service.database().try_as_service(&update).await, Err("23514".to_owned()), "{change}");
    }
}

#[tokio::test]
async fn a_resent_refund_keeps_the_amount_of_its_first_send() {
    let service = service().await;
    let (order, id, support) = a_paid_order(&service).await;
    let _part = support.refund(id, Some(500)).await.assert_status(201);
    service.gateway().faults().set(Faults {
        error_rate: 1.0,
        webhooks: Webhooks::Never,
        ..Faults::default()
    });
    let rest = support.refund(id, None).await.assert_status(202);
    let key = service.gateway_key(rest.id()).await.to_string();
    let sends_by_request = service.count_requests_for(rest.id()).await;
    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    order.wait_until("refunded").await;

    let sent = service.gateway().requests();
    let sent: Vec<_> = sent.iter().filter(|request| request.idempotency_key.as_ref() == Some(&key)).collect();
    assert!(sent.len() > sends_by_request);
    for request in &sent {
        assert_eq!((&request.path, &request.body), (&sent[0].path, &sent[0].body));
    }
    let body: Value = serde_json::from_str(&sent[0].body).unwrap();
    assert_eq!(body, json!({ "amount": 2080, "reference": key }));
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_second_gateway_refund_is_a_discrepancy() {
    let service = service().await;
    service.disable_webhooks();
    let (_, id, support) = a_paid_order(&service).await;
    let refund = support.refund(id, Some(1000)).await.assert_status(201).id();
    let made = service.gateway().ledger().refunds.remove(0);
    let event_of = |refund: &dev::example::gateway::Refund| Event::of_refund(refund).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&event_of(&made)).await.unwrap(), 204);
    let discrepancies = format!("action = 'discrepancy' and metadata -> 'record_ids' ? '{refund}'");
    assert_eq!(
        service.audit_events(&discrepancies).await.len(),
        0,
        "an event of the same gateway refund must be no discrepancy"
    );

    let second = dev::example::gateway::Refund { id: "re_second".to_owned(), ..made };
    assert_eq!(service.gateway().deliver_webhook(&event_of(&second)).await.unwrap(), 204);
    let events = service.audit_events(&discrepancies).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["metadata"]["what"], "second refund");
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_refund_is_not_sent_if_its_commit_is_unconfirmed() {
    let service = builder().with_database_proxy().start().await;
    service.disable_webhooks();
    let (_, id, support) = a_paid_order(&service).await;
    let lock = service.database().hold(&format!("select from payments where id = '{id}' for update")).await;
    let request = support.refund(id, Some(1000));
    let attempt = request.clone().in_background();
    eventually("the transaction of the refund waits for the lock", async || {
        let waiting =
            "select count(*) from pg_locks where not granted and locktype in ('transactionid', 'tuple')
                       and pid in (select pid from pg_stat_activity where datname = current_database())";
        (service.database().number(waiting).await > 0).then_some(())
    })
    .await;
    service.database_proxy().interrupt();
    let response = attempt.response().await.assert_problem(503, "unavailable");
    assert!(response.header("retry-after").is_some(), "{response}");
    assert_eq!(
        service.gateway().ledger().refunds.len(),
        0,
        "a refund whose commit is unconfirmed must not be sent"
    );

    lock.release().await;
    let refunded = request.send_until_final().await.assert_status(201);
    assert_eq!(refunded.text("status"), "succeeded");
    assert_eq!(refunded_total(&service), 1000);
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_http_rejection_keeps_the_amount_until_an_operator_ends_it() {
    let service = service().await;
    service.disable_webhooks();
    let (_, id, support) = a_paid_order(&service).await;
    service.gateway().faults().set(Faults {
        error_rate: 1.0,
        error_status: 422,
        webhooks: Webhooks::Never,
        ..Faults::default()
    });
    let refund = support.refund(id, Some(2000)).await.assert_status(202).id();
    let reserved = format!("select refund_reserved_amount from payments where id = '{id}'");
    assert_eq!(
        service.database().number(&reserved).await,
        2000,
        "a rejection does not prove that no money was refunded"
    );
    let parked = format!("select count(*) from refunds where id = '{refund}' and parked_at is not null");
    eventually("the refund needs review", async || {
        (service.database().number(&parked).await == 1).then_some(())
    })
    .await;

    let refund = refund.to_string();
    let end = ["payments", "end", refund.as_str(), "--reason", "the gateway has no such refund, ticket 7"];
    service.command(&end, &[]).await.succeeded();
    assert_eq!(service.database().number(&reserved).await, 0);
    let ended = service.audit_events("resource = 'refunds' and action = 'settle'").await;
    assert_eq!(ended[0]["metadata"]["decided_by_operator"], "the gateway has no such refund, ticket 7");
    assert_eq!(service.command(&end, &[]).await.code(), Some(1), "a settled refund must not be ended again");

    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    let _all = support.refund(id, None).await.assert_status(201);
    assert_eq!(refunded_total(&service), 2580);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_replay_of_a_refund_requires_the_role() {
    let service = service().await;
    let (customer, support) = (service.customer().await, service.support().await);
    let payment = customer.places_an_order().await.pay_successfully().await;
    let _made = support.refund(payment, Some(1)).key("one-key").await.assert_status(201);
    let _not_replayed =
        customer.refund(payment, Some(1)).key("one-key").await.assert_problem(403, "forbidden");
}
