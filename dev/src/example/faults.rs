//! Faults of the payment gateway, set through the route `/faults` of its simulator.
use std::time::Duration;

use super::{external_services::Addresses, gateway::Faults};
use crate::http;

const GATEWAY_TIMEOUT: Duration = Duration::from_secs(5);

const OUTAGE: &str = "gateway-outage";
const SLOW: &str = "gateway-slow";
const LOST_RESPONSES: &str = "lost-responses";
const DECLINE_STORM: &str = "decline-storm";

/// The name of each fault, and its line in `--help`.
pub(crate) const FAULTS: &[(&str, &str)] = &[
    (
        OUTAGE,
        "The payment gateway responds with 503: the circuit breaker opens, new payments are rejected, payments in flight wait for recovery",
    ),
    (SLOW, "The payment gateway takes 1.5 seconds for each response"),
    (
        LOST_RESPONSES,
        "Half of the payment gateway's responses are lost after the charge: the outcome is unknown until recovery polls the gateway",
    ),
    (DECLINE_STORM, "Four of five payments are declined, which must not raise an outage alert"),
];

/// The reason why the gateway's faults could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to set the faults of the gateway: {0}")]
    Gateway(#[from] reqwest::Error),
    #[error("an address is not a valid URL: {0}")]
    Url(#[from] url::ParseError),
}

/// Replaces the gateway's faults with the faults of these names. Ignores the names of faults outside the gateway.
pub(crate) async fn set(external_services: &Addresses, names: &[&str]) -> Result<(), Error> {
    let url = external_services.gateway.join("/faults")?;
    let response = http::client(GATEWAY_TIMEOUT)?.put(url).json(&faults_named(names)).send().await?;
    response.error_for_status()?;
    Ok(())
}

fn faults_named(names: &[&str]) -> Faults {
    let mut faults = Faults::default();
    for name in names {
        match *name {
            OUTAGE => (faults.error_rate, faults.error_status) = (1.0, 503),
            SLOW => faults.latency_ms = 1500,
            LOST_RESPONSES => faults.cut_rate = 0.5,
            DECLINE_STORM => faults.decline_rate = 0.8,
            _ => {}
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_changes_the_gateway() {
        for (name, _) in FAULTS {
            assert_ne!(faults_named(&[name]), Faults::default(), "{name}");
        }
        assert_eq!(faults_named(&["slow-database"]), Faults::default());
    }
}
