//! The setting `APP_ENV`, on which defaults and checks of other settings depend.
use super::values::environment;

/// The environment that the process runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// A developer's machine.
    Development,
    /// A run of the test suite.
    Test,
    /// A copy of production without its users.
    Staging,
    /// Production.
    Production,
}

impl Environment {
    /// Returns the name as written in `APP_ENV` and in telemetry's `deployment.environment.name`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Test => "test",
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }

    /// Returns `true` for staging and production, where insecure settings are rejected or cause a warning.
    pub fn is_production_like(self) -> bool {
        matches!(self, Self::Staging | Self::Production)
    }
}

crate::groups! {
    /// The process.
    process: Process {
        /// `development`, `test`, `staging` or `production`. Only in development is a `.env` file read.
        "APP_ENV" environment: Environment = environment, default("development");
    }
}
