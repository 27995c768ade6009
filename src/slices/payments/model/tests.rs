use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::slices::payments::{
    gateway::{Charge, ChargeStatus, GatewayId, GatewayRefund, GatewayRefundStatus},
    gateway_key::GatewayKey,
};

fn charge(reference: GatewayKey, amount: i64, currency: &str, status: ChargeStatus) -> Charge {
    let id = GatewayId::try_from("ch_1".to_owned()).unwrap();
    Charge { id, reference, status, decline_code: None, amount, currency: currency.into() }
}

fn random_key() -> GatewayKey {
    GatewayKey(Uuid::now_v7())
}

#[test]
fn an_id_of_the_gateway_is_bounded_visible_ascii() {
    let parse = |text: &str| GatewayId::try_from(text.to_owned());
    assert!(parse("ch_1").is_ok() && parse(&"x".repeat(255)).is_ok());
    for rejected in ["", "ch_\u{0}", "ch 1", "ch_1\n", "ch_\u{e4}", &"x".repeat(256)] {
        assert!(parse(rejected).is_err(), "{rejected:?}");
    }
}

#[test]
fn a_mismatched_charge_settles_nothing() {
    let id = random_key();
    let check = |charge: &Charge| check_charge(id, 100, "EUR", charge);
    assert!(check(&charge(id, 100, "EUR", ChargeStatus::Succeeded)).is_ok());
    assert_eq!(check(&charge(random_key(), 100, "EUR", ChargeStatus::Succeeded)), Err(Mismatch("reference")));
    assert_eq!(check(&charge(id, 101, "EUR", ChargeStatus::Succeeded)), Err(Mismatch("amount")));
    assert_eq!(check(&charge(id, 100, "USD", ChargeStatus::Succeeded)), Err(Mismatch("currency")));
}

#[test]
fn a_mismatched_refund_settles_nothing() {
    let (key, charge_id) = (random_key(), GatewayId::try_from("ch_1".to_owned()).unwrap());
    let id = GatewayId::try_from("re_1".to_owned()).unwrap();
    let status = GatewayRefundStatus::Succeeded;
    let refund = GatewayRefund { id, reference: key, charge_id, status, amount: 100 };
    let check = |refund: &GatewayRefund| check_refund(key, 100, "ch_1", refund);
    assert!(check(&refund).is_ok_and(|settlement| settlement.succeeded));
    let failed = GatewayRefund { status: GatewayRefundStatus::Failed, ..refund.clone() };
    assert!(check(&failed).is_ok_and(|settlement| !settlement.succeeded));
    let other = GatewayId::try_from("ch_2".to_owned()).unwrap();
    for (refund, what) in [
        (GatewayRefund { reference: random_key(), ..refund.clone() }, "reference"),
        (GatewayRefund { amount: 101, ..refund.clone() }, "amount"),
        (GatewayRefund { charge_id: other, ..refund }, "charge"),
    ] {
        assert_eq!(check(&refund), Err(Mismatch(what)));
    }
}

#[test]
fn an_unknown_decline_code_is_a_decline() {
    let id = random_key();
    let mut declined = charge(id, 100, "EUR", ChargeStatus::Declined);
    declined.decline_code = Some("moon_phase".into());
    let settlement = check_charge(id, 100, "EUR", &declined).unwrap();
    assert_eq!(settlement.reason(), Some(FailureReason::DeclinedOther));
}

#[test]
fn a_decline_has_the_reason_of_its_code() {
    let id = random_key();
    for (code, reason) in [
        (Some("insufficient_funds"), FailureReason::InsufficientFunds),
        (Some("card_expired"), FailureReason::CardExpired),
        (Some("fraud_suspected"), FailureReason::FraudSuspected),
        (None, FailureReason::DeclinedOther),
    ] {
        let mut declined = charge(id, 100, "EUR", ChargeStatus::Declined);
        declined.decline_code = code.map(ToOwned::to_owned);
        let settlement = check_charge(id, 100, "EUR", &declined).unwrap();
        assert_eq!((settlement.reason(), settlement.charge_id()), (Some(reason), Some("ch_1")));
    }
}

