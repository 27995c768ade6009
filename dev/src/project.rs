//! The checkout that this crate is built in: its name and its place.
//!
//! The name is read from the service's manifest and written nowhere here, so that a project which is renamed,
//! or made from this one, gets databases, directories and messages under its own name.
use std::path::{Path, PathBuf};

const MANIFEST: &str = include_str!("../../Cargo.toml");

/// The package, the executable and the service: one name.
pub fn name() -> &'static str {
    MANIFEST
        .lines()
        .skip_while(|line| line.trim() != "[package]")
        .find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .unwrap_or("service")
}

/// The name as SQL identifiers like it: `a-b` is `a_b`.
pub fn identifier() -> String {
    name().replace('-', "_")
}

/// The directory of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_name_is_the_one_in_the_manifest() {
        let manifest = std::fs::read_to_string(super::root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("\nname = \"{}\"\n", super::name())));
        assert_ne!(super::name(), "service");
    }
}
