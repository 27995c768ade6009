//! Secrets of the tools. The tools read secrets from the environment, because other users of a machine can read command
//! lines.

/// Reads a secret from the environment variable `name`.
pub fn read(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} must be set in the environment"))
}
