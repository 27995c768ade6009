//! Payments in flight while the service shuts down, or while a task panics.
use dev::harness::Signal;

use crate::{
    builder,
    http::panics::{panics_at, the_only_panic},
    service,
};

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
        .wait_for_log("the shutdown has begun", |line| line["message"] == "the service is shutting down")
        .await;
    service.gateway().release();

    assert_eq!(attempt.response().await.assert_status(201).text("status"), "succeeded");
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
    let _unknown =
        order.pay("pm_card_timeout").header("x-correlation-id", "unlucky").await.assert_status(202);
    let panic = the_only_panic(&service, "recovery.leased").await;
    assert_eq!(
        panic["correlation_id"], "unlucky",
        "the panic must have the id of the request that began the payment"
    );
    order.wait_until("paid").await;
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
    order.wait_until("paid").await;
    service.invariants_hold().await;
}
