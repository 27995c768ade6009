//! Discrepancies between the service's payments and the records of the payment gateway. The service sends an alert for
//! each discrepancy until a receiver accepts the alert. Each discrepancy is open until an operator closes it. An
//! operator can mark a payment as failed (`payments end`) only if the payment needs review.
use std::time::Duration;

use dev::{
    example::gateway::{Charge, ChargeStatus, Event},
    harness::{Service, eventually, within},
};
use serde_json::json;
use uuid::Uuid;

use crate::{builder, operations::alerts::Pager, service};

/// Delivers a webhook about a charge whose payment is unknown. Returns the reference of the charge.
async fn report_unknown_charge(service: &Service) -> Uuid {
    let reference = Uuid::now_v7();
    let charge = Charge {
        id: format!("ch_{}", reference.simple()),
        reference,
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 1,
        currency: "EUR".to_owned(),
    };
    let event = Event::of_charge(&charge).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&event).await.unwrap(), 204);
    reference
}

#[tokio::test]
async fn each_discrepancy_has_an_alert_of_its_own() {
    let pager = Pager::start().await;
    let service = builder().setting("ALERT_WEBHOOK_URL", &pager.url).start().await;
    let mut references = Vec::new();
    for _ in 0..3 {
        references.push(json!(report_unknown_charge(&service).await));
    }
    let alerts = eventually("three alerts arrive", async || {
        let alerts = pager.all("unknown reference");
        (alerts.len() == 3).then_some(alerts)
    })
    .await;
    for reference in &references {
        assert!(alerts.iter().any(|alert| alert["metadata"]["id"] == *reference), "{reference}: {alerts:#?}");
    }
    let due = "select count(*) from discrepancies where alert_due_at is not null";
    eventually("all alerts are acknowledged", async || {
        (service.database().number(due).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_alert_survives_a_crash_and_a_receiver_that_is_down() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let url = format!("http://{address}/alerts");
    let mut service = builder().setting("ALERT_WEBHOOK_URL", &url).start().await;
    let reference = report_unknown_charge(&service).await;
    service.kill_9().await;
    service.restart().await;
    let pager = Pager::start_at(&address).await;
    let alert =
        within(Duration::from_mins(1), "the alert arrives", async || pager.all("unknown reference").pop())
            .await;
    assert_eq!(alert["metadata"]["id"], json!(reference));
}

#[tokio::test]
async fn an_operator_closes_a_discrepancy_with_a_reason() {
    let service = service().await;
    let reference = report_unknown_charge(&service).await;
    let wait_for_open = async |count: i64| {
        eventually("the gauge has the number of open discrepancies", async || {
            (service.metric("payment_discrepancies_open").await == count).then_some(())
        })
        .await;
    };
    wait_for_open(1).await;
    let listed = service.command(&["payments", "discrepancy", "list"], &[]).await.succeeded();
    assert!(listed.contains(&reference.to_string()) && listed.contains("unknown reference"), "{listed}");
    let id = listed.split_whitespace().next().unwrap().to_owned();

    let close = ["payments", "discrepancy", "close", id.as_str(), "--reason", "refunded at the gateway"];
    assert_eq!(service.command(&close[..4], &[]).await.code(), Some(2), "the command must require a reason");
    service.command(&close, &[]).await.succeeded();
    wait_for_open(0).await;
    assert_eq!(service.command(&["payments", "discrepancy", "list"], &[]).await.succeeded(), "");
    assert_eq!(
        service.command(&close, &[]).await.code(),
        Some(1),
        "a closed discrepancy must not be closed again"
    );
    let closed = service.audit_events("resource = 'discrepancies' and action = 'close'").await;
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0]["metadata"]["reason"], "refunded at the gateway");
    assert_eq!(closed[0]["metadata"]["record_id"], json!(reference));
}

#[tokio::test]
async fn an_operator_ends_only_records_that_need_review() {
    let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "600").start().await;
    service.disable_webhooks();
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_timeout").await.assert_status(202).id();
    let id = payment.to_string();
    let end = ["payments", "end", id.as_str(), "--reason", "the gateway has no such charge"];
    let rejected = service.command(&end, &[]).await;
    assert_eq!(rejected.code(), Some(1));
    assert!(rejected.stderr.contains("needs no review"), "{}", rejected.stderr);

    service.database().execute(format!("update payments set parked_at = now() where id = '{id}'")).await;
    service.command(&end, &[]).await.succeeded();
    assert_eq!(order.status().await, "pending_payment");
    let rows =
        service.database().rows(format!("select status, failure_reason from payments where id = '{id}'"));
    assert_eq!(rows.await, [json!({ "status": "failed", "failure_reason": "gateway_rejected" })]);

    // The gateway has charged the payment nevertheless. The service records the webhook of this charge as a
    // discrepancy.
    let event = Event::of_charge(&service.charges_for(payment).await[0]).unwrap();
    assert_eq!(service.gateway().deliver_webhook(&event).await.unwrap(), 204);
    let recorded = service.audit_events("action = 'discrepancy'").await;
    assert_eq!(recorded[0]["metadata"]["what"], "contradiction");
}
