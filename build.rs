//! Passes the commit and the compiler version to the binary.
//!
//! The script also makes cargo rebuild the binary after a migration was added, because migrations are compiled in and
//! cargo does not detect added files by itself.
use std::{
    env,
    path::Path,
    process::{Command, Output},
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Cargo treats a missing path as changed, so a missing directory would cause a rebuild every time.
    if Path::new("migrations").exists() {
        println!("cargo:rerun-if-changed=migrations");
    }

    println!("cargo:rerun-if-env-changed=GIT_COMMIT");
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));

    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output_of(Command::new(rustc).arg("--version"));
    println!("cargo:rustc-env=BUILD_RUSTC={}", version.unwrap_or_else(|| "unknown".into()));
}

/// Returns `GIT_COMMIT` if this variable is set, and otherwise the commit that git reports. Builds without a
/// repository, such as those of container images, set the variable.
fn commit() -> Option<String> {
    if let Some(commit) = env::var("GIT_COMMIT").ok().filter(|commit| !commit.trim().is_empty()) {
        return Some(commit.trim().to_owned());
    }
    // Git adds a line to `logs/HEAD` at every commit and every checkout. So cargo runs this script again once the
    // commit may have changed.
    let head_log = output_of(Command::new("git").args(["rev-parse", "--git-path", "logs/HEAD"]))?;
    if Path::new(&head_log).exists() {
        println!("cargo:rerun-if-changed={head_log}");
    }
    output_of(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))
}

/// Returns the output of a command, if the command ran, succeeded and printed something.
fn output_of(command: &mut Command) -> Option<String> {
    let Output { status, stdout, .. } = command.output().ok()?;
    let text = String::from_utf8(stdout).ok()?.trim().to_owned();
    (status.success() && !text.is_empty()).then_some(text)
}
