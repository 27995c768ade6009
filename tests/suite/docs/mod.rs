//! Documents and sources agree, and follow the rules of language and code structure.
pub(crate) mod compliance;
mod decisions;
mod language;
pub(crate) mod structure;
mod telemetry_schema;

use std::{collections::BTreeSet, fmt::Debug};

/// Panics if a file does not list exactly the expected entries. The message names the missing and the additional
/// entries.
pub(crate) fn assert_complete<T: Debug + Ord>(
    file: &str,
    listed: &BTreeSet<T>,
    source: &str,
    expected: &BTreeSet<T>,
) {
    let missing: Vec<_> = expected.difference(listed).collect();
    let extra: Vec<_> = listed.difference(expected).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{file} does not agree with {source}:\nmissing in {file}: {missing:#?}\nonly in {file}: {extra:#?}"
    );
}
