//! Invariants between the service's tables and the gateway's ledger. Every charge has its payment, and every payment
//! that succeeded or was declined has its charge. Every refund of the gateway has its stored refund, and every stored
//! refund that succeeded has its refund at the gateway. The amounts and currencies agree, and so do the outcomes of
//! settled payments and refunds. A settled payment stores the id of its successful charge, and a refund belongs to the
//! charge of its payment. No payment has two successful charges, and no stored refund has two successful refunds at the
//! gateway.
use std::collections::HashMap;

use uuid::Uuid;

use super::{
    Violation,
    tables::{Page, Payment, Refund},
};
use crate::example::gateway::{self, Charge, ChargeStatus, Ledger, RefundStatus};

/// A difference between the tables and the ledger.
pub(super) enum Difference {
    Violation(Violation),
    /// A charge or refund of the gateway without a row in the database, with its reference.
    Orphan(Uuid, Violation),
}

/// Compares the ledger with the tables. `before` was read before the ledger, `after` was read after the ledger.
pub(super) fn compare(before: &Page, ledger: &Ledger, after: &Page) -> Vec<Difference> {
    let mut orphans = Vec::new();
    let mut add_orphan = |reference, rule, detail| {
        orphans.push(Difference::Orphan(reference, Violation { rule, detail }));
    };
    let mut violations = Vec::new();
    let mut add_violation = |rule, detail| violations.push(Difference::Violation(Violation { rule, detail }));

    let payments = group_by(&after.payments, |payment| payment.gateway_key);
    for (reference, charges) in group_by(&ledger.charges, |charge| charge.reference) {
        let successful_charges =
            charges.iter().filter(|charge| charge.status == ChargeStatus::Succeeded).count();
        if successful_charges > 1 {
            add_violation(
                "a payment is charged once",
                format!("the payment with the reference {reference} was charged {successful_charges} times"),
            );
        }
        let payment = payments.get(&reference).and_then(|payments| payments.first());
        for charge in charges {
            match payment {
                None => add_orphan(
                    reference,
                    "a charge has a payment",
                    format!("charge {} with the reference {reference} has none", charge.id),
                ),
                Some(payment) => check_charge(charge, payment, &mut add_violation),
            }
        }
    }

    let charges = group_by(&ledger.charges, |charge| charge.reference);
    for payment in &before.payments {
        let status = match payment.status.as_str() {
            "declined" => ChargeStatus::Declined,
            _ if payment.has_taken_money() => ChargeStatus::Succeeded,
            _ => continue,
        };
        let is_charged = charges
            .get(&payment.gateway_key)
            .is_some_and(|made| made.iter().any(|charge| charge.status == status));
        if !is_charged {
            add_violation(
                "a settled payment has its charge",
                format!("payment {} is {}, and the gateway has no such charge", payment.id, payment.status),
            );
        }
    }

    let refunds = group_by(&after.refunds, |refund| refund.gateway_key);
    for (reference, made) in group_by(&ledger.refunds, |refund| refund.reference) {
        let successful_refunds =
            made.iter().filter(|refund| refund.status == RefundStatus::Succeeded).count();
        if successful_refunds > 1 {
            add_violation(
                "a refund is made once",
                format!("the refund with the reference {reference} was made {successful_refunds} times"),
            );
        }
        let refund = refunds.get(&reference).and_then(|refunds| refunds.first());
        for made in made {
            match refund {
                None => add_orphan(
                    reference,
                    "a refund at the gateway has a stored refund",
                    format!("refund {} with the reference {reference} has none", made.id),
                ),
                Some(refund) => check_refund(made, refund, &mut add_violation),
            }
        }
    }

    let made = group_by(&ledger.refunds, |refund| refund.reference);
    for refund in before.refunds.iter().filter(|refund| refund.status == "succeeded") {
        let is_refunded = made
            .get(&refund.gateway_key)
            .is_some_and(|made| made.iter().any(|refund| refund.status == RefundStatus::Succeeded));
        if !is_refunded {
            add_violation(
                "a refund that succeeded was made by the gateway",
                format!("refund {} has succeeded, and the gateway has no such refund", refund.id),
            );
        }
    }
    violations.extend(orphans);
    violations
}

