//! The settings of users and sessions.
use std::{num::NonZeroU32, time::Duration};

use argon2::Params;
use platform::settings::{
    Reader,
    values::{positive, positive_seconds, rate},
};

platform::groups! {
    /// Users and sessions.
    accounts: Settings {
        /// Lifetime of a session, in seconds.
        "SESSION_TTL_SECONDS" session_ttl: Duration = positive_seconds, default("43200");
        /// Memory of one password hash, in KiB.
        "ARGON2_MEMORY_KIB" argon2_memory_kib: NonZeroU32 = positive, default("19456");
        /// Passes of one password hash.
        "ARGON2_ITERATIONS" argon2_iterations: NonZeroU32 = positive, default("2");
        /// Lanes of one password hash.
        "ARGON2_PARALLELISM" argon2_parallelism: NonZeroU32 = positive, default("1");
        /// Maximum number of concurrent password hashes for logins, and as many for registrations. Unset: half of the cores for each, with at most 256 MiB of memory together.
        "PASSWORD_HASHING_CONCURRENCY" password_hashing_concurrency: NonZeroU32 = positive, optional;
        /// Maximum number of logins, registrations and password changes per minute from one address. 0 disables the limit.
        "LOGIN_RATE_PER_ADDRESS_PER_MINUTE" login_rate: u32 = rate, default("30");
        /// Failed logins and password changes of one account from one address, before that address is locked out of the account (NIST AC-7).
        "LOGIN_ATTEMPTS_BEFORE_LOCKOUT" attempts_before_lockout: NonZeroU32 = positive, default("5");
        /// Duration of a lockout, in seconds.
        "LOCKOUT_SECONDS" lockout: Duration = positive_seconds, default("900");
    }
}

impl Settings {
    /// Returns the parameters of password hashes.
    ///
    /// # Errors
    /// If argon2 does not support the combination of memory, passes and lanes.
    pub fn argon2_params(&self) -> Result<Params, argon2::Error> {
        Params::new(
            self.argon2_memory_kib.get(),
            self.argon2_iterations.get(),
            self.argon2_parallelism.get(),
            None,
        )
    }

    /// Checks the rules between these settings.
    pub fn check(&self, reader: &mut Reader) {
        if self.argon2_params().is_err() {
            reader.mistake("ARGON2_MEMORY_KIB", "must be at least eight times ARGON2_PARALLELISM");
        }
    }
}
