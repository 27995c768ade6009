//! The running build: the service's name and version, its commit and its compiler.
//!
//! This crate is compiled without the service's name, version and commit, so the service sets them at the start of the
//! process. Log lines, spans, audit events, metrics and `/health` read the build from this module.
use std::sync::OnceLock;

use serde::Serialize;

/// The service and its build.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BuildInfo {
    /// The name of the package, the executable and the service.
    #[serde(skip)]
    pub name: &'static str,
    /// The version of the package.
    pub version: &'static str,
    /// The commit that the build was made from, or `unknown`.
    pub commit: &'static str,
    /// The compiler that made the build.
    pub rustc: &'static str,
}

/// The build of this crate's unit tests, which run without a service.
const NO_SERVICE: BuildInfo =
    BuildInfo { name: "service", version: "0.0.0", commit: "unknown", rustc: "unknown" };

static CURRENT: OnceLock<BuildInfo> = OnceLock::new();

impl BuildInfo {
    /// Sets the build of this process. Later calls are ignored.
    pub fn set(self) {
        let _already_set = CURRENT.set(self);
    }

    /// Returns the build of this process.
    pub fn current() -> Self {
        *CURRENT.get().unwrap_or(&NO_SERVICE)
    }
}
