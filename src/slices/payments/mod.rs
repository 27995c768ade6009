//! Payments and refunds: money is taken once, given back once, and never lost track of.
//!
//! The rules, each of which prevents a double charge that others have made:
//! - A payment is stored as `processing`, with the exact request, **before** the gateway is called. It leaves that
//!   state only by something certain; a timeout is not certain.
//! - Its idempotency key at the gateway is derived from what the client repeats ([`gateway_key`]): a retry never
//!   charges again, even if the database has lost the payment.
//! - No transaction and no row lock is open while the gateway is being called.
//! - Everything that learns of an outcome (the caller's request, recovery, a webhook) goes through one function,
//!   [`settlement`], whose guarded update lets one of them win; the others read again.
//! - Locks are taken in one order: the order's row, the payment's, the refund's.
pub mod commands;
mod discrepancies;
mod gateway;
mod gateway_key;
mod metrics;
mod model;
mod operator;
mod paying;
mod problems;
mod recovery;
mod refunding;
mod routes;
mod settings;
mod settlement;
mod store;
mod webhook;

use std::sync::Arc;

use platform::{
    alerts::Alerts,
    database::Database,
    ops::health::{self, CheckError},
    workers::{Tracked, Workers},
};
use serde_json::json;

use self::discrepancies::{close_discrepancy, open_discrepancies};
use self::gateway::{Gateway, GatewayError};
use self::operator::{Ended, end_without_money};
pub use self::problems::KINDS as PROBLEM_KINDS;
pub use self::routes::routes;
pub use self::settings::Settings;

/// Creates the series of payments and of the gateway's client.
pub fn initialize_metrics() {
    gateway::initialize_metrics();
    metrics::initialize();
}

/// What payments work with. Cheap to clone.
#[derive(Clone)]
pub struct Payments(Arc<Inner>);

struct Inner {
    database: Database,
    gateway: Gateway,
    alerts: Alerts,
    /// Where work that moves money is finished although its caller has left.
    tracked: Tracked,
    /// One for each secret: there are several while the secret is rotated.
    webhooks: Vec<standardwebhooks::Webhook>,
    /// How long one replica has a payment or refund to itself.
    lease: std::time::Duration,
    recovery_interval: std::time::Duration,
    park_after: std::time::Duration,
}

/// The reason why payments cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The gateway's client cannot be built.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The webhook secret cannot be decoded; the settings have checked that it can.
    #[error("GATEWAY_WEBHOOK_SECRET cannot be used: {0}")]
    WebhookSecret(#[from] standardwebhooks::WebhookError),
}

impl Payments {
    /// Starts payments in `database`. At most `max_waiting` requests may wait for the gateway at once, so that a slow
    /// gateway cannot starve the other routes.
    ///
    /// # Errors
    /// An API key that cannot stand in a header, or a webhook secret that cannot be decoded.
    pub fn start(
        settings: &Settings,
        database: &Database,
        alerts: &Alerts,
        tracked: &Tracked,
        max_waiting: usize,
    ) -> Result<Self, StartError> {
        Ok(Self(Arc::new(Inner {
            database: database.clone(),
            gateway: Gateway::new(settings, alerts, max_waiting)?,
            alerts: alerts.clone(),
            tracked: tracked.clone(),
            webhooks: settings.webhooks()?,
            lease: settings.lease(database.statement_timeout()),
            recovery_interval: settings.recovery_interval,
            park_after: settings.park_after,
        })))
    }

    /// Starts the recovery of unknown outcomes.
    pub fn start_workers(&self, workers: &Workers) {
        let payments = self.clone();
        workers
            .spawn("payment_recovery", self.0.recovery_interval, move || recovery::recover(payments.clone()));
    }

    /// Adds the gateway to what readiness checks, and the breaker's state to `/health`.
    pub fn add_checks(&self, health: health::Builder) -> health::Builder {
        let (checked, breaker) = (self.0.gateway.clone(), self.0.gateway.breaker().clone());
        health
            .optional("external_api", move || {
                let gateway = checked.clone();
                async move {
                    let answered = gateway.is_well().await;
                    answered.map(|()| None).map_err(|_| CheckError("the payment gateway is unreachable"))
                }
            })
            .section("breakers", move || json!({ breaker.name(): breaker.state() }))
    }
}
