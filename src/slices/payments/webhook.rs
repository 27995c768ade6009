//! Webhooks of the payment gateway (Standard Webhooks). Webhooks are signed, and can be duplicated, late or missing.
//!
//! The signature is verified over the raw bytes before any of the content is used. One transaction claims the event's
//! id and applies the event, and the response is 2xx only after the commit. Webhooks only make outcomes known earlier:
//! without webhooks, recovery finds the same outcomes by polling.
//!
//! A signed event with unusable data is recorded as a discrepancy and acknowledged, because the gateway would send the
//! same bytes again after an error response.
use axum::http::HeaderMap;
use platform::{audit::PendingEvent, http::idempotency, resilience::crash, telemetry::traces};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP};
use tracing::Span;

use super::{
    Payments,
    discrepancies::{self, Discrepancy, UNKNOWN_REFERENCE},
    errors::PaymentError,
    gateway::{Charge, GatewayRefund},
    gateway_key::GatewayKey,
    model::{Mismatch, Payment, Refund, check_charge, check_refund},
    settlement::{self, SettleResult},
    store::{
        By, payments,
        refunds::{self, RefundRecord},
    },
};

/// Scope of the events' idempotency keys, in place of a caller's id.
const SCOPE: &str = "gateway";

/// An event of the gateway. Fields and types that are unknown are ignored, because a newer gateway may send them.
///
/// `data` is parsed later, so that unusable data does not make the whole event malformed.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl Event<'_> {
    /// Parses the charge or refund in `data`.
    fn data<T: for<'de> Deserialize<'de>>(&self) -> Result<T, String> {
        let data = self.data.ok_or("the event has no data")?;
        serde_json::from_str(data.get()).map_err(|error| error.to_string())
    }

    /// Returns the reference in `data`, if at least the reference can be parsed.
    fn reference(&self) -> Option<GatewayKey> {
        #[derive(Deserialize)]
        struct ReferenceOnly {
            reference: GatewayKey,
        }
        self.data().ok().map(|ReferenceOnly { reference }| reference)
    }
}

/// The effect of an event. The effect is counted and logged after the commit.
enum Effect {
    Nothing,
    Payment(SettleResult<Payment>),
    Refund(SettleResult<Refund>),
    Discrepancy(PendingEvent),
}

impl Payments {
    /// Receives an event. Returns `Ok` also for duplicates, unknown event types, unknown references and unusable data.
    pub(super) async fn receive(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), PaymentError> {
        let event_id = self.verify(headers, body)?;
        let event: Event = serde_json::from_slice(body).map_err(|_| PaymentError::UnreadableEvent)?;
        let mut transaction = self.0.database.begin().await?;
        if !idempotency::claim_event(&mut transaction, SCOPE, event_id, body).await? {
            transaction.rollback().await?;
            tracing::info!(event_id, kind = event.kind, "ignored a duplicate event");
            return Ok(());
        }
        crash::point("webhook.claimed");
        let effect = apply(&mut transaction, event_id, &event).await?;
        crash::point("webhook.applied");
        transaction.commit().await?;
        crash::point("webhook.received");
        match effect {
            Effect::Nothing => {}
            Effect::Payment(settled) => drop(settled.committed(self)),
            Effect::Refund(settled) => drop(settled.committed(self)),
            Effect::Discrepancy(recorded) => {
                recorded.committed();
                self.alert_discrepancies();
            }
        }
        Ok(())
    }

    /// Returns the event's id if the id and the signature are valid. The signature must be made with one of the
    /// configured secrets, and its timestamp must be at most five minutes off. Signatures are compared in constant
    /// time. If the header has several signatures, one of them must match.
    fn verify<'a>(&self, headers: &'a HeaderMap, body: &[u8]) -> Result<&'a str, PaymentError> {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let id = header(HEADER_WEBHOOK_ID)
            .filter(|id| (1..=255).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));
        // `standardwebhooks` subtracts timestamps without an overflow check, so a long timestamp is rejected first. No
        // time before the year 5138 has more than eleven digits.
        let is_short_time = header(HEADER_WEBHOOK_TIMESTAMP).is_some_and(|time| time.len() <= 11);
        let has_valid_signature =
            || self.0.webhooks.iter().any(|webhook| webhook.verify(body, headers).is_ok());
        match id {
            Some(id) if is_short_time && has_valid_signature() => Ok(id),
            _ => Err(PaymentError::BadSignature),
        }
    }
}

