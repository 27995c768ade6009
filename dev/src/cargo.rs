//! Runs of cargo by this program, such as a build of the service, or the expansion of its sqlx macros for
//! `cargo dev prepare`.
//!
//! `cargo run` has replaced itself with this process, so the build directory is not locked. A build of the same
//! packages is fast, because nearly everything is up to date.
use std::{ffi::OsString, io, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    process::{Child, Launch, Stream, WaitError},
    project,
};

/// Deadline of a clean build on a slow machine.
const BUILD_DEADLINE: Duration = Duration::from_hours(2);

/// The reason why a run of cargo failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to run cargo: {0}")]
    Start(#[from] io::Error),
    /// Cargo failed, and has printed the reason on the terminal.
    #[error("cargo {0} failed")]
    Failed(String),
    #[error("cargo built no executable {0}")]
    NoExecutable(&'static str),
    #[error(transparent)]
    Wait(#[from] WaitError),
}

/// Builds the service in the Cargo profile of this program, debug or release. Returns the path of the executable.
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

/// Runs cargo in the checkout and waits for its success. Cargo prints its messages on the terminal.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Child, Error> {
    let mut launch = Launch::new(program())
        .envs(user_environment())
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

/// Returns the cargo that started this program, or the `cargo` in `PATH` if this program was started without cargo.
pub(crate) fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Returns the environment without the variables that `cargo run` has added for this program. Some build scripts, such
/// as that of `ring`, depend on these variables. If a child inherited the variables, the user's next run of cargo would
/// recompile many dependencies.
pub(crate) fn user_environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        !name.starts_with("CARGO_PKG_") && !name.starts_with("CARGO_MANIFEST_")
    })
}

/// A message of cargo about a built artifact.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}
