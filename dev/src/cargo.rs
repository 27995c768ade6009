//! Cargo, run once more from inside: to build the service and to expand its queries again.
//!
//! `cargo run` has replaced itself with this process, so the lock on the build directory is free, and an inner
//! build of the same packages finds nearly everything done.
use std::{ffi::OsString, io, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    process::{Child, Launch, Stream, WaitError},
    project,
};

/// A clean build on a slow machine. It is the user who interrupts a build, hardly ever this.
const BUILD_DEADLINE: Duration = Duration::from_hours(2);

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cargo cannot be run: {0}")]
    Start(#[from] io::Error),
    /// Cargo itself has said why, on the terminal.
    #[error("cargo {0} failed")]
    Failed(String),
    #[error("cargo built no executable {0}")]
    NoExecutable(&'static str),
    #[error(transparent)]
    Wait(#[from] WaitError),
}

/// Builds the service in the profile that this program was built in, and says where its executable is.
pub async fn build_service() -> Result<PathBuf, Error> {
    let name = project::name();
    let mut arguments = vec!["build", "--bin", name, "--message-format=json-render-diagnostics"];
    if !cfg!(debug_assertions) {
        arguments.push("--release");
    }
    let output = run(&arguments, &[]).await?;
    let executable = output.lines().into_iter().rev().find_map(|line| {
        let artifact: Artifact = serde_json::from_str(&line.text).ok()?;
        artifact.executable.filter(|_| artifact.target.name == name)
    });
    executable.ok_or(Error::NoExecutable(name))
}

/// Runs cargo in the checkout and waits for its success, its messages on the terminal.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Child, Error> {
    // The very cargo that runs this, or the user's when this was started without one.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut launch = Launch::new(cargo)
        .envs(users_environment())
        .args(arguments)
        .directory(&project::root())
        .echo(&[Stream::Stderr]);
    for (name, value) in environment {
        launch = launch.env(name, value);
    }
    let child = launch.start()?;
    if child.wait(BUILD_DEADLINE).await?.success() {
        return Ok(child);
    }
    Err(Error::Failed(arguments.first().copied().unwrap_or_default().to_owned()))
}

/// The environment without what `cargo run` has added to it for this program. Some build scripts (that of
/// `ring`) depend on these variables: handed down, they would have half of the dependencies compiled again at
/// every change between the outer and the inner cargo.
fn users_environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        !name.starts_with("CARGO_PKG_") && !name.starts_with("CARGO_MANIFEST_")
    })
}

/// One of cargo's messages, if it is about something built.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}
