//! An audit event, with the fields that NIST SP 800-53 AU-3 requires. The module also parses the reason that an
//! operator gives for a command.
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    build_info::BuildInfo,
    http::timestamp,
    telemetry::{correlation, traces},
};

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A successful or failed authentication.
    Authentication,
    /// A denied permission.
    Authorization,
    /// A read of another user's data.
    DataAccess,
    /// A change of data.
    DataChange,
    /// A change of the configuration of the running service.
    Configuration,
    /// An operation on the audit log.
    Audit,
}

impl EventType {
    /// All event types.
    pub(super) const ALL: [Self; 6] = [
        Self::Authentication,
        Self::Authorization,
        Self::DataAccess,
        Self::DataChange,
        Self::Configuration,
        Self::Audit,
    ];

    /// Returns the name in SQL, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::Authorization => "authorization",
            Self::DataAccess => "data_access",
            Self::DataChange => "data_change",
            Self::Configuration => "configuration",
            Self::Audit => "audit",
        }
    }
}

/// The result of the action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventResult {
    /// The action succeeded.
    Success,
    /// The action failed.
    Failure,
    /// The action was denied.
    Denied,
}

impl EventResult {
    /// All results.
    pub(super) const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::Denied];

    /// Returns the name in SQL, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Denied => "denied",
        }
    }
}

/// An audit event. The user, the client address, and the correlation, request and trace ids come from the current
/// context.
#[derive(Debug, Clone, Serialize)]
#[expect(clippy::struct_field_names, reason = "`event_type` is the name of the column, too")]
pub struct Event {
    id: Uuid,
    #[serde(serialize_with = "timestamp::serialize")]
    timestamp: DateTime<Utc>,
    pub(super) event_type: EventType,
    user_id: Option<Uuid>,
    role: Option<&'static str>,
    resource: &'static str,
    pub(super) action: &'static str,
    pub(super) result: EventResult,
    pub(super) ip_address: Option<IpAddr>,
    metadata: Map<String, Value>,
    correlation_id: Option<String>,
    request_id: Option<Uuid>,
    trace_id: Option<String>,
    service_version: &'static str,
}

impl Event {
    /// Returns an event with the current context. `resource` is the name of the affected table, or of a part of the
    /// service.
    pub fn new(
        event_type: EventType,
        resource: &'static str,
        action: &'static str,
        result: EventResult,
    ) -> Self {
        let context = correlation::current();
        let user = context.as_ref().and_then(correlation::Context::user);
        Self {
            id: Uuid::now_v7(),
            timestamp: Utc::now(),
            event_type,
            user_id: user.map(|user| user.id),
            role: user.map(|user| user.role),
            resource,
            action,
            result,
            ip_address: context.as_ref().and_then(correlation::Context::client_address),
            metadata: Map::new(),
            correlation_id: context.as_ref().map(|context| context.correlation_id().to_string()),
            request_id: context.as_ref().map(correlation::Context::request_id),
            trace_id: traces::current_trace_id().map(|id| id.to_string()),
            service_version: BuildInfo::current().version,
        }
    }

    /// Returns the event of a successful data change. The caller writes it in the transaction of that change.
    pub fn change(resource: &'static str, action: &'static str) -> Self {
        Self::new(EventType::DataChange, resource, action, EventResult::Success)
    }

    /// Adds the ids and the number of the affected rows.
    #[must_use]
    pub fn records(self, ids: impl IntoIterator<Item = Uuid>) -> Self {
        let ids: Vec<_> = ids.into_iter().map(|id| Value::String(id.to_string())).collect();
        let count = ids.len();
        self.with("record_ids", ids).with("record_count", count)
    }

    /// Adds a detail to the metadata, unless `value` is null. Callers must never add a secret. The database rejects the
    /// whole event if the SQL function `metadata_has_one_form` rejects a value, such as a fractional number or a nested
    /// null. The database also rejects NUL characters, so NUL characters in texts are replaced.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut value = value.into();
        replace_nul(&mut value);
        if !value.is_null() {
            self.metadata.insert(key.to_owned(), value);
        }
        self
    }

    /// Sets the user, for events whose context does not have this user, such as a login or the expiry of a session.
    #[must_use]
    pub fn by(mut self, user_id: Uuid, role: &'static str) -> Self {
        self.user_id = Some(user_id);
        self.role = Some(role);
        self
    }

    /// Overrides the client address of the context.
    #[must_use]
    pub(super) fn from(mut self, address: Option<IpAddr>) -> Self {
        self.ip_address = address;
        self
    }

    /// Returns the event as JSON, which is the parameter of the SQL function `record_audit_event`.
    pub fn to_json(&self) -> Value {
        // A struct of strings, numbers and maps with string keys always serializes.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Writes the committed event to the log and counts it in the metrics.
    pub fn log_and_count(&self) {
        super::metrics::EVENTS.with_label_values(&[self.event_type.as_str(), self.result.as_str()]).inc();
        // A struct of strings, numbers and maps with string keys always serializes.
        let audit_log = serde_json::to_string(self).unwrap_or_default();
        match self.result {
            EventResult::Success => {
                tracing::info!(target: "audit", audit_log, "{} {}", self.resource, self.action);
            }
            EventResult::Failure | EventResult::Denied => {
                tracing::warn!(target: "audit", audit_log, "{} {} {}", self.resource, self.action, self.result.as_str());
            }
        }
    }
}

/// Replaces each NUL character in texts, but not in keys, by the replacement character U+FFFD.
fn replace_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(items) => items.iter_mut().for_each(replace_nul),
        Value::Object(fields) => fields.values_mut().for_each(replace_nul),
        _ => {}
    }
}

/// Maximum number of characters of a reason.
const MAX_REASON_CHARACTERS: usize = 500;

/// Parses the reason that an operator gives for a command. The audit event of the command stores the reason.
///
/// # Errors
/// The reason is empty, has more than 500 characters, or has a control character.
pub fn parse_reason(text: &str) -> Result<String, String> {
    let reason = text.trim();
    if reason.is_empty()
        || reason.chars().count() > MAX_REASON_CHARACTERS
        || reason.contains(char::is_control)
    {
        return Err(format!("must be 1 to {MAX_REASON_CHARACTERS} characters in one line"));
    }
    Ok(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_detail_has_no_nul() {
        let event = Event::change("things", "create")
            .with("text", "a\0b")
            .with("texts", vec!["\0", "c"])
            .with("object", json!({ "inner": ["d\0"], "number": 1 }));
        let metadata = &event.to_json()["metadata"];
        assert_eq!(metadata["text"], "a\u{fffd}b");
        assert_eq!(metadata["texts"], json!(["\u{fffd}", "c"]));
        assert_eq!(metadata["object"], json!({ "inner": ["d\u{fffd}"], "number": 1 }));
    }
}
