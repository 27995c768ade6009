//! The incidents of docs/runbooks/README-payments.md, and an outage of the database. In each incident several alerts
//! fire, and Alertmanager sends only one of them.
use crate::stack::alerting::{SERVICE_LABELS, sent_while_firing};

#[tokio::test]
async fn an_outage_of_the_gateway_sends_one_alert() {
    let job = &[("job", "service")][..];
    let gateway = &[("job", "service"), ("service", "payment_gateway")][..];
    let sent = sent_while_firing(&[
        ("PaymentFailureRatioHigh", job),
        ("CircuitBreakerOpen", gateway),
        ("CircuitBreakerOpen", SERVICE_LABELS),
        ("CircuitBreakerFlapping", gateway),
        ("PaymentsStuck", job),
        ("PaymentSettlementBudgetBurn", job),
        ("OrdersCreationStalled", job),
        ("HighErrorRate", job),
        ("SlowResponses", job),
        ("ServiceAvailabilityBudgetBurn", job),
        ("ServiceLatencyBudgetBurn", job),
    ])
    .await;
    let Some(sent) = sent else { return };
    assert_eq!(sent, ["PaymentFailureRatioHigh"]);
}

#[tokio::test]
async fn a_discrepancy_sends_one_alert() {
    let own = [SERVICE_LABELS[0], SERVICE_LABELS[1], SERVICE_LABELS[2], ("record", "1")];
    let other = [SERVICE_LABELS[0], SERVICE_LABELS[1], SERVICE_LABELS[2], ("record", "2")];
    let open = [
        ("PaymentDiscrepancyOpen", &[("job", "service")][..]),
        ("PaymentDiscrepancyOpen", &own),
        ("PaymentDiscrepancyOpen", &other),
    ];
    let Some(sent) = sent_while_firing(&open).await else { return };
    assert_eq!(sent, ["PaymentDiscrepancyOpen"]);
}

#[tokio::test]
async fn an_outage_of_the_database_suppresses_the_alerts_of_payments() {
    let job = &[("job", "service")][..];
    let sent = sent_while_firing(&[
        ("DatabaseDown", job),
        ("PaymentFailureRatioHigh", job),
        ("PaymentsStuck", job),
        ("PaymentSettlementBudgetBurn", job),
        ("OrdersCreationStalled", job),
    ])
    .await;
    let Some(sent) = sent else { return };
    assert_eq!(sent, ["DatabaseDown"]);
}