/// Checks a charge against its payment. While the payment is in flight, any outcome at the gateway is consistent,
/// provided that the amount and the currency are correct.
fn check_charge(charge: &Charge, payment: &Payment, add_violation: &mut impl FnMut(&'static str, String)) {
    if (charge.amount, &charge.currency) != (payment.amount, &payment.currency) {
        add_violation(
            "a charge has the amount and currency of its payment",
            format!(
                "{} charged {} {}, and payment {} has {} {}",
                charge.id, charge.amount, charge.currency, payment.id, payment.amount, payment.currency
            ),
        );
    }
    if payment.is_in_flight() {
        return;
    }
    let (agrees, rule) = match charge.status {
        ChargeStatus::Succeeded => {
            (payment.has_taken_money(), "a successful charge has a successful payment")
        }
        ChargeStatus::Declined => (payment.status == "declined", "a declined charge has a declined payment"),
    };
    if !agrees {
        add_violation(
            rule,
            format!("{} is {:?}, and payment {} is {}", charge.id, charge.status, payment.id, payment.status),
        );
    } else if charge.status == ChargeStatus::Succeeded
        && payment.gateway_charge_id.as_ref() != Some(&charge.id)
    {
        add_violation(
            "a payment names its charge",
            format!(
                "payment {} names {:?}, its charge is {}",
                payment.id, payment.gateway_charge_id, charge.id
            ),
        );
    }
}

fn check_refund(
    made: &gateway::Refund,
    refund: &Refund,
    add_violation: &mut impl FnMut(&'static str, String),
) {
    if made.amount != refund.amount || refund.gateway_charge_id.as_ref() != Some(&made.charge_id) {
        add_violation(
            "a refund has the requested amount and charge",
            format!(
                "{} refunded {} of {}, and refund {} has {} of {:?}",
                made.id, made.amount, made.charge_id, refund.id, refund.amount, refund.gateway_charge_id
            ),
        );
    }
    let expected = match made.status {
        RefundStatus::Succeeded => "succeeded",
        RefundStatus::Failed => "failed",
    };
    if !refund.is_in_flight() && refund.status != expected {
        add_violation(
            "a refund has the gateway's outcome",
            format!("{} has the outcome {expected}, and refund {} is {}", made.id, refund.id, refund.status),
        );
    }
}

fn group_by<T>(items: &[T], key: impl Fn(&T) -> Uuid) -> HashMap<Uuid, Vec<&T>> {
    let mut groups: HashMap<Uuid, Vec<&T>> = HashMap::new();
    for item in items {
        groups.entry(key(item)).or_default().push(item);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payment(status: &str) -> Payment {
        Payment {
            id: Uuid::from_u128(101),
            gateway_key: Uuid::from_u128(1),
            status: status.to_owned(),
            amount: 4200,
            currency: "EUR".to_owned(),
            gateway_charge_id: Some("ch_1".to_owned()),
        }
    }

    fn charge(status: ChargeStatus) -> Charge {
        Charge {
            id: "ch_1".to_owned(),
            reference: Uuid::from_u128(1),
            status,
            decline_code: None,
            amount: 4200,
            currency: "EUR".to_owned(),
        }
    }

    fn refund(status: &str) -> Refund {
        Refund {
            id: Uuid::from_u128(102),
            gateway_key: Uuid::from_u128(2),
            status: status.to_owned(),
            amount: 100,
            gateway_charge_id: Some("ch_1".to_owned()),
        }
    }

    fn made(status: RefundStatus) -> gateway::Refund {
        gateway::Refund {
            id: "re_1".to_owned(),
            reference: Uuid::from_u128(2),
            charge_id: "ch_1".to_owned(),
            status,
            amount: 100,
        }
    }

    fn rules_of(found: Vec<Difference>) -> Vec<&'static str> {
        let rule = |found| match found {
            Difference::Violation(violation) | Difference::Orphan(_, violation) => violation.rule,
        };
        found.into_iter().map(rule).collect()
    }

    fn rules_broken(payments: &[Payment], charges: &[Charge]) -> Vec<&'static str> {
        let tables = Page { payments: payments.to_vec(), ..Page::default() };
        let ledger = Ledger { charges: charges.to_vec(), refunds: vec![] };
        rules_of(compare(&tables, &ledger, &tables))
    }

    fn refund_rules_broken(refunds: &[Refund], made: &[gateway::Refund]) -> Vec<&'static str> {
        let tables = Page { refunds: refunds.to_vec(), ..Page::default() };
        let ledger = Ledger { charges: vec![], refunds: made.to_vec() };
        rules_of(compare(&tables, &ledger, &tables))
    }

    #[test]
    fn payments_and_charges_that_agree_break_no_rule() {
        for (status, charges) in [
            ("succeeded", vec![charge(ChargeStatus::Succeeded)]),
            ("partially_refunded", vec![charge(ChargeStatus::Succeeded)]),
            ("refunded", vec![charge(ChargeStatus::Succeeded)]),
            ("declined", vec![charge(ChargeStatus::Declined)]),
            ("failed", vec![]),
            ("processing", vec![]),
            ("processing", vec![charge(ChargeStatus::Succeeded)]),
            ("processing", vec![charge(ChargeStatus::Declined)]),
        ] {
            assert!(rules_broken(&[payment(status)], &charges).is_empty(), "{status} {charges:?}");
        }
    }

    #[test]
    fn a_charge_without_a_matching_payment_is_found() {
        assert_eq!(rules_broken(&[], &[charge(ChargeStatus::Succeeded)]), ["a charge has a payment"]);
        assert_eq!(
            rules_broken(&[payment("failed")], &[charge(ChargeStatus::Succeeded)]),
            ["a successful charge has a successful payment"]
        );
        assert_eq!(
            rules_broken(&[payment("failed")], &[charge(ChargeStatus::Declined)]),
            ["a declined charge has a declined payment"]
        );
    }

    #[test]
    fn a_payment_without_its_charge_is_found() {
        for status in ["succeeded", "partially_refunded", "refunded", "declined"] {
            assert_eq!(rules_broken(&[payment(status)], &[]), ["a settled payment has its charge"]);
        }
    }

    #[test]
    fn a_second_charge_is_found_even_while_the_payment_is_in_flight() {
        let second = Charge { id: "ch_2".to_owned(), ..charge(ChargeStatus::Succeeded) };
        let charges = [charge(ChargeStatus::Succeeded), second];
        assert_eq!(rules_broken(&[payment("processing")], &charges), ["a payment is charged once"]);
        assert_eq!(
            rules_broken(&[payment("succeeded")], &charges),
            ["a payment is charged once", "a payment names its charge"]
        );
    }

    #[test]
    fn another_amount_or_currency_is_found() {
        let rule = ["a charge has the amount and currency of its payment"];
        let more = Charge { amount: 4201, ..charge(ChargeStatus::Succeeded) };
        let other = Charge { currency: "USD".to_owned(), ..charge(ChargeStatus::Succeeded) };
        assert_eq!(rules_broken(&[payment("succeeded")], &[more]), rule);
        assert_eq!(rules_broken(&[payment("processing")], &[other]), rule);
    }

    #[test]
    fn a_settlement_during_the_check_is_no_violation() {
        let before = Page { payments: vec![payment("processing")], ..Page::default() };
        let after = Page { payments: vec![payment("succeeded")], ..Page::default() };
        assert!(compare(&before, &Ledger::default(), &after).is_empty(), "a later charge counts as missing");
        let ledger = Ledger { charges: vec![charge(ChargeStatus::Succeeded)], refunds: vec![] };
        assert!(compare(&Page::default(), &ledger, &after).is_empty(), "a later payment was overlooked");
    }

    #[test]
    fn refunds_that_agree_break_no_rule() {
        for (status, made) in [
            ("succeeded", vec![made(RefundStatus::Succeeded)]),
            ("failed", vec![made(RefundStatus::Failed)]),
            ("failed", vec![]),
            ("processing", vec![]),
            ("processing", vec![made(RefundStatus::Succeeded)]),
        ] {
            assert!(refund_rules_broken(&[refund(status)], &made).is_empty(), "{status} {made:?}");
        }
    }

    #[test]
    fn refunds_that_do_not_agree_are_found() {
        let succeeded = || made(RefundStatus::Succeeded);
        assert_eq!(refund_rules_broken(&[], &[succeeded()]), ["a refund at the gateway has a stored refund"]);
        assert_eq!(
            refund_rules_broken(&[refund("succeeded")], &[]),
            ["a refund that succeeded was made by the gateway"]
        );
        assert_eq!(
            refund_rules_broken(&[refund("failed")], &[succeeded()]),
            ["a refund has the gateway's outcome"]
        );
        assert_eq!(
            refund_rules_broken(&[refund("succeeded")], &[gateway::Refund { amount: 99, ..succeeded() }]),
            ["a refund has the requested amount and charge"]
        );
        let twice = gateway::Refund { id: "re_2".to_owned(), ..succeeded() };
        assert_eq!(
            refund_rules_broken(&[refund("succeeded")], &[succeeded(), twice]),
            ["a refund is made once"]
        );
    }
}
