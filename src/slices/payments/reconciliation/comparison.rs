//! The comparison of the gateway's objects with the stored records. No I/O.
use crate::slices::payments::{
    discrepancies::{SECOND_CHARGE, SECOND_REFUND, UNKNOWN_REFERENCE},
    gateway::{Charge, ChargeStatus, GatewayRefund},
    model::{Mismatch, PaymentStatus, RefundStatus, check_charge, check_refund},
    store::reconciliation::{ComparedPayment, ComparedRefund},
};

/// Discrepancy of a payment that was charged according to its status, and whose charge the gateway does not have.
pub(super) const PAYMENT_WITHOUT_CHARGE: &str = "payment without charge";

/// Discrepancy of a refund that succeeded according to its status, and which the gateway does not have.
pub(super) const REFUND_WITHOUT_GATEWAY_REFUND: &str = "refund without gateway refund";

/// Discrepancy of a payment with an unknown outcome and more than one charge.
pub(super) const SEVERAL_CHARGES: &str = "several charges";

/// Discrepancy of a refund with an unknown outcome and more than one refund of the gateway.
pub(super) const SEVERAL_REFUNDS: &str = "several refunds";

/// Discrepancy of a charge that could not be parsed.
pub(super) const UNREADABLE_CHARGE: &str = "unreadable charge";

/// Discrepancy of a refund of the gateway that could not be parsed.
pub(super) const UNREADABLE_REFUND: &str = "unreadable refund";

/// Discrepancy of a payment or refund whose final status differs from that of the gateway's object.
const CONTRADICTION: &str = "contradiction";

/// The kind of a finding, as the label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// A charge or refund of the gateway without a stored payment or refund.
    Orphan,
    /// A payment or refund that moved money, without a charge or refund of the gateway.
    Missing,
    /// A different amount or currency, or a refund of a different charge.
    Mismatch,
    /// A second charge or refund with the same reference.
    Duplicate,
    /// Different final statuses of the gateway's object and of the stored record.
    Contradiction,
    /// An object of the gateway that could not be parsed.
    Unreadable,
}

impl FindingKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Orphan, Self::Missing, Self::Mismatch, Self::Duplicate, Self::Contradiction, Self::Unreadable];

    /// Returns the name as written in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "orphan",
            Self::Missing => "missing",
            Self::Mismatch => "mismatch",
            Self::Duplicate => "duplicate",
            Self::Contradiction => "contradiction",
            Self::Unreadable => "unreadable",
        }
    }

    /// Returns the kind of the finding whose discrepancy has the text `what`.
    pub fn of(what: &str) -> Self {
        match what {
            UNKNOWN_REFERENCE => Self::Orphan,
            PAYMENT_WITHOUT_CHARGE | REFUND_WITHOUT_GATEWAY_REFUND => Self::Missing,
            SECOND_CHARGE | SECOND_REFUND | SEVERAL_CHARGES | SEVERAL_REFUNDS => Self::Duplicate,
            CONTRADICTION => Self::Contradiction,
            UNREADABLE_CHARGE | UNREADABLE_REFUND => Self::Unreadable,
            _ => Self::Mismatch,
        }
    }
}

/// The result of comparing an object of the gateway with the stored payment or refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The object and the record do not differ.
    Agrees,
    /// The stored payment or refund has no outcome yet.
    Unsettled,
    /// The object and the record differ. The text becomes the `what` of the discrepancy.
    Differs(&'static str),
}

/// Compares a charge with the payment of the same reference.
pub(super) fn compare_charge(charge: &Charge, payment: &ComparedPayment) -> Verdict {
    if let Err(Mismatch(what)) = check_charge(payment.gateway_key, payment.amount, &payment.currency, charge)
    {
        return Verdict::Differs(what);
    }
    let same_result = match charge.status {
        _ if payment.status == PaymentStatus::Processing => return Verdict::Unsettled,
        ChargeStatus::Succeeded => payment.status.took_money(),
        ChargeStatus::Declined => payment.status == PaymentStatus::Declined,
    };
    if !same_result {
        Verdict::Differs(CONTRADICTION)
    } else if payment.charge_id.as_deref() == Some(charge.id.as_str()) {
        Verdict::Agrees
    } else {
        Verdict::Differs(SECOND_CHARGE)
    }
}

