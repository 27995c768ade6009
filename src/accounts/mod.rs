//! Users, their sessions, and authentication.
//!
//! Three rules:
//!
//! - Only [`passwords`] hashes and verifies passwords.
//! - The service sends a session's token only in the response to the login, and stores only the token's hash.
//! - The response to a failed login, and its response time, do not reveal whether the account exists.
mod attempts;
mod authentication;
mod blocklist;
mod credentials;
mod errors;
mod metrics;
mod model;
mod passwords;
mod roles;
mod routes;
mod sessions;
mod settings;
mod users;

use platform::{audit::Denials, database::Database, http::limits::RateLimiter};

pub use self::attempts::sweep as sweep_attempts;
pub use self::authentication::{Authentication, authenticate};
pub use self::errors::AccountError;
pub use self::metrics::initialize as initialize_metrics;
pub use self::model::{Email, NewUser, Password, User};
pub use self::passwords::Passwords;
pub use self::roles::{Admin, AuditReader, Customer, CustomerOrSupport, OwnerOrStaff, Role, Staff};
pub use self::routes::routes;
pub use self::sessions::{end_all as end_all_sessions, end_of as end_sessions_of, sweep as sweep_sessions};
pub use self::settings::Settings;
pub use self::users::create as create_user;

/// State of the account routes. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    database: Database,
    denials: Denials,
    passwords: Passwords,
    session_ttl: std::time::Duration,
    lockout: attempts::Lockout,
    by_address: std::sync::Arc<RateLimiter<std::net::IpAddr>>,
}

impl Accounts {
    /// Creates the state of the account routes.
    pub fn new(database: Database, denials: Denials, settings: &Settings) -> Self {
        Self {
            database,
            denials,
            passwords: Passwords::new(settings),
            session_ttl: settings.session_ttl,
            lockout: attempts::Lockout::new(settings),
            by_address: std::sync::Arc::new(RateLimiter::per_minute(settings.login_rate)),
        }
    }

    /// Removes the counts of idle addresses, so that the memory for them stays bounded.
    pub fn prune_idle(&self) {
        self.by_address.prune_idle();
    }
}
