//! A fault of the gateway: malformed responses. The ledger is not changed.
use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, header},
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// The kind of malformed response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Malformation {
    /// Invalid JSON.
    #[default]
    Garbage,
    /// A body larger than any client should read.
    Huge,
    /// A different amount.
    Amount,
    /// A different currency.
    Currency,
    /// A different reference, which no payment or refund has.
    Reference,
    /// An id with a NUL character, which PostgreSQL cannot store.
    Nul,
    /// An id with half of a surrogate pair, which is invalid text.
    Surrogate,
    /// An unknown status of each object in a list. Other responses are correct.
    Record,
    /// An id of 20 000 characters.
    Long,
    /// No amount and no status.
    Missing,
    /// A second object, with another id, for each object in a list. Other responses are correct.
    Second,
}

/// Length of an over-long id, in bytes.
const LONG_ID_BYTES: usize = 20_000;

/// Body size in bytes, far above any reasonable limit of a client.
const HUGE_BODY_BYTES: usize = 4 * 1024 * 1024;

impl Malformation {
    /// Malforms a successful response. An error response is unchanged.
    pub(super) async fn malform(self, response: Response) -> Response {
        if !response.status().is_success() {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let body = to_bytes(body, HUGE_BODY_BYTES).await.unwrap_or_default();
        let malformed = match self {
            Self::Garbage => "<html><body>200 OK</body></html>".to_owned(),
            Self::Huge => format!("{{\"data\":[],\"padding\":\"{}\"}}", "x".repeat(HUGE_BODY_BYTES)),
            Self::Surrogate => String::from_utf8_lossy(&body).replace("\"id\":\"", "\"id\":\"\\ud800"),
            Self::Record | Self::Second => {
                let mut response: Value = serde_json::from_slice(&body).unwrap_or_default();
                if let Some(data) = response.get_mut("data").and_then(Value::as_array_mut) {
                    let mut altered = data.clone();
                    for object in &mut altered {
                        self.alter(object);
                    }
                    if self == Self::Record {
                        data.clear();
                    }
                    data.append(&mut altered);
                }
                response.to_string()
            }
            Self::Amount | Self::Currency | Self::Reference | Self::Nul | Self::Long | Self::Missing => {
                let mut response: Value = serde_json::from_slice(&body).unwrap_or_default();
                self.alter(&mut response);
                response.to_string()
            }
        };
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(malformed.len()));
        Response::from_parts(parts, Body::from(malformed))
    }

    fn alter(self, response: &mut Value) {
        match response {
            Value::Array(items) => items.iter_mut().for_each(|item| self.alter(item)),
            Value::Object(fields) => {
                if self == Self::Missing {
                    fields.retain(|name, _| name != "amount" && name != "status");
                }
                for (name, value) in fields {
                    match (self, name.as_str()) {
                        (Self::Amount, "amount") => *value = (value.as_i64().unwrap_or_default() + 1).into(),
                        // `XTS` is the currency code for tests in ISO 4217, so no order has it.
                        (Self::Currency, "currency") => *value = "XTS".into(),
                        (Self::Nul, "id") => *value = "ch_\0".into(),
                        (Self::Long, "id") => *value = "x".repeat(LONG_ID_BYTES).into(),
                        (Self::Second, "id") => {
                            *value = format!("{}_second", value.as_str().unwrap_or_default()).into();
                        }
                        (Self::Record, "status") => *value = "under_review".into(),
                        (Self::Reference, "reference") => *value = Uuid::max().to_string().into(),
                        _ => self.alter(value),
                    }
                }
            }
            _ => {}
        }
    }
}
