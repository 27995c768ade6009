//! The name of the service, and the path of the checkout that this crate is built in.
//!
//! The name is read from the service's manifest, so that a generated project has databases, directories and messages
//! with its own name.
use std::path::{Path, PathBuf};

const MANIFEST: &str = include_str!("../../Cargo.toml");

/// Returns the common name of the package, the executable and the service.
pub fn name() -> &'static str {
    MANIFEST
        .lines()
        .skip_while(|line| line.trim() != "[package]")
        .find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .unwrap_or("service")
}

/// Returns the name as an SQL identifier: `a-b` becomes `a_b`.
pub fn identifier() -> String {
    name().replace('-', "_")
}

/// Returns the workspace directory.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_name_is_the_package_name_in_the_manifest() {
        let manifest = std::fs::read_to_string(super::root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("\nname = \"{}\"\n", super::name())));
        assert_ne!(super::name(), "service");
    }
}
