//! Payments and refunds: money is taken once, given back once, and never lost track of.
//!
//! The rules, each of which closes a hole through which others have charged twice:
//! - A payment is stored as `processing`, with the exact request, **before** the gateway is called. It leaves that
//!   state only by something certain; a timeout is not certain.
//! - Its id is the idempotency key at the gateway: asking again never charges again.
//! - No transaction and no row lock is open while the gateway is being called.
//! - Everything that learns of an outcome (the caller's request, recovery, a webhook) goes through one function,
//!   [`settlement`], whose guarded update lets one of them win; the others read again.
//! - Locks are taken in one order: the order's row, the payment's, the refund's.
mod discrepancies;
mod gateway;
mod metrics;
mod model;
mod paying;
mod recovery;
mod refunding;
mod routes;
mod settlement;
mod store;
mod webhook;

use std::sync::Arc;

use crate::{
    config,
    platform::{alerts::Alerts, database::Database, workers::Tracked},
};

pub use self::gateway::{Gateway, GatewayError, SERVICE as GATEWAY_SERVICE};
pub use self::metrics::initialise as initialise_metrics;
pub use self::recovery::recover;
pub use self::routes::routes;

/// What payments work with. Cheap to clone.
#[derive(Clone)]
pub struct Payments(Arc<Inner>);

struct Inner {
    database: Database,
    gateway: Gateway,
    alerts: Alerts,
    /// Where work that moves money is finished although its caller has left.
    tracked: Tracked,
    webhook: standardwebhooks::Webhook,
    /// How long one attempt to learn an outcome has the payment to itself.
    lease: std::time::Duration,
    recovery_interval: std::time::Duration,
    park_after: std::time::Duration,
}

impl Payments {
    /// Payments in `database`, through `gateway`.
    ///
    /// # Errors
    /// When the webhook secret is not base64; the settings have checked that.
    pub fn new(
        database: Database,
        gateway: Gateway,
        alerts: Alerts,
        tracked: Tracked,
        settings: &config::Payments,
    ) -> Result<Self, standardwebhooks::WebhookError> {
        use secrecy::ExposeSecret;
        let webhook = standardwebhooks::Webhook::new(settings.webhook_secret.expose_secret())?;
        Ok(Self(Arc::new(Inner {
            database,
            gateway,
            alerts,
            tracked,
            webhook,
            lease: settings.lease(),
            recovery_interval: settings.recovery_interval,
            park_after: settings.park_after,
        })))
    }
}