#[test]
fn statuses_and_reasons_are_parsed_as_written() {
    for status in PaymentStatus::ALL {
        assert_eq!(PaymentStatus::parse(status.as_str()), Some(status));
        assert_eq!(json!(status), status.as_str());
    }
    for status in [RefundStatus::Processing, RefundStatus::Succeeded, RefundStatus::Failed] {
        assert_eq!(RefundStatus::parse(status.as_str()), Some(status));
        assert_eq!(json!(status), status.as_str());
    }
    for status in [ChargeStatus::Succeeded, ChargeStatus::Declined] {
        assert_eq!(serde_json::from_value::<ChargeStatus>(json!(status.as_str())).unwrap(), status);
    }
    for status in [GatewayRefundStatus::Succeeded, GatewayRefundStatus::Failed] {
        assert_eq!(serde_json::from_value::<GatewayRefundStatus>(json!(status.as_str())).unwrap(), status);
    }
    let reasons: BTreeSet<_> = FailureReason::ALL.map(FailureReason::as_str).into();
    assert_eq!(reasons.len(), FailureReason::ALL.len());
    assert!(PaymentStatus::parse("paid").is_none() && RefundStatus::parse("refunded").is_none());
}

#[test]
fn a_payment_without_a_charge_fails_only_after_its_key_expired() {
    let hours = |hours| NextStep::after(Duration::from_hours(hours));
    assert_eq!(hours(0), NextStep::Resend);
    assert_eq!(hours(22), NextStep::Resend);
    assert_eq!(hours(23), NextStep::Poll);
    assert_eq!(hours(24), NextStep::Poll);
    assert_eq!(hours(25), NextStep::NeverCharged);
    let document = include_str!("../../../../docs/payments.md");
    for time in ["less than 23 hours", "23 to 25 hours", "more than 25 hours"] {
        assert!(document.contains(&format!("| {time} | ")), "docs/payments.md has no row for {time}");
    }
}

proptest! {
    #[test]
    fn a_declined_payment_is_never_charged_later(
        path in prop::collection::vec(prop::sample::select(PaymentStatus::ALL.to_vec()), 1..10)
    ) {
        let mut status = PaymentStatus::Processing;
        let mut rejected = false;
        for next in path {
            if status.may_become(next) {
                rejected |= matches!(next, PaymentStatus::Declined | PaymentStatus::Failed);
                status = next;
            }
            prop_assert!(!(rejected && status.took_money()));
        }
    }

    #[test]
    fn only_processing_payments_can_be_settled(amount in 1..i64::MAX, declined: bool) {
        let id = random_key();
        let status = if declined { ChargeStatus::Declined } else { ChargeStatus::Succeeded };
        let settled = check_charge(id, amount, "EUR", &charge(id, amount, "EUR", status)).unwrap().status();
        prop_assert!(PaymentStatus::Processing.may_become(settled));
        prop_assert!(!settled.may_become(PaymentStatus::Succeeded));
        prop_assert!(!settled.may_become(PaymentStatus::Declined));
    }
}

/// Returns whether a value matches the schema in the `OpenAPI` document.
fn matches_schema<T: ToSchema>(value: &Value) -> bool {
    jsonschema::is_valid(&serde_json::to_value(T::schema()).unwrap(), value)
}

fn accepts<T: DeserializeOwned + Validate>(value: &Value) -> bool {
    serde_json::from_value::<T>(value.clone()).is_ok_and(|value| value.validate().is_empty())
}

proptest! {
    #[test]
    fn schemas_of_requests_accept_exactly_the_valid_bodies(
        payment_method in prop_oneof!["[ -~\u{7f}]{0,3}", "[!-~]{254,257}", Just("\u{e4}".to_owned()), Just("pm\n".to_owned())],
        amount in prop_oneof![-1..3_i128, i128::from(i64::MAX) - 1..i128::from(i64::MAX) + 3],
        reason in prop_oneof!["[\u{0}-\u{3}a]{0,3}", "[a\u{1f511}]{499,502}"],
    ) {
        let payment = json!({ "payment_method": payment_method });
        prop_assert_eq!(matches_schema::<NewPayment>(&payment), accepts::<NewPayment>(&payment), "{}", payment);
        let amount: Value = serde_json::from_str(&format!("{{\"amount\":{amount}}}")).unwrap();
        for refund in [amount, json!({ "reason": reason })] {
            prop_assert_eq!(matches_schema::<NewRefund>(&refund), accepts::<NewRefund>(&refund), "{}", refund);
        }
    }
}
