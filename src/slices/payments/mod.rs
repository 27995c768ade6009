//! Payments and refunds. A payment is charged at most once, and a refund is paid out at most once.
//!
//! Five rules prevent double charges, long locks and deadlocks:
//!
//! - A payment is stored as `processing`, with the exact request, **before** the gateway is called. Only a certain
//!   outcome changes that status, and a timeout is not a final outcome.
//! - The payment's idempotency key at the gateway is derived from data that the client repeats in each retry
//!   ([`gateway_key`]). A retry therefore never charges again, even if the database has lost the payment.
//! - No transaction is open and no row lock is held during a call to the gateway.
//! - The client's request, recovery, reconciliation, webhooks and operators all settle a payment (store its outcome)
//!   through one module, [`settlement`]. The settling statement requires that the payment is still `processing`, so
//!   only one of them settles the payment, and the others read the result.
//! - All transactions lock the rows in the same sequence (order, payment, refund), so that no deadlock is possible.
pub mod commands;
mod discrepancies;
mod errors;
mod gateway;
mod gateway_key;
mod metrics;
mod model;
mod operator;
mod paying;
mod problems;
mod reconciliation;
mod recovery;
mod refunding;
mod responses;
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
    workers::{BackgroundTasks, Workers},
};
use serde_json::json;

use self::discrepancies::{close_discrepancy, open_discrepancies};
use self::gateway::{Gateway, GatewayError};
use self::operator::{EndResult, end_without_money};
pub use self::problems::KINDS as PROBLEM_KINDS;
use self::reconciliation::{Finding, FindingState};
pub use self::routes::routes;
pub use self::settings::Settings;

/// Creates the metric series of payments, of the gateway's client and of reconciliation.
pub fn initialize_metrics() {
    gateway::initialize_metrics();
    metrics::initialize();
    reconciliation::initialize_metrics();
}

/// State of payments. Cheap to clone.
#[derive(Clone)]
pub struct Payments(Arc<Inner>);

struct Inner {
    database: Database,
    gateway: Gateway,
    alerts: Alerts,
    /// Runs the tasks that continue after the caller has disconnected: charges, refunds, and the delivery of alerts.
    background_tasks: BackgroundTasks,
    /// One verifier for each webhook secret. There are several secrets during a rotation.
    webhooks: Vec<standardwebhooks::Webhook>,
    /// Time for which one replica exclusively processes a payment or refund.
    lease: std::time::Duration,
    recovery_interval: std::time::Duration,
    reconciliation_interval: std::time::Duration,
    /// Maximum time after the creation of a payment or refund during which the client's request may still call the
    /// gateway.
    max_send_time: std::time::Duration,
    park_after: std::time::Duration,
}

/// Error of [`Payments::start`].
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The gateway's client could not be created.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// A webhook secret could not be decoded. The validation of the settings rejects such a secret earlier.
    #[error("GATEWAY_WEBHOOK_SECRET is invalid: {0}")]
    WebhookSecret(#[from] standardwebhooks::WebhookError),
}

impl Payments {
    /// Creates the state of payments. At most `max_waiting` requests wait for the gateway at the same time, so that a
    /// slow gateway cannot starve the other routes.
    ///
    /// # Errors
    /// If the gateway's client cannot be created, or a webhook secret cannot be decoded.
    pub fn start(
        settings: &Settings,
        database: &Database,
        alerts: &Alerts,
        background_tasks: &BackgroundTasks,
        max_waiting: usize,
    ) -> Result<Self, StartError> {
        Ok(Self(Arc::new(Inner {
            database: database.clone(),
            gateway: Gateway::new(settings, alerts, max_waiting)?,
            alerts: alerts.clone(),
            background_tasks: background_tasks.clone(),
            webhooks: settings.webhooks()?,
            lease: settings.lease(database.statement_timeout()),
            recovery_interval: settings.recovery_interval,
            reconciliation_interval: settings.reconciliation_interval,
            max_send_time: settings.max_send_time(database.statement_timeout()),
            park_after: settings.park_after,
        })))
    }

    /// Starts the recovery of unknown outcomes, and the reconciliation with the gateway.
    pub fn start_workers(&self, workers: &Workers) {
        let payments = self.clone();
        workers
            .spawn("payment_recovery", self.0.recovery_interval, move || recovery::recover(payments.clone()));
        reconciliation::start_workers(self, workers);
    }

    /// Adds the gateway to the checks as an optional dependency, and the breaker's state to `/health`.
    pub fn add_checks(&self, health: health::Builder) -> health::Builder {
        let (gateway, breaker) = (self.0.gateway.clone(), self.0.gateway.breaker().clone());
        health
            .optional("external_api", move || {
                let gateway = gateway.clone();
                async move {
                    let response = gateway.ping().await;
                    response.map(|()| None).map_err(|_| CheckError("the payment gateway is unreachable"))
                }
            })
            .section("breakers", move || json!({ breaker.name(): breaker.state() }))
    }
}
