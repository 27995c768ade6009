//! The canonical forms of events, of seals and of lists of lost heads, and their hashes. A lost head is the number and
//! the hash of a seal that a restore of the database has lost. docs/audit.md specifies the forms for other verifiers.
//!
//! Events are hashed as read back from the database, never as sent, because the database may store a value in another
//! form, such as a rounded time. Each field is prefixed with its length, so that no two different events have the same
//! form.
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A SHA-256 hash.
pub(super) type Hash = [u8; 32];

/// The value of `previous_hash` in the first seal, which has no previous seal.
pub(super) const GENESIS: Hash = [0; 32];

/// Names of the canonical forms. Each hash includes the name of its form, so that a later version can introduce another
/// form.
const EVENT_FORM: &str = "audit-event/1";
const SEAL_FORM: &str = "audit-seal/1";
const LOST_HEADS_FORM: &str = "audit-lost-heads/1";

/// The length prefix that marks an absent value.
const ABSENT: u32 = u32::MAX;

/// The largest integer that the JSON parser of every language reads exactly.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// An event's position in the audit log. Positions are compared by epoch, then by transaction id, then by sequence
/// number. A new epoch begins when the database is restored or moved to another cluster, because transaction ids may
/// then repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EventPosition {
    pub epoch: i32,
    pub xact_id: i64,
    pub sequence: i64,
}

impl EventPosition {
    /// The position before every event.
    pub(super) const START: Self = Self { epoch: 0, xact_id: 0, sequence: 0 };

    /// Returns the last position of an epoch before the transaction `horizon`. Every event of an older transaction in
    /// this epoch is at or before this position.
    pub(super) fn before_transaction(epoch: i32, horizon: i64) -> Self {
        Self { epoch, xact_id: horizon - 1, sequence: i64::MAX }
    }

    /// Returns the position after every event of an epoch.
    pub(super) fn end_of(epoch: i32) -> Self {
        Self { epoch, xact_id: i64::MAX, sequence: i64::MAX }
    }
}

/// An event as stored in the database or in an export.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredEvent {
    pub epoch: i32,
    pub xact_id: i64,
    pub sequence: i64,
    pub id: Uuid,
    pub recorded_at: DateTime<Utc>,
    pub timestamp: DateTime<Utc>,
    pub event_type: String,
    pub user_id: Option<Uuid>,
    pub role: Option<String>,
    pub resource: String,
    pub action: String,
    pub result: String,
    pub ip_address: Option<String>,
    pub metadata: Value,
    pub correlation_id: Option<String>,
    pub request_id: Option<Uuid>,
    pub trace_id: Option<String>,
    pub service_version: String,
}

impl StoredEvent {
    /// Returns the event's position.
    pub(super) fn position(&self) -> EventPosition {
        EventPosition { epoch: self.epoch, xact_id: self.xact_id, sequence: self.sequence }
    }

    /// Returns the SHA-256 of the event's canonical form.
    pub(super) fn digest(&self) -> Hash {
        let mut form = Form::new(EVENT_FORM);
        form.text(&self.epoch.to_string());
        form.text(&self.xact_id.to_string());
        form.text(&self.sequence.to_string());
        form.text(&self.id.to_string());
        form.text(&time(self.recorded_at));
        form.text(&time(self.timestamp));
        form.text(&self.event_type);
        form.optional(self.user_id.map(|id| id.to_string()).as_deref());
        form.optional(self.role.as_deref());
        form.text(&self.resource);
        form.text(&self.action);
        form.text(&self.result);
        form.optional(self.ip_address.as_deref());
        let mut metadata = String::new();
        write_json(&self.metadata, &mut metadata);
        form.text(&metadata);
        form.optional(self.correlation_id.as_deref());
        form.optional(self.request_id.map(|id| id.to_string()).as_deref());
        form.optional(self.trace_id.as_deref());
        form.text(&self.service_version);
        form.hash()
    }
}