async fn apply(
    connection: &mut PgConnection,
    event_id: &str,
    event: &Event<'_>,
) -> Result<Effect, PaymentError> {
    match event.kind.as_str() {
        "charge.succeeded" | "charge.declined" => match event.data::<Charge>() {
            Ok(charge) => apply_charge(connection, &charge).await,
            Err(why) => record_unusable(connection, "payments", event_id, event.reference(), &why).await,
        },
        "refund.succeeded" | "refund.failed" => match event.data::<GatewayRefund>() {
            Ok(refund) => apply_refund(connection, &refund).await,
            Err(why) => record_unusable(connection, "refunds", event_id, event.reference(), &why).await,
        },
        other => {
            tracing::info!(kind = other, "ignored an event of an unknown type");
            Ok(Effect::Nothing)
        }
    }
}

/// Records an event whose data does not match the event's type. The discrepancy has the id of the payment or refund
/// with the event's reference, or else the reference itself if it could be parsed.
async fn record_unusable(
    connection: &mut PgConnection,
    resource: &'static str,
    event_id: &str,
    reference: Option<GatewayKey>,
    why: &str,
) -> Result<Effect, PaymentError> {
    let id = match reference {
        Some(key) if resource == "payments" => {
            payments::find_within(&mut *connection, By::GatewayKey(key)).await?.map(|found| found.payment.id)
        }
        Some(key) => {
            refunds::find_within(&mut *connection, By::GatewayKey(key)).await?.map(|found| found.open.id)
        }
        None => None,
    };
    let id = id.or(reference.map(|key| key.0));
    let gateway_says = &format!("{event_id}: {why}");
    let discrepancy = Discrepancy { resource, id, what: "unusable event", gateway_says, we_say: "unknown" };
    record_discrepancy(connection, discrepancy).await
}

async fn apply_charge(connection: &mut PgConnection, charge: &Charge) -> Result<Effect, PaymentError> {
    let Some(found) = payments::find_within(&mut *connection, By::GatewayKey(charge.reference)).await? else {
        let discrepancy = Discrepancy {
            resource: "payments",
            id: Some(charge.reference.0),
            what: UNKNOWN_REFERENCE,
            gateway_says: charge.id.as_str(),
            we_say: "unknown",
        };
        return record_discrepancy(connection, discrepancy).await;
    };
    traces::link(&Span::current(), found.trace_parent.as_deref());
    let payment = found.payment;
    match check_charge(charge.reference, payment.amount, &payment.currency, charge) {
        Ok(settlement) => Ok(Effect::Payment(
            settlement::settle(connection, payment.id, payment.order_id, &settlement, None).await?,
        )),
        Err(Mismatch(what)) => {
            let discrepancy = Discrepancy {
                resource: "payments",
                id: Some(payment.id),
                what,
                gateway_says: &format!("{charge:?}"),
                we_say: payment.status.as_str(),
            };
            record_discrepancy(connection, discrepancy).await
        }
    }
}

async fn apply_refund(connection: &mut PgConnection, refund: &GatewayRefund) -> Result<Effect, PaymentError> {
    let found = refunds::find_within(&mut *connection, By::GatewayKey(refund.reference)).await?;
    let Some(RefundRecord { refund: stored, open, .. }) = found else {
        let discrepancy = Discrepancy {
            resource: "refunds",
            id: Some(refund.reference.0),
            what: UNKNOWN_REFERENCE,
            gateway_says: refund.id.as_str(),
            we_say: "unknown",
        };
        return record_discrepancy(connection, discrepancy).await;
    };
    traces::link(&Span::current(), open.trace_parent.as_deref());
    match check_refund(open.gateway_key, open.amount, &open.charge_id, refund) {
        Ok(settlement) => {
            Ok(Effect::Refund(settlement::settle_refund(connection, &open, &settlement, None).await?))
        }
        Err(Mismatch(what)) => {
            let discrepancy = Discrepancy {
                resource: "refunds",
                id: Some(open.id),
                what,
                gateway_says: &format!("{refund:?}"),
                we_say: stored.status.as_str(),
            };
            record_discrepancy(connection, discrepancy).await
        }
    }
}

async fn record_discrepancy(
    connection: &mut PgConnection,
    discrepancy: Discrepancy<'_>,
) -> Result<Effect, PaymentError> {
    let recorded = discrepancies::record(connection, &discrepancy).await?;
    Ok(recorded.map_or(Effect::Nothing, Effect::Discrepancy))
}
