//! Malformed and contradictory responses of the gateway. Such a response settles no payment. A series of malformed
//! responses opens the circuit breaker. A poll returns a list of charges: if a charge in this list is valid JSON but has
//! an unknown form, only its payment is affected. A decline is a valid response, and does not open the breaker. A
//! rejection (a 4xx other than 408, 409, 425 and 429) fails a payment only if no other attempt can have reached the
//! gateway.
use dev::{
    example::gateway::{Charge, ChargeStatus, Faults, Malformation, Webhooks},
    harness::{Service, eventually},
};

use super::payments::charges;
use crate::{builder, service};

fn malformed_faults(malformation: Malformation) -> Faults {
    Faults { malformation_rate: 1.0, malformation, webhooks: Webhooks::Never, ..Faults::default() }
}

/// Returns the kinds of the discrepancies in the audit log.
async fn discrepancies(service: &Service) -> Vec<String> {
    let events = service.audit_events("action = 'discrepancy'").await;
    events.iter().map(|event| event["metadata"]["what"].as_str().unwrap().to_owned()).collect()
}

async fn pay_with_malformed_response(malformation: Malformation, expected: Option<&str>) {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(malformed_faults(malformation));
    let payment = order.pay("pm_card_ok").await.assert_status(202).id();
    if let Some(expected) = expected {
        eventually("the discrepancy is recorded", async || {
            (!discrepancies(&service).await.is_empty()).then_some(())
        })
        .await;
        assert!(
            discrepancies(&service).await.iter().all(|discrepancy| discrepancy == expected),
            "{:?}",
            discrepancies(&service).await
        );
    }
    assert_eq!(order.status().await, "pending_payment");

    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    order.wait_until("paid").await;
    assert_eq!(service.charges_for(payment).await.len(), 1);
    assert_eq!(discrepancies(&service).await.is_empty(), expected.is_none());
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_response_without_json_settles_nothing() {
    pay_with_malformed_response(Malformation::Garbage, None).await;
}

#[tokio::test]
async fn a_huge_response_is_not_read() {
    pay_with_malformed_response(Malformation::Huge, None).await;
}

#[tokio::test]
async fn a_response_with_another_amount_settles_nothing() {
    pay_with_malformed_response(Malformation::Amount, Some("amount")).await;
}

#[tokio::test]
async fn a_response_in_another_currency_settles_nothing() {
    pay_with_malformed_response(Malformation::Currency, Some("currency")).await;
}

#[tokio::test]
async fn a_response_of_another_payment_settles_nothing() {
    pay_with_malformed_response(Malformation::Reference, Some("reference")).await;
}

#[tokio::test]
async fn an_id_that_cannot_be_stored_settles_nothing() {
    pay_with_malformed_response(Malformation::Nul, Some("unreadable charge")).await;
}

#[tokio::test]
async fn an_id_that_is_not_text_settles_nothing() {
    pay_with_malformed_response(Malformation::Surrogate, Some("unreadable charge")).await;
}

#[tokio::test]
async fn unreadable_records_do_not_block_other_payments() {
    let service = service().await;
    let customer = service.customer().await;
    service.gateway().faults().set(malformed_faults(Malformation::Record));
    let mut unfinished = Vec::new();
    for _ in 0..10 {
        let order = customer.places_an_order().await;
        unfinished.push((order.pay("pm_card_timeout").in_background(), order));
    }
    for (attempt, _) in unfinished {
        let _unknown = attempt.response().await.assert_status(202);
    }
    let orders = [(); 20].map(|()| customer.places_an_order());
    for (paid, order) in orders.into_iter().enumerate() {
        let order = order.await;
        eventually("the breaker is closed", async || {
            let response = order.pay("pm_card_ok").await;
            assert!([201, 503].contains(&response.status), "{response}");
            // Only the ten calls without a response may open the breaker. Once the breaker is closed, it stays closed.
            assert!(paid == 0 || response.status == 201, "rejected after {paid} paid orders: {response}");
            (response.status == 201).then_some(())
        })
        .await;
    }
    eventually("each unreadable record is recorded", async || {
        (discrepancies(&service).await.len() == 10).then_some(())
    })
    .await;
    assert!(discrepancies(&service).await.iter().all(|discrepancy| discrepancy == "unreadable charge"));
}

#[tokio::test]
async fn an_excessive_retry_after_ends_the_retries() {
    let service = service().await;
    let customer = service.customer().await;
    for retry_after in ["18446744073709551615", "99999999999999999999999999"] {
        service.gateway().faults().set(Faults {
            error_rate: 1.0,
            error_status: 503,
            retry_after: retry_after.to_owned(),
            webhooks: Webhooks::Never,
            ..Faults::default()
        });
        let order = customer.places_an_order().await;
        let payment = order.pay("pm_card_ok").await.assert_status(202).id();
        assert_eq!(service.count_requests_for(payment).await, 1);
        service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
        order.wait_until("paid").await;
    }
    assert_eq!(service.metric("panics_total").await, 0);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_rejection_after_another_attempt_settles_nothing() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    service.gateway().hold_responses();
    let attempt = order.pay("pm_card_from_another_gateway").in_background();
    let payment = order.wait_for_payment().await;
    eventually("the charge is sent", async || (service.count_requests_for(payment).await == 1).then_some(()))
        .await;
    // This simulates a second attempt by the recovery of another replica.
    service.database().execute(format!("update payments set attempts = 2 where id = '{payment}'")).await;
    let charge = Charge {
        id: "ch_by_another_attempt".to_owned(),
        reference: service.gateway_key(payment).await,
        status: ChargeStatus::Succeeded,
        decline_code: None,
        amount: 2580,
        currency: "EUR".to_owned(),
    };
    service.gateway().record(charge).unwrap();
    service.gateway().release();

    assert_eq!(attempt.response().await.assert_status(202).text("status"), "processing");
    order.wait_until("paid").await;
    assert_eq!(order.payments().await, [payment]);
    assert_eq!(discrepancies(&service).await, [""; 0]);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_rejection_after_a_failed_connect_fails_the_payment() {
    let service = service().await;
    let unconnected = service.replica_with(&[("GATEWAY_URL", "http://127.0.0.1:1")]).await;
    let order = service.customer().await.places_an_order().await;
    let payment = order.pay("pm_card_from_another_gateway").at(&unconnected).await.assert_status(202).id();
    let failed = format!("select count(*) from payments where id = '{payment}' and status = 'failed'");
    eventually("the rejection ends the payment", async || {
        (service.database().number(&failed).await == 1).then_some(())
    })
    .await;
    order.pay_successfully().await;
    service.invariants_hold().await;
}

#[tokio::test]
async fn one_charge_settles_one_payment_and_the_other_needs_review() {
    let service = service().await;
    service.disable_webhooks();
    let customer = service.customer().await;
    let settled = customer.places_an_order().await.pay_successfully().await;
    let charge = service.charges_for(settled).await.remove(0);
    let order = customer.places_an_order().await;
    service.gateway().faults().set(Faults {
        error_rate: 1.0,
        webhooks: Webhooks::Never,
        ..Faults::default()
    });
    let payment = order.pay("pm_card_ok").await.assert_status(202).id();
    let reference = service.gateway_key(payment).await;
    service.gateway().record(Charge { reference, ..charge }).unwrap();
    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });

    let parked = format!(
        "select count(*) from payments where id = '{payment}' and status = 'processing' and parked_at is not null"
    );
    eventually("the payment needs review", async || {
        (service.database().number(&parked).await == 1).then_some(())
    })
    .await;
    assert_eq!(discrepancies(&service).await, ["charge of another payment"]);
    assert_eq!(order.status().await, "pending_payment");
}

