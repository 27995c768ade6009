//! The circuit breaker of the payment gateway, and its alerts.
use std::time::Duration;

use platform::{
    alerts::{Alert, Alerts, Condition, Severity},
    resilience::breaker::{self, Breaker},
};

use super::SERVICE;

const BREAKER_OPEN: Condition = Condition::symptom("CircuitBreakerOpen", "payments");

/// Returns the breaker. The breaker opens if at least ten calls succeeded or failed in the last 30 seconds, and at
/// least half of them failed. A half-open breaker opens again after one failure.
pub(super) fn breaker(alerts: &Alerts) -> Breaker {
    let settings = breaker::Settings {
        window: Duration::from_secs(30),
        minimum_calls: 10,
        failure_ratio: 0.5,
        open_for: Duration::from_secs(5),
        probes: 3,
    };
    let alerts = alerts.clone();
    Breaker::new(SERVICE, settings).on_transition(move |state| {
        let (severity, what, description) = match state {
            breaker::State::Open => (
                Severity::Warning,
                "opened",
                "Calls of the payment gateway fail. The breaker rejects further calls.",
            ),
            breaker::State::Closed => {
                (Severity::Info, "closed", "Calls of the payment gateway succeed again.")
            }
            breaker::State::HalfOpen => return,
        };
        alerts.raise(Alert {
            condition: BREAKER_OPEN,
            severity,
            title: format!("Circuit breaker {what}: {SERVICE}"),
            description: description.to_owned(),
            metadata: [("service", SERVICE), ("action", "investigate")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        });
    })
}
