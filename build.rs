//! Tells the binary which commit and which compiler it comes from.
//!
//! It also lets cargo see new migrations: they are compiled in, and nothing else says that a file was added.
use std::{
    env,
    path::Path,
    process::{Command, Output},
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A path that does not exist counts as changed, every time.
    if Path::new("migrations").exists() {
        println!("cargo:rerun-if-changed=migrations");
    }

    println!("cargo:rerun-if-env-changed=GIT_COMMIT");
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));

    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = answer(Command::new(rustc).arg("--version"));
    println!("cargo:rustc-env=BUILD_RUSTC={}", version.unwrap_or_else(|| "unknown".into()));
}

/// `GIT_COMMIT`, for builds that have no repository at hand (containers); otherwise what git says.
fn commit() -> Option<String> {
    if let Some(commit) = env::var("GIT_COMMIT").ok().filter(|commit| !commit.trim().is_empty()) {
        return Some(commit.trim().to_owned());
    }
    // Every commit and every checkout adds a line to this log.
    let moves = answer(Command::new("git").args(["rev-parse", "--git-path", "logs/HEAD"]))?;
    if Path::new(&moves).exists() {
        println!("cargo:rerun-if-changed={moves}");
    }
    answer(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))
}

/// What a command printed, if it ran, succeeded and printed something.
fn answer(command: &mut Command) -> Option<String> {
    let Output { status, stdout, .. } = command.output().ok()?;
    let text = String::from_utf8(stdout).ok()?.trim().to_owned();
    (status.success() && !text.is_empty()).then_some(text)
}
