//! Users, their sessions, and who is calling.
//!
//! The rules: a password is seen by [`passwords`] alone; a token exists in the clear in one response and nowhere
//! else; nothing that a stranger can send tells whether an account exists, neither by its answer nor by its time.
mod attempts;
mod authentication;
mod blocklist;
mod metrics;
mod model;
mod passwords;
mod roles;
mod routes;
mod sessions;
mod settings;
mod users;

use platform::{audit::Refusals, database::Database, http::limits::RateLimiter};

pub use self::attempts::sweep as sweep_attempts;
pub use self::authentication::{Authentication, authenticate};
pub use self::metrics::initialize as initialize_metrics;
pub use self::model::{Email, NewUser, Password, User};
pub use self::passwords::Passwords;
pub use self::roles::{Admin, AuditReader, Customer, CustomerOrSupport, OwnerOrStaff, Role, Staff};
pub use self::routes::routes;
pub use self::sessions::sweep as sweep_sessions;
pub use self::settings::Settings;
pub use self::users::{CreateError, create as create_user};

/// What the routes of accounts work with. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    database: Database,
    refusals: Refusals,
    passwords: Passwords,
    session_ttl: std::time::Duration,
    lockout: attempts::Lockout,
    by_address: std::sync::Arc<RateLimiter<std::net::IpAddr>>,
}

impl Accounts {
    /// Accounts in `database`, under these settings.
    pub fn new(database: Database, refusals: Refusals, settings: &Settings) -> Self {
        Self {
            database,
            refusals,
            passwords: Passwords::new(settings),
            session_ttl: settings.session_ttl,
            lockout: attempts::Lockout::new(settings),
            by_address: std::sync::Arc::new(RateLimiter::per_minute(settings.login_rate)),
        }
    }

    /// Forgets the addresses that have been quiet, so that their number stays bounded.
    pub fn forget_quiet(&self) {
        self.by_address.forget_quiet();
    }
}