/// Compares a refund of the gateway with the stored refund of the same reference.
pub(super) fn compare_refund(reported: &GatewayRefund, refund: &ComparedRefund) -> Verdict {
    let settlement = match check_refund(refund.gateway_key, refund.amount, &refund.charge_id, reported) {
        Ok(settlement) => settlement,
        Err(Mismatch(what)) => return Verdict::Differs(what),
    };
    let same_result = match refund.status {
        RefundStatus::Processing => return Verdict::Unsettled,
        RefundStatus::Succeeded => settlement.succeeded,
        RefundStatus::Failed => !settlement.succeeded,
    };
    match &refund.gateway_refund_id {
        _ if !same_result => Verdict::Differs(CONTRADICTION),
        Some(id) if id != reported.id.as_str() => Verdict::Differs(SECOND_REFUND),
        // A refund that an operator ended has no id of the gateway.
        _ => Verdict::Agrees,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::slices::payments::{
        gateway::{GatewayId, GatewayRefundStatus},
        gateway_key::GatewayKey,
    };

    fn id(text: &str) -> GatewayId {
        GatewayId::try_from(text.to_owned()).unwrap()
    }

    fn charge(status: ChargeStatus) -> Charge {
        Charge {
            id: id("ch_1"),
            reference: GatewayKey(Uuid::from_u128(1)),
            status,
            decline_code: None,
            amount: 100,
            currency: "EUR".to_owned(),
        }
    }

    fn payment(status: PaymentStatus) -> ComparedPayment {
        ComparedPayment {
            id: Uuid::from_u128(11),
            order_id: Uuid::from_u128(12),
            gateway_key: GatewayKey(Uuid::from_u128(1)),
            status,
            amount: 100,
            currency: "EUR".to_owned(),
            charge_id: Some("ch_1".to_owned()),
            correlation_id: "c".to_owned(),
            age: Duration::ZERO,
        }
    }

    #[test]
    fn a_charge_agrees_with_a_payment_of_the_same_result() {
        use PaymentStatus::{Declined, Failed, PartiallyRefunded, Processing, Refunded, Succeeded};
        for (status, succeeded, declined) in [
            (Processing, Verdict::Unsettled, Verdict::Unsettled),
            (Succeeded, Verdict::Agrees, Verdict::Differs(CONTRADICTION)),
            (PartiallyRefunded, Verdict::Agrees, Verdict::Differs(CONTRADICTION)),
            (Refunded, Verdict::Agrees, Verdict::Differs(CONTRADICTION)),
            (Declined, Verdict::Differs(CONTRADICTION), Verdict::Agrees),
            (Failed, Verdict::Differs(CONTRADICTION), Verdict::Differs(CONTRADICTION)),
        ] {
            assert_eq!(
                compare_charge(&charge(ChargeStatus::Succeeded), &payment(status)),
                succeeded,
                "{status:?}"
            );
            assert_eq!(
                compare_charge(&charge(ChargeStatus::Declined), &payment(status)),
                declined,
                "{status:?}"
            );
        }
    }

    #[test]
    fn a_different_amount_currency_or_charge_differs() {
        let payment = payment(PaymentStatus::Succeeded);
        let verdict = |charge: Charge| compare_charge(&charge, &payment);
        let charge = || charge(ChargeStatus::Succeeded);
        assert_eq!(verdict(Charge { amount: 101, ..charge() }), Verdict::Differs("amount"));
        assert_eq!(verdict(Charge { currency: "USD".to_owned(), ..charge() }), Verdict::Differs("currency"));
        assert_eq!(verdict(Charge { id: id("ch_2"), ..charge() }), Verdict::Differs(SECOND_CHARGE));
    }

    #[test]
    fn a_refund_agrees_with_a_gateway_refund_of_the_same_result() {
        use GatewayRefundStatus::{Failed, Succeeded};

        let reported = |status, name: &str, amount| GatewayRefund {
            id: id(name),
            reference: GatewayKey(Uuid::from_u128(2)),
            charge_id: id("ch_1"),
            status,
            amount,
        };
        let refund = |status, gateway_refund_id: Option<&str>| ComparedRefund {
            id: Uuid::from_u128(21),
            gateway_key: GatewayKey(Uuid::from_u128(2)),
            status,
            amount: 100,
            charge_id: "ch_1".to_owned(),
            gateway_refund_id: gateway_refund_id.map(ToOwned::to_owned),
            correlation_id: "c".to_owned(),
            age: Duration::ZERO,
        };
        for (stored, status, name, amount, verdict) in [
            (refund(RefundStatus::Succeeded, Some("re_1")), Succeeded, "re_1", 100, Verdict::Agrees),
            (refund(RefundStatus::Failed, Some("re_1")), Failed, "re_1", 100, Verdict::Agrees),
            (refund(RefundStatus::Failed, None), Failed, "re_1", 100, Verdict::Agrees),
            (refund(RefundStatus::Processing, None), Succeeded, "re_1", 100, Verdict::Unsettled),
            (refund(RefundStatus::Failed, None), Succeeded, "re_1", 100, Verdict::Differs(CONTRADICTION)),
            (
                refund(RefundStatus::Succeeded, Some("re_1")),
                Failed,
                "re_1",
                100,
                Verdict::Differs(CONTRADICTION),
            ),
            (
                refund(RefundStatus::Succeeded, Some("re_1")),
                Succeeded,
                "re_2",
                100,
                Verdict::Differs(SECOND_REFUND),
            ),
            (
                refund(RefundStatus::Succeeded, Some("re_1")),
                Succeeded,
                "re_1",
                99,
                Verdict::Differs("amount"),
            ),
        ] {
            assert_eq!(
                compare_refund(&reported(status, name, amount), &stored),
                verdict,
                "{stored:?} {status:?}"
            );
        }
    }

    #[test]
    fn each_discrepancy_has_a_kind() {
        for (what, kind) in [
            (UNKNOWN_REFERENCE, FindingKind::Orphan),
            (PAYMENT_WITHOUT_CHARGE, FindingKind::Missing),
            ("amount", FindingKind::Mismatch),
            ("currency", FindingKind::Mismatch),
            ("charge", FindingKind::Mismatch),
            (SECOND_REFUND, FindingKind::Duplicate),
            (CONTRADICTION, FindingKind::Contradiction),
            (UNREADABLE_CHARGE, FindingKind::Unreadable),
        ] {
            assert_eq!(FindingKind::of(what), kind, "{what}");
        }
        let names: std::collections::BTreeSet<_> = FindingKind::ALL.map(FindingKind::as_str).into();
        assert_eq!(names.len(), FindingKind::ALL.len());
    }
}
