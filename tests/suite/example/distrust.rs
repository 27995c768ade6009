//! Answers of the gateway that are not what they should be: none is believed, and the gateway is left alone if they
//! are many. Declines are answers like any other.
use dev::{
    example::gateway::{Faults, Spoil, Webhooks},
    harness::{Service, eventually},
};

use super::payments::charges;
use crate::{builder, service};

fn spoiled(spoil: Spoil) -> Faults {
    Faults { spoil_rate: 1.0, spoil, webhooks: Webhooks::Never, ..Faults::default() }
}

/// What the trail says about answers that did not fit.
async fn told(service: &Service) -> Vec<String> {
    let events = service.audit_events("action = 'discrepancy'").await;
    events.iter().map(|event| event["metadata"]["what"].as_str().unwrap().to_owned()).collect()
}

async fn is_not_believed(spoil: Spoil, what: Option<&str>) {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    service.gateway().faults().set(spoiled(spoil));
    let payment = order.pay("pm_card_ok").await.is(202).id();
    if let Some(what) = what {
        eventually("it is told", async || (!told(&service).await.is_empty()).then_some(())).await;
        assert!(told(&service).await.iter().all(|told| told == what), "{:?}", told(&service).await);
    }
    assert_eq!(order.status().await, "pending_payment");

    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    order.becomes("paid").await;
    assert_eq!(service.gateway().charges_for(payment).len(), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_not_believed() {
    is_not_believed(Spoil::Garbage, None).await;
}

#[tokio::test]
async fn an_answer_that_is_huge_is_not_read() {
    is_not_believed(Spoil::Huge, None).await;
}

#[tokio::test]
async fn an_answer_with_another_amount_is_not_believed() {
    is_not_believed(Spoil::Amount, Some("amount")).await;
}

#[tokio::test]
async fn an_answer_in_another_currency_is_not_believed() {
    is_not_believed(Spoil::Currency, Some("currency")).await;
}

#[tokio::test]
async fn an_answer_about_another_payment_is_not_believed() {
    is_not_believed(Spoil::Reference, Some("reference")).await;
}

#[tokio::test]
async fn a_gateway_whose_answers_make_no_sense_is_left_alone() {
    for spoil in [Spoil::Garbage, Spoil::Huge, Spoil::Amount, Spoil::Reference] {
        // Recovery asks what the books say of each payment, and they may say what is wrong for ever.
        let service = builder().setting("PAYMENT_RECOVERY_INTERVAL_SECONDS", "60").start().await;
        let customer = service.customer().await;
        service.gateway().faults().set(spoiled(spoil));
        let refused = eventually("the breaker opens", async || {
            let answer = customer.places_an_order().await.pay("pm_card_ok").await;
            (answer.status == 503).then_some(answer)
        })
        .await;
        assert!(refused.header("retry-after").is_some(), "{spoil:?}: {refused}");
        assert_eq!(
            service.metric("circuit_breaker_state{service=\"payment_gateway\"}").await,
            2,
            "{spoil:?}"
        );
    }
}

#[tokio::test]
async fn declines_are_answers_and_not_an_outage() {
    let service = service().await;
    let customer = service.customer().await;
    for _ in 0..15 {
        let declined = customer.places_an_order().await.pay("pm_card_declined").await.is(201);
        assert_eq!(declined.text("status"), "declined");
    }
    assert_eq!(service.metric("circuit_breaker_state{service=\"payment_gateway\"}").await, 0);
}

#[tokio::test]
async fn a_conflict_at_the_gateway_is_unknown_and_calls_a_person() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    let conflict =
        Faults { error_rate: 1.0, error_status: 409, webhooks: Webhooks::Never, ..Faults::default() };
    service.gateway().faults().set(conflict);
    let payment = order.pay("pm_card_ok").await.is(202);
    assert_eq!(payment.text("status"), "processing", "a 409 never ends a payment, be it the first answer");
    assert_eq!(told(&service).await, ["idempotency conflict"]);
    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    order.becomes("paid").await;
    assert_eq!(charges(&service, payment.id()), 1);
    service.invariants_hold().await;
}

#[tokio::test]
async fn a_refusal_within_the_request_proves_nothing_about_the_attempt_before_it() {
    let service = service().await;
    let order = service.customer().await.places_an_order().await;
    // The first answer is an error that comes late; the second is a refusal.
    let failing = Faults { error_rate: 1.0, latency_ms: 400, webhooks: Webhooks::Never, ..Faults::default() };
    service.gateway().faults().set(failing);
    let attempt = order.pay("pm_card_from_another_gateway").in_background();
    let sent = || service.gateway().requests().iter().filter(|request| request.method == "POST").count();
    eventually("it is sent", async || (sent() == 1).then_some(())).await;
    service.gateway().faults().set(Faults { webhooks: Webhooks::Never, ..Faults::default() });
    let answer = attempt.answer().await.is(202);
    assert!(sent() >= 2, "it was sent again within the request");
    assert_eq!(answer.text("status"), "processing");
    service.invariants_hold().await;
}
