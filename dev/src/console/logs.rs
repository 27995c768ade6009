//! The newest log lines of all replicas together.
//!
//! Bounds: [`MAX_LINES`] lines, and [`MAX_BYTES`] of memory. The oldest lines are dropped first.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(super) const MAX_LINES: usize = 20_000;
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Levels, most severe first.
const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];

/// Estimated memory of a line in addition to its text, in bytes.
const OVERHEAD_BYTES: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Logs {
    lines: VecDeque<StoredLine>,
    bytes: usize,
    /// Number of the next line.
    next: u64,
}

/// A stored line. Each request parses the text again, because the parsed form would take more memory.
#[derive(Debug)]
struct StoredLine {
    replica: u16,
    text: Box<str>,
}

/// A displayed line.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    /// Sequence number of the line.
    number: u64,
    replica: u16,
    timestamp: String,
    level: String,
    target: String,
    message: String,
    correlation_id: String,
    trace_id: String,
    span_id: String,
    /// All other fields of the line, except `service`, `version` and `request_id`.
    fields: Map<String, Value>,
}

/// A selection of log lines.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    /// Minimum severity. A line without a level always matches.
    level: String,
    /// Prefix of the target.
    target: String,
    /// Substring of the unparsed line, case-insensitive.
    text: String,
    correlation_id: String,
    trace_id: String,
    /// Exclusive lower bound of the sequence number.
    after: Option<u64>,
}

impl Logs {
    pub(super) fn push(&mut self, replica: u16, text: String) {
        self.bytes += text.len() + OVERHEAD_BYTES;
        self.lines.push_back(StoredLine { replica, text: text.into_boxed_str() });
        self.next += 1;
        while self.lines.len() > MAX_LINES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len() + OVERHEAD_BYTES;
        }
    }

    /// Returns the newest lines that match the filter, oldest first.
    pub(super) fn list(&self, filter: &Filter, limit: usize) -> Vec<Line> {
        let needle = filter.text.to_lowercase();
        let numbered = self.lines.iter().rev().zip((0..self.next).rev());
        let after = numbered.take_while(|(_, number)| filter.after.is_none_or(|after| *number > after));
        let matching = after.filter(|(line, _)| filter.may_match(line, &needle));
        let lines = matching.map(|(stored, number)| Line::read(stored, number));
        let mut lines: Vec<Line> = lines.filter(|line| filter.matches(line)).take(limit).collect();
        lines.reverse();
        lines
    }

    /// Returns the number of lines and their estimated memory in bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.lines.len(), self.bytes)
    }
}

impl Line {
    /// Parses a line. A line that is not JSON, such as a crash message, becomes a message without fields.
    fn read(stored: &StoredLine, number: u64) -> Self {
        let mut fields: Map<String, Value> = serde_json::from_str(&stored.text).unwrap_or_default();
        if fields.is_empty() {
            fields.insert("message".to_owned(), Value::from(&*stored.text));
        }
        for common_field in ["service", "version", "request_id"] {
            fields.remove(common_field);
        }
        let mut text = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        Self {
            number,
            replica: stored.replica,
            timestamp: text("timestamp"),
            level: text("level"),
            target: text("target"),
            message: text("message"),
            correlation_id: text("correlation_id"),
            trace_id: text("trace_id"),
            span_id: text("span_id"),
            fields,
        }
    }
}

impl Filter {
    /// Returns the filter for the lines of one trace.
    pub(super) fn of_trace(trace_id: &str) -> Self {
        Self { trace_id: trace_id.to_owned(), ..Self::default() }
    }

    /// Returns whether the unparsed line contains the text and the ids of the filter. Most lines that do not match are
    /// excluded here, without being parsed.
    fn may_match(&self, line: &StoredLine, needle: &str) -> bool {
        (self.trace_id.is_empty() || line.text.contains(&self.trace_id))
            && (self.correlation_id.is_empty() || line.text.contains(&self.correlation_id))
            && (needle.is_empty() || line.text.to_lowercase().contains(needle))
    }

    fn matches(&self, line: &Line) -> bool {
        let rank = |level: &str| LEVELS.iter().position(|level_name| *level_name == level).unwrap_or(0);
        (self.level.is_empty() || rank(&line.level) <= rank(&self.level))
            && line.target.starts_with(&self.target)
            && (self.trace_id.is_empty() || line.trace_id == self.trace_id)
            && (self.correlation_id.is_empty() || line.correlation_id == self.correlation_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: &str, message: &str) -> String {
        serde_json::json!({ "level": level, "target": "app::notes", "message": message, "trace_id": "t" })
            .to_string()
    }

    #[test]
    fn lines_are_filtered_by_level_text_and_position() {
        let mut logs = Logs::default();
        logs.push(1, line("DEBUG", "a detail"));
        logs.push(1, line("ERROR", "A Failure"));
        logs.push(2, "thread 'main' panicked".to_owned());
        let messages = |filter: Filter| -> Vec<String> {
            logs.list(&filter, 10).into_iter().map(|line| line.message).collect()
        };
        assert_eq!(messages(Filter::default()), ["a detail", "A Failure", "thread 'main' panicked"]);
        assert_eq!(
            messages(Filter { level: "WARN".to_owned(), ..Filter::default() }),
            ["A Failure", "thread 'main' panicked"]
        );
        assert_eq!(messages(Filter { text: "failure".to_owned(), ..Filter::default() }), ["A Failure"]);
        assert_eq!(messages(Filter { after: Some(1), ..Filter::default() }), ["thread 'main' panicked"]);
        assert_eq!(messages(Filter { trace_id: "t".to_owned(), ..Filter::default() }).len(), 2);
    }

    #[test]
    fn memory_for_log_lines_is_bounded() {
        let mut logs = Logs::default();
        for number in 0..MAX_LINES + 100 {
            logs.push(1, line("INFO", &number.to_string()));
        }
        assert_eq!(logs.size().0, MAX_LINES);
        assert_eq!(logs.list(&Filter::default(), 1)[0].message, (MAX_LINES + 99).to_string());
        for _ in 0..100 {
            logs.push(1, "x".repeat(1024 * 1024));
        }
        assert!(logs.size().1 <= MAX_BYTES);
    }
}
