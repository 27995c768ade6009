//! Log lines for machines: one JSON object each.
//!
//! Every line starts with the fixed keys (`KEYS`), except those without a value, such as `user_id` outside of a
//! request. The event's own fields follow in the same object, not in a nested one, so that queries name them in the
//! same way as the fixed keys. A field with the name of one of these fixed keys is written as `field.NAME`, because
//! JSON parsers disagree about duplicate keys.
use std::{error::Error, fmt::Debug};

use chrono::SecondsFormat;
use serde::Serialize;
use tracing::field::{Field, Visit};

use super::{Buffers, Line, chain, display, is_written_separately};

/// The fixed keys of a line.
pub(super) const KEYS: [&str; 11] = [
    "timestamp",
    "level",
    "target",
    "message",
    "service",
    "version",
    "correlation_id",
    "request_id",
    "user_id",
    "trace_id",
    "span_id",
];

/// The fields that describe the process, serialized once and copied into each line.
pub(super) struct Origin(Vec<u8>);

impl Origin {
    pub(super) fn new(service: &str, version: &str) -> Self {
        let mut members = Vec::new();
        member(&mut members, "service", service);
        member(&mut members, "version", version);
        Self(members)
    }
}

/// Writes one line, with its newline.
pub(super) fn write(line: &Line<'_>, origin: &Origin, Buffers { line: out, text }: &mut Buffers) {
    out.extend_from_slice(b"{\"timestamp\":");
    value(out, &line.at.to_rfc3339_opts(SecondsFormat::Micros, true));
    member(out, "level", line.metadata.level().as_str());
    member(out, "target", line.metadata.target());
    line.message(text);
    member(out, "message", text);
    out.extend_from_slice(&origin.0);
    if let Some(context) = &line.context {
        member(out, "correlation_id", context.correlation_id().as_str());
        member(out, "request_id", &context.request_id());
        if let Some(user) = context.user() {
            member(out, "user_id", &user.id);
        }
    }
    if let Some((trace, span)) = line.trace {
        display_member(out, text, "trace_id", format_args!("{trace}"));
        display_member(out, text, "span_id", format_args!("{span}"));
    }
    line.event.record(&mut Fields { out, text });
    out.extend_from_slice(b"}\n");
}

/// The visitor that writes the event's own fields.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    text: &'a mut String,
}

impl Fields<'_> {
    fn field<T: Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        let name = field.name();
        if is_written_separately(name) {
            return;
        }
        if KEYS.contains(&name) {
            self.text.clear();
            self.text.push_str("field.");
            self.text.push_str(name);
            member(self.out, self.text, value);
        } else {
            member(self.out, name, value);
        }
    }

    /// Writes a field as text. `write` formats the text into the reused buffer.
    fn text(&mut self, field: &Field, write: impl FnOnce(&mut String)) {
        if is_written_separately(field.name()) {
            return;
        }
        let mut text = std::mem::take(self.text);
        text.clear();
        write(&mut text);
        self.field(field, text.as_str());
        *self.text = text;
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.text(field, |text| chain(text, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, |text| display(text, format_args!("{value:?}")));
    }
}

fn display_member(out: &mut Vec<u8>, text: &mut String, key: &str, value: std::fmt::Arguments<'_>) {
    text.clear();
    display(text, value);
    member(out, key, text.as_str());
}

fn member<T: Serialize + ?Sized>(out: &mut Vec<u8>, key: &str, content: &T) {
    out.push(b',');
    value(out, key);
    out.push(b':');
    value(out, content);
}

/// Writes a value whose serialization cannot fail: a string, a number or a boolean.
fn value<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let _cannot_fail = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use chrono::{TimeZone, Utc};
    use opentelemetry::{SpanId, TraceId};
    use tracing::{Event, Subscriber};
    use tracing_subscriber::{
        Layer,
        layer::{Context, SubscriberExt},
    };
    use uuid::Uuid;

    use super::*;
    use crate::telemetry::correlation::{self, CorrelationId, User};

    /// A layer that formats events with [`super::write`], and stores the lines.
    struct Memory(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Memory {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            let line = Line {
                at: Utc.with_ymd_and_hms(2026, 3, 1, 12, 30, 0).unwrap(),
                event,
                metadata: event.metadata(),
                context: correlation::current(),
                trace: Some((TraceId::from(1), SpanId::from(2))),
            };
            let mut buffers = Buffers::default();
            write(&line, &Origin::new("teapots", "1.2.3"), &mut buffers);
            self.0.lock().unwrap().push(String::from_utf8(buffers.line).unwrap());
        }
    }

    fn line_of(log: impl FnOnce()) -> String {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Memory(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, log);
        let mut lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 1);
        lines.remove(0)
    }

    fn object_of(log: impl FnOnce()) -> serde_json::Value {
        serde_json::from_str(&line_of(log)).unwrap()
    }

    #[test]
    fn a_line_is_one_object_with_the_same_keys_first() {
        let line = line_of(|| tracing::info!(target: "kitchen", cups = 3, warm = true, "tea is {}", "ready"));
        assert_eq!(
            line,
            concat!(
                r#"{"timestamp":"2026-03-01T12:30:00.000000Z","level":"INFO","target":"kitchen","#,
                r#""message":"tea is ready","service":"teapots","version":"1.2.3","#,
                r#""trace_id":"00000000000000000000000000000001","span_id":"0000000000000002","#,
                r#""cups":3,"warm":true}"#,
                "\n",
            )
        );
    }

    #[test]
    fn a_line_contains_the_context_of_its_task() {
        let context = correlation::Context::for_work(CorrelationId::parse("order-7").unwrap());
        context.identify(User { id: Uuid::nil(), role: "customer" });
        let line = context.clone().sync_scope(|| object_of(|| tracing::info!("hello")));
        assert_eq!(line["correlation_id"], "order-7");
        assert_eq!(line["request_id"], context.request_id().to_string());
        assert_eq!(line["user_id"], Uuid::nil().to_string());
    }

    #[test]
    fn a_field_named_like_a_fixed_key_gets_a_prefix() {
        let line = line_of(|| tracing::info!(level = "high", service = ?Some(1), user_id = 7, "water"));
        assert!(
            line.contains(r#""field.level":"high","field.service":"Some(1)","field.user_id":7"#),
            "{line}"
        );
        assert_eq!(line.matches(r#""level":"#).count(), 1);
    }

    #[test]
    fn logged_text_cannot_forge_a_line() {
        let forged = "tea\"}\n{\"level\":\"ERROR\"}\r\u{1b}[31m\u{0}";
        let line = line_of(|| tracing::info!(named = forged, shown = %forged, "{forged}"));
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.contains('\u{1b}'));
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        for key in ["message", "named", "shown"] {
            assert_eq!(object[key], forged);
        }
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("the tea is cold")]
        struct ColdTea(#[source] std::io::Error);

        let error = ColdTea(std::io::Error::other(ColdTea(std::io::Error::other("no gas"))));
        let line = object_of(|| tracing::error!(error = &error as &(dyn Error + 'static), "failed"));
        assert_eq!(line["error"], "the tea is cold: the tea is cold: no gas");
    }

    #[test]
    fn a_value_that_cannot_be_formatted_does_not_lose_the_line() {
        struct FailingDisplay;
        impl Debug for FailingDisplay {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("half")?;
                Err(std::fmt::Error)
            }
        }
        let line = object_of(|| tracing::info!(broken = ?FailingDisplay, ratio = f64::NAN, "still here"));
        assert_eq!((&line["broken"], &line["ratio"]), (&"half".into(), &serde_json::Value::Null));
    }
}
