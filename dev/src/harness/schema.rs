//! The telemetry schema in `docs/telemetry-schema*.md`. The harness compares the log lines of each service, and the
//! spans and log records of each collector, with the schema.
use std::{
    collections::BTreeSet,
    env,
    fs::{self, OpenOptions},
    io::Write,
    sync::{LazyLock, Mutex},
};

use serde_json::Value;

use crate::{
    otlp::{Attributes, Span},
    project,
};

/// Name of the environment variable with the path of a file. Each test process appends each received name of a span
/// attribute or a log field to the file once, with the name's kind. After a run of all tests, a documented attribute or
/// field that the file lacks was never received.
pub const RECEIVED_NAMES: &str = "RECEIVED_NAMES";

/// The documented names.
#[derive(Debug, Default)]
pub struct Schema {
    /// Names of spans in the service's source code. An exported span can have another name.
    pub spans: BTreeSet<String>,
    pub span_attributes: BTreeSet<String>,
    pub log_fields: BTreeSet<String>,
    /// The stable names of all kinds. A stable name changes only in a release whose changelog lists the change.
    pub stable: BTreeSet<String>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::read);

impl Schema {
    /// Returns the documented schema.
    pub fn documented() -> &'static Self {
        &SCHEMA
    }

    fn read() -> Self {
        let mut schema = Self::default();
        let documents =
            fs::read_dir(project::root().join("docs")).expect("failed to read the directory `docs`");
        for document in documents {
            let path = document.expect("failed to read the directory `docs`").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("telemetry-schema") {
                schema.add(&fs::read_to_string(&path).expect("failed to read the telemetry schema"));
            }
        }
        schema
    }

    fn add(&mut self, document: &str) {
        for section in document.split("\n## ").skip(1) {
            let names = match section.lines().next() {
                Some("Spans") => &mut self.spans,
                Some("Span attributes") => &mut self.span_attributes,
                Some("Log fields") => &mut self.log_fields,
                _ => continue,
            };
            for row in section.lines() {
                let name = row.strip_prefix("| `").and_then(|row| row.split('`').next());
                names.extend(name.map(str::to_owned));
                self.stable.extend(name.filter(|_| row.contains("| stable |")).map(str::to_owned));
            }
        }
    }

    /// Records the names of a span's attributes, and returns the undocumented names. The span's events are ignored,
    /// because each event is also a log line, whose fields are compared.
    pub(super) fn unknown_in_span(&self, span: &Span) -> BTreeSet<String> {
        record_received("attribute", span.attributes.keys());
        span.attributes.keys().filter(|name| !self.span_attributes.contains(*name)).cloned().collect()
    }

    /// Records the names of a log record's fields, and returns the undocumented names.
    pub(super) fn unknown_in_record(&self, target: &str, attributes: &Attributes) -> BTreeSet<String> {
        self.unknown_fields(target, attributes.keys())
    }

    /// Records the names of a log line's fields, and returns the undocumented names.
    pub(super) fn unknown_in_line(&self, line: &Value) -> BTreeSet<String> {
        let target = line["target"].as_str().unwrap_or_default();
        line.as_object().map_or_else(BTreeSet::new, |fields| self.unknown_fields(target, fields.keys()))
    }

    /// Records the names of the fields, and returns the undocumented names. Fields of libraries are not documented, so
    /// log lines with a library's target are ignored.
    fn unknown_fields<'a>(
        &self,
        target: &str,
        names: impl Iterator<Item = &'a String> + Clone,
    ) -> BTreeSet<String> {
        let of_service = ["access", "app", "audit", "panic", "platform"];
        if !of_service.contains(&target.split("::").next().unwrap_or_default()) {
            return BTreeSet::new();
        }
        record_received("field", names.clone());
        names.filter(|name| !self.log_fields.contains(*name)).cloned().collect()
    }
}

/// Appends the names that this process has not appended yet to the file of [`RECEIVED_NAMES`]. Has no effect if the
/// variable is not set.
fn record_received<'a>(kind: &str, names: impl Iterator<Item = &'a String>) {
    static RECORDED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some(path) = env::var_os(RECEIVED_NAMES) else { return };
    let mut recorded = RECORDED.lock().expect("a holder of the lock panicked");
    let lines: String =
        names.map(|name| format!("{kind} {name}\n")).filter(|line| recorded.insert(line.clone())).collect();
    if !lines.is_empty() {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
        written.expect("failed to record the received names");
    }
}

/// Panics if there are undocumented names, unless the test has already failed.
pub(super) fn assert_documented(unknown: &BTreeSet<String>) {
    assert!(
        unknown.is_empty() || std::thread::panicking(),
        "docs/telemetry-schema*.md does not list {unknown:?}"
    );
}
