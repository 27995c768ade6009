//! Names and texts inside statements that take no parameters (`create database`, `comment on`).

/// An identifier, whatever is in it.
pub(super) fn name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string, whatever is in it. `E''` with doubled backslashes means the same under every server setting.
pub(super) fn text(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn quotes_cannot_be_left() {
        assert_eq!(super::name("a\"; drop"), "\"a\"\"; drop\"");
        assert_eq!(super::text("it's \\"), "E'it''s \\\\'");
    }
}
