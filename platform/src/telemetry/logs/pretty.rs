//! Log lines for a terminal: time, level, target, message, fields, correlation id and trace id.
use std::{
    error::Error,
    fmt::{Arguments, Debug, Display, Write as _},
    io::Write as _,
};

use tracing::{
    Level,
    field::{Field, Visit},
};

use super::{Buffers, Line, chain, display, is_written_separately};

const DIM: &str = "\u{1b}[2m";
const RESET: &str = "\u{1b}[0m";

/// Writes one line, with its newline. The further lines of a multi-line text are indented, so that none of them can
/// be mistaken for a log line.
pub(super) fn write(line: &Line<'_>, coloured: bool, Buffers { line: out, text }: &mut Buffers) {
    let (dim, reset) = if coloured { (DIM, RESET) } else { ("", "") };
    let (colour, level) = (if coloured { colour(*line.metadata.level()) } else { "" }, line.metadata.level());
    put(out, format_args!("{dim}{}{reset} ", line.at.format("%H:%M:%S%.3f")));
    put(out, format_args!("{colour}{level:>5}{reset} {dim}{}{reset}: ", line.metadata.target()));
    line.message(text);
    put(out, format_args!("{}", EscapedText(text)));
    line.event.record(&mut Fields { out, text, dim, reset });
    if let Some(context) = &line.context {
        put(out, format_args!(" {dim}correlation_id={}{reset}", context.correlation_id()));
    }
    if let Some((trace, _)) = line.trace {
        put(out, format_args!(" {dim}trace_id={trace}{reset}"));
    }
    out.push(b'\n');
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        Level::TRACE => "\u{1b}[35m",
    }
}

struct Fields<'a> {
    out: &'a mut Vec<u8>,
    text: &'a mut String,
    dim: &'static str,
    reset: &'static str,
}

impl Fields<'_> {
    fn field(&mut self, field: &Field, value: &dyn Display) {
        if !is_written_separately(field.name()) {
            let Self { dim, reset, .. } = self;
            put(self.out, format_args!(" {dim}{}={reset}{value}", field.name()));
        }
    }

    fn text(&mut self, field: &Field, write: impl FnOnce(&mut String)) {
        let mut text = std::mem::take(self.text);
        text.clear();
        write(&mut text);
        self.field(field, &EscapedText(&text));
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
        self.field(field, &EscapedText(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.text(field, |text| chain(text, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if !is_written_separately(field.name()) {
            self.text(field, |text| display(text, format_args!("{value:?}")));
        }
    }
}

/// A text that cannot control the terminal: the lines after the first are indented, and all control characters except
/// newline and tab are escaped.
struct EscapedText<'a>(&'a str);

impl Display for EscapedText<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '\n' => formatter.write_str("\n    ")?,
                '\t' => formatter.write_char('\t')?,
                control if control.is_control() => write!(formatter, "{}", control.escape_default())?,
                other => formatter.write_char(other)?,
            }
        }
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, text: Arguments<'_>) {
    let _memory_cannot_fail = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_text_cannot_forge_a_line_or_control_the_terminal() {
        let forged = "tea\n12:00:00 ERROR \u{1b}[31mfire\r";
        assert_eq!(EscapedText(forged).to_string(), "tea\n    12:00:00 ERROR \\u{1b}[31mfire\\r");
    }
}
