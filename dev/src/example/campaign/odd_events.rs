//! Signed events of the gateway that are unusable, or contradict a settled payment or refund. The service must
//! acknowledge each event. If the [`OddEvent`] has a discrepancy, the service must also record this discrepancy.
use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::time::sleep;
use url::Url;
use uuid::Uuid;

use crate::example::gateway::{Event, Simulator};

/// Pause between two attempts at a delivery.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Maximum number of attempts at a delivery.
const MAX_ATTEMPTS: u32 = 40;

/// Length of an over-long text in bytes. The service stores only shorter texts.
const OVERLONG_BYTES: usize = 20_000;

/// An event, and the discrepancy that the service must record for the event.
struct OddEvent {
    name: &'static str,
    event: Event,
    /// The id of the payment or refund, and the kind of the discrepancy. `None` if the service need not record one.
    discrepancy: Option<(Uuid, &'static str)>,
}

/// Delivers unusable and contradicting events about the newest successful payment and the newest successful refund.
/// Returns the violations.
pub(super) async fn deliver(gateway: Arc<Simulator>, owner_url: Url) -> Vec<String> {
    let mut violations = Vec::new();
    // An error is not a violation, because the database may be down.
    let Ok(events) = odd_events(&owner_url).await else { return violations };
    for odd in events {
        match deliver_until_decided(&gateway, &odd.event).await {
            Some(200..=299) => {}
            Some(status) => {
                violations.push(format!("a signed event with {} was rejected with {status}", odd.name));
                continue;
            }
            None => continue,
        }
        if let Some((record, kind)) = odd.discrepancy
            && is_recorded(&owner_url, record, kind).await.is_ok_and(|is_recorded| !is_recorded)
        {
            violations.push(format!("the discrepancy of an event with {} was not recorded", odd.name));
        }
    }
    violations
}

/// Delivers an event until a replica responds with a status other than 401, 429, 503 and 504. Returns this status, or
/// `None` after [`MAX_ATTEMPTS`] attempts. A 401 is retried, because for some seconds one replica may have a webhook
/// secret that differs from the gateway's secret.
async fn deliver_until_decided(gateway: &Simulator, event: &Event) -> Option<u16> {
    for _ in 0..MAX_ATTEMPTS {
        match gateway.deliver_webhook(event).await {
            Err(_) | Ok(401 | 429 | 503 | 504) => sleep(RETRY_PAUSE).await,
            Ok(status) => return Some(status),
        }
    }
    None
}

async fn is_recorded(owner_url: &Url, record: Uuid, kind: &str) -> Result<bool, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let recorded = "select exists (select from discrepancies where record_id = $1 and what = $2)";
    sqlx::query_scalar(recorded).bind(record).bind(kind).fetch_one(&mut connection).await
}

async fn odd_events(owner_url: &Url) -> Result<Vec<OddEvent>, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let payment = sqlx::query(
        "select id, gateway_key, gateway_charge_id, amount, currency from payments
         where status = 'succeeded' order by created_at desc limit 1",
    );
    let payment = payment.fetch_optional(&mut connection).await?;
    let refund = sqlx::query(
        "select refunds.id, refunds.gateway_key, gateway_charge_id, refunds.amount from refunds
         join payments on payments.id = refunds.payment_id
         where refunds.status = 'succeeded' order by refunds.created_at desc limit 1",
    );
    let refund = refund.fetch_optional(&mut connection).await?;
    connection.close().await?;

    let mut events = Vec::new();
    if let Some(payment) = payment {
        let id: Uuid = payment.try_get(0)?;
        let (key, charge_id): (Uuid, String) = (payment.try_get(1)?, payment.try_get(2)?);
        let (amount, currency): (i64, String) = (payment.try_get(3)?, payment.try_get(4)?);
        let charge = json!({
            "id": charge_id, "reference": key, "status": "succeeded", "decline_code": null,
            "amount": amount, "currency": currency,
        });
        let with = |field: &str, value: Value| {
            let mut charge = charge.clone();
            if let Some(object) = charge.as_object_mut() {
                object.insert(field.to_owned(), value);
            }
            charge
        };
        let unusable = Some((id, "unusable event"));
        for (name, data, discrepancy) in [
            ("an unknown status", with("status", json!("under_review")), unusable),
            ("NUL in an id", with("id", json!("ch_\0")), unusable),
            ("an over-long id", with("id", json!("x".repeat(OVERLONG_BYTES))), unusable),
            ("an over-long decline code", with("decline_code", json!("x".repeat(OVERLONG_BYTES))), None),
            (
                "a missing amount",
                json!({ "id": charge_id, "reference": key, "status": "succeeded" }),
                unusable,
            ),
            ("a reference that is null", with("reference", Value::Null), None),
            ("NUL in a reference", with("reference", json!("\0")), None),
            ("another amount", with("amount", json!(amount + 1)), Some((id, "amount"))),
            (
                "another charge",
                with("id", json!(format!("ch_{}", Uuid::now_v7().simple()))),
                Some((id, "second charge")),
            ),
        ] {
            events.extend(Event::new("charge.succeeded", &data).ok().map(|event| OddEvent {
                name,
                event,
                discrepancy,
            }));
        }
        let surrogate = Event::new("charge.succeeded", &charge).ok().map(|mut event| {
            event.body = event.body.replace("\"id\":\"ch_", "\"id\":\"\\ud800");
            OddEvent { name: "half of a surrogate pair", event, discrepancy: unusable }
        });
        events.extend(surrogate);
    }
    if let Some(refund) = refund {
        let (id, key): (Uuid, Uuid) = (refund.try_get(0)?, refund.try_get(1)?);
        let (charge_id, amount): (String, i64) = (refund.try_get(2)?, refund.try_get(3)?);
        let second = json!({
            "id": format!("re_{}", Uuid::now_v7().simple()), "reference": key, "charge_id": charge_id,
            "status": "succeeded", "amount": amount,
        });
        let event = Event::new("refund.succeeded", &second).ok();
        events.extend(event.map(|event| OddEvent {
            name: "a second refund",
            event,
            discrepancy: Some((id, "second refund")),
        }));
    }
    Ok(events)
}