#[tokio::test]
async fn malformed_responses_open_the_breaker() {
    for malformation in
        [Malformation::Garbage, Malformation::Huge, Malformation::Amount, Malformation::Reference]
    {
        // The responses to the polls of recovery are malformed, too. With this interval, recovery polls too rarely to
        // affect the breaker.
        let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "60").start().await;
        let customer = service.customer().await;
        service.gateway().faults().set(malformed_faults(malformation));
        let rejected = eventually("the breaker opens", async || {
            let response = customer.places_an_order().await.pay("pm_card_ok").await;
            (response.status == 503).then_some(response)
        })
        .await;
        assert!(rejected.header("retry-after").is_some(), "{malformation:?}: {rejected}");
        assert_eq!(
            service.metric("circuit_breaker_state{service=\"payment_gateway\"}").await,
            2,
            "{malformation:?}"
        );
    }
}

#[tokio::test]
async fn declines_do_not_open_the_breaker() {
    let service = service().await;
    let customer = service.customer().await;
    for _ in 0..15 {
        let declined = customer.places_an_order().await.pay("pm_card_declined").await.assert_status(201);
        assert_eq!(declined.text("status"), "declined");
    }
    assert_eq!(service.metric("circuit_breaker_state{service=\"payment_gateway\"}").await, 0);
}

#[tokio::test]
async fn a_409_of_the_gateway_settles_nothing_and_is_recorded() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let conflict =
        Faults { error_rate: 1.0, error_status: 409, webhooks: Webhooks::Never, ..Faults::default() };
    service.gateway().faults().set(conflict);
    let payment = order.pay("pm_card_ok").await.assert_status(202);
    assert_eq!(
        payment.text("status"),
        "processing",
        "a 409 must not end a payment, not even as the first response"
    );
    assert_eq!(discrepancies(&service).await, ["idempotency conflict"]);
    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    order.wait_until("paid").await;
    assert_eq!(charges(&service, payment.id()).await, 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_rejection_of_a_resent_charge_settles_nothing() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    // The gateway responds to the first send with a late error, and to the second send with a rejection.
    let failing = Faults { error_rate: 1.0, latency_ms: 400, webhooks: Webhooks::Never, ..Faults::default() };
    service.gateway().faults().set(failing);
    let attempt = order.pay("pm_card_from_another_gateway").in_background();
    let sent = || service.gateway().requests().iter().filter(|request| request.method == "POST").count();
    eventually("the charge is sent", async || (sent() == 1).then_some(())).await;
    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    let response = attempt.response().await.assert_status(202);
    assert!(sent() >= 2, "the charge was not sent again within the request");
    assert_eq!(response.text("status"), "processing");
    service.invariants_hold().await;
}
