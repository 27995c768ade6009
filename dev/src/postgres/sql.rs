//! Quoting of names and texts in statements without parameters (`create database`, `comment on`).

/// Quotes an identifier with any content.
pub(super) fn name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string with any content. `E''` with doubled backslashes has the same meaning under every server setting.
pub(super) fn text(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn quotes_are_escaped() {
        assert_eq!(super::name("a\"; drop"), "\"a\"\"; drop\"");
        assert_eq!(super::text("it's \\"), "E'it''s \\\\'");
    }
}