/// A seal as stored in the database or in an export: the digests of a range of events, and the hash of the previous
/// seal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    pub number: i64,
    pub epoch: i32,
    pub first_xact_id: i64,
    pub first_sequence: i64,
    pub last_xact_id: i64,
    pub last_sequence: i64,
    pub event_count: i32,
    #[serde(with = "hex::serde")]
    pub digests: Vec<u8>,
    pub sealed_at: DateTime<Utc>,
    #[serde(with = "hex::serde")]
    pub previous_hash: Vec<u8>,
    #[serde(with = "hex::serde")]
    pub hash: Vec<u8>,
}

impl Seal {
    /// Returns the position of the seal's first event.
    pub(super) fn first(&self) -> EventPosition {
        EventPosition { epoch: self.epoch, xact_id: self.first_xact_id, sequence: self.first_sequence }
    }

    /// Returns the position of the seal's last event.
    pub(super) fn last(&self) -> EventPosition {
        EventPosition { epoch: self.epoch, xact_id: self.last_xact_id, sequence: self.last_sequence }
    }

    /// Returns the SHA-256 of the seal's canonical form, which `hash` must equal.
    pub(super) fn computed_hash(&self) -> Hash {
        let mut form = Form::new(SEAL_FORM);
        form.text(&self.number.to_string());
        form.text(&self.epoch.to_string());
        form.text(&self.first_xact_id.to_string());
        form.text(&self.first_sequence.to_string());
        form.text(&self.last_xact_id.to_string());
        form.text(&self.last_sequence.to_string());
        form.text(&self.event_count.to_string());
        form.text(&time(self.sealed_at));
        form.text(&hex::encode(&self.previous_hash));
        form.bytes(&self.digests);
        form.hash()
    }
}

/// Returns the SHA-256 of a list of heads. A head is the number and the hash of a seal. The caller passes the heads in
/// ascending order.
pub(super) fn digest_of_heads<'a>(heads: impl Iterator<Item = (i64, &'a [u8])>) -> Hash {
    let mut form = Form::new(LOST_HEADS_FORM);
    for (number, hash) in heads {
        form.text(&number.to_string());
        form.bytes(hash);
    }
    form.hash()
}

/// A hash over fields, each prefixed with its length.
struct Form(Sha256);

impl Form {
    fn new(name: &str) -> Self {
        let mut form = Self(Sha256::new());
        form.text(name);
        form
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // The length fits, because PostgreSQL limits a value to one gigabyte.
        self.0.update(u32::try_from(bytes.len()).unwrap_or(ABSENT).to_be_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn optional(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.text(text),
            None => self.0.update(ABSENT.to_be_bytes()),
        }
    }

    fn hash(self) -> Hash {
        self.0.finalize().into()
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Writes JSON without spaces. Keys are sorted by their bytes, integers are decimal, and strings escape only the
/// characters that must be escaped.
fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            write_all(out, ['[', ']'], items.iter(), write_json);
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
            write_all(out, ['{', '}'], members.into_iter(), |(key, value), out| {
                write_json(&Value::String(key.clone()), out);
                out.push(':');
                write_json(value, out);
            });
        }
        // PostgreSQL returns 1.0 for a number that was written as 1.0, but the canonical form of that number is 1.
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_i64() && float.fract() == 0.0 && float.abs() <= MAX_SAFE_INTEGER => {
                out.push_str(&Value::from(whole(float)).to_string());
            }
            _ => out.push_str(&number.to_string()),
        },
        other => out.push_str(&other.to_string()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the caller checks that the number is whole and at most `MAX_SAFE_INTEGER`"
)]
fn whole(float: f64) -> i64 {
    float as i64
}

