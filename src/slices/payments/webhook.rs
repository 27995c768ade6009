//! Webhooks of the payment gateway (Standard Webhooks): signed, perhaps repeated, perhaps late, perhaps never.
//!
//! The signature is verified over the raw bytes before anything in them is believed. The event's id is claimed, and
//! its effect made, in one transaction; the gateway is told that it was received only after the commit. A webhook
//! is a hint that arrives early: everything works without any.
use axum::http::HeaderMap;
use platform::{
    audit::Recorded,
    http::{idempotency, problem::Problem},
    resilience::crash,
    telemetry::traces,
};
use serde::Deserialize;
use serde_json::Value;
use sqlx::PgConnection;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP};
use tracing::Span;
use uuid::Uuid;

use super::{
    Payments,
    discrepancies::{self, Discrepancy},
    gateway::{Charge, GatewayRefund},
    model::{Mismatch, Payment, Refund, judge_charge, judge_refund},
    problems::BAD_SIGNATURE,
    settlement::{self, Settled},
    store,
};

/// In place of a caller's id in the scope of an idempotency key.
const SCOPE: &str = "gateway";

/// What the gateway tells. Fields and types that are not known here are a newer gateway's, and ignored.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    data: Value,
}

/// What an event did, to be mirrored after the commit.
enum Effect {
    Nothing,
    Payment(Settled<Payment>),
    Refund(Settled<Refund>),
    Discrepancy { resource: &'static str, id: Uuid, what: &'static str, recorded: Recorded },
}

impl Payments {
    /// Receives an event. Duplicates and unknown references are received, too: sending them again would not help.
    pub(super) async fn receive(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Problem> {
        let event_id = self.verify(headers, body)?;
        let event: Event =
            serde_json::from_slice(body).map_err(|_| Problem::malformed("The event cannot be read."))?;
        let mut transaction = self.0.database.begin().await?;
        if !idempotency::claim_event(&mut transaction, SCOPE, event_id, body).await? {
            transaction.rollback().await?;
            tracing::info!(event_id, kind = event.kind, "the event was received before");
            return Ok(());
        }
        crash::point("webhook.claimed");
        let effect = self.apply(&mut transaction, &event).await?;
        crash::point("webhook.applied");
        transaction.commit().await?;
        crash::point("webhook.received");
        match effect {
            Effect::Nothing => {}
            Effect::Payment(settled) => drop(settled.committed(self)),
            Effect::Refund(settled) => drop(settled.committed(self)),
            Effect::Discrepancy { resource, id, what, recorded } => {
                recorded.committed();
                self.alert_discrepancy(resource, id, what);
            }
        }
        Ok(())
    }

    /// The event's id, if the signature fits: in constant time, within five minutes, by any of several signatures.
    fn verify<'a>(&self, headers: &'a HeaderMap, body: &[u8]) -> Result<&'a str, Problem> {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let id = header(HEADER_WEBHOOK_ID)
            .filter(|id| (1..=255).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));
        // The library subtracts without looking; no time has more than eleven digits before the year 5138.
        let sane_time = header(HEADER_WEBHOOK_TIMESTAMP).is_some_and(|time| time.len() <= 11);
        match id {
            Some(id) if sane_time && self.0.webhook.verify(body, headers).is_ok() => Ok(id),
            _ => Err(Problem::new(BAD_SIGNATURE)),
        }
    }

    async fn apply(&self, connection: &mut PgConnection, event: &Event) -> Result<Effect, Problem> {
        match event.kind.as_str() {
            "charge.succeeded" | "charge.declined" => match Charge::deserialize(&event.data) {
                Ok(charge) => apply_charge(connection, &charge).await,
                Err(_) => Err(Problem::malformed("The charge cannot be read.")),
            },
            "refund.succeeded" | "refund.failed" => match GatewayRefund::deserialize(&event.data) {
                Ok(refund) => apply_refund(connection, &refund).await,
                Err(_) => Err(Problem::malformed("The refund cannot be read.")),
            },
            other => {
                tracing::info!(kind = other, "an event of a type that is not known here");
                Ok(Effect::Nothing)
            }
        }
    }
}

async fn apply_charge(connection: &mut PgConnection, charge: &Charge) -> Result<Effect, Problem> {
    let Some(found) = store::find(&mut *connection, charge.reference, None).await? else {
        let found = Discrepancy {
            resource: "payments",
            id: charge.reference,
            what: "unknown reference",
            gateway_says: &charge.id,
            we_say: "unknown",
        };
        return discrepancy(connection, found).await;
    };
    traces::link(&Span::current(), found.trace_parent.as_deref());
    let payment = found.payment;
    match judge_charge(payment.id, payment.amount, &payment.currency, charge) {
        Ok(settlement) => Ok(Effect::Payment(
            settlement::settle(connection, payment.id, payment.order_id, &settlement).await?,
        )),
        Err(Mismatch(what)) => {
            let found = Discrepancy {
                resource: "payments",
                id: payment.id,
                what,
                gateway_says: &format!("{charge:?}"),
                we_say: payment.status.as_str(),
            };
            discrepancy(connection, found).await
        }
    }
}

async fn apply_refund(connection: &mut PgConnection, refund: &GatewayRefund) -> Result<Effect, Problem> {
    let Some((known, open)) = store::find_refund(&mut *connection, refund.reference).await? else {
        let found = Discrepancy {
            resource: "refunds",
            id: refund.reference,
            what: "unknown reference",
            gateway_says: &refund.id,
            we_say: "unknown",
        };
        return discrepancy(connection, found).await;
    };
    traces::link(&Span::current(), open.trace_parent.as_deref());
    match judge_refund(open.id, open.amount, &open.charge_id, refund) {
        Ok(settlement) => {
            Ok(Effect::Refund(settlement::settle_refund(connection, &open, &settlement).await?))
        }
        Err(Mismatch(what)) => {
            let found = Discrepancy {
                resource: "refunds",
                id: open.id,
                what,
                gateway_says: &format!("{refund:?}"),
                we_say: known.status.as_str(),
            };
            discrepancy(connection, found).await
        }
    }
}

async fn discrepancy(connection: &mut PgConnection, found: Discrepancy<'_>) -> Result<Effect, Problem> {
    let recorded = discrepancies::record(connection, &found).await?;
    let Discrepancy { resource, id, what, .. } = found;
    Ok(recorded.map_or(Effect::Nothing, |recorded| Effect::Discrepancy { resource, id, what, recorded }))
}