fn write_all<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = T>,
    write: impl Fn(T, &mut String),
) {
    out.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(close);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> StoredEvent {
        serde_json::from_value(json!({
            "epoch": 1, "xact_id": 742, "sequence": 7,
            "id": "01980000-0000-7000-8000-000000000000",
            "recorded_at": "2026-01-31T12:00:00.001Z", "timestamp": "2026-01-31T12:00:00Z",
            "event_type": "data_change", "user_id": null, "role": null, "resource": "orders",
            "action": "create", "result": "success", "ip_address": "192.0.2.7", "metadata": { "a": 1 },
            "correlation_id": null, "request_id": null, "trace_id": null, "service_version": "0.1.0"
        }))
        .unwrap()
    }

    /// Returns the text of the first fenced block of docs/audit.md after the text `after`.
    fn documented(after: &str) -> &'static str {
        let document = include_str!("../../../docs/audit.md").split_once(after).unwrap().1;
        document.split("```").nth(1).unwrap().split_once('\n').unwrap().1.trim()
    }

    #[test]
    fn computed_hashes_match_the_documented_test_vector() {
        let event: StoredEvent = serde_json::from_str(documented("An event, and its digest")).unwrap();
        let digest = hex::encode(event.digest());
        let seal: Seal = serde_json::from_str(documented("A seal over that event alone")).unwrap();
        let hash = hex::encode(seal.computed_hash());
        let document = include_str!("../../../docs/audit.md");
        assert!(document.contains(&format!("```text\n{digest}\n```")), "{digest}");
        assert!(document.contains(&format!("```text\n{hash}\n```")), "{hash}");
        assert_eq!((hex::encode(&seal.digests), hex::encode(&seal.hash)), (digest, hash));
    }

    #[test]
    fn json_has_one_canonical_form() {
        for (value, form) in [
            (json!({ "b": 1, "a": [true, "x"], "aa": {} }), r#"{"a":[true,"x"],"aa":{},"b":1}"#),
            (json!({ "ä": "ü\"\\\n\u{1f}/" }), "{\"ä\":\"ü\\\"\\\\\\n\\u001f/\"}"),
            (json!([1.0, -2.0, 9_007_199_254_740_991_i64]), "[1,-2,9007199254740991]"),
            (json!([1.5, -0.25, u64::MAX, 1e300]), "[1.5,-0.25,18446744073709551615,1e+300]"),
        ] {
            let mut out = String::new();
            write_json(&value, &mut out);
            assert_eq!(out, form);
        }
    }

    #[test]
    fn a_list_of_heads_has_its_own_digest() {
        let digest = |heads: &[(i64, &[u8])]| digest_of_heads(heads.iter().copied());
        let heads: [(i64, &[u8]); 2] = [(1, &[7; 32]), (2, &[8; 32])];
        assert_eq!(digest(&heads), digest(&heads));
        for other in [&heads[..1], &heads[1..], &[], &[(1, heads[0].1), (3, heads[1].1)]] {
            assert_ne!(digest(other), digest(&heads));
        }
    }

    #[test]
    fn positions_before_a_transaction_exclude_its_events() {
        let event = |xact_id, sequence| EventPosition { epoch: 1, xact_id, sequence };
        let end = EventPosition::before_transaction(1, 700);
        assert!(event(699, i64::MAX) <= end);
        assert!(event(700, 0) > end);
    }

    #[test]
    fn every_field_of_an_event_is_in_its_digest() {
        let original = serde_json::to_value(event()).unwrap();
        let digest = event().digest();
        for (field, value) in original.as_object().unwrap() {
            let other = match value {
                Value::Number(number) => json!(number.as_i64().unwrap() + 1),
                Value::Object(_) => json!({ "a": 2 }),
                _ if field.ends_with("_id") || field == "id" => match field.as_str() {
                    "user_id" | "request_id" | "id" => json!("01980000-0000-7000-8000-000000000009"),
                    _ => json!("x"),
                },
                _ if field == "timestamp" || field == "recorded_at" => json!("2026-01-31T12:00:00.000001Z"),
                _ => json!("x"),
            };
            let mut changed = original.clone();
            changed[field] = other;
            let changed: StoredEvent = serde_json::from_value(changed).unwrap();
            assert_ne!(changed.digest(), digest, "{field}");
        }
    }

    #[test]
    fn moving_text_between_fields_changes_the_digest() {
        let one = StoredEvent { resource: "ab".into(), action: "c".into(), ..event() };
        let other = StoredEvent { resource: "a".into(), action: "bc".into(), ..event() };
        assert_ne!(one.digest(), other.digest());
        let absent = StoredEvent { role: None, ..event() };
        let empty = StoredEvent { role: Some(String::new()), ..event() };
        assert_ne!(absent.digest(), empty.digest());
    }
}
