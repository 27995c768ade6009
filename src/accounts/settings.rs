//! The settings of users and sessions.
use std::{num::NonZeroU32, time::Duration};

use platform::settings::values::{count, positive, seconds};

platform::groups! {
    /// Users and sessions.
    accounts: Settings {
        /// Lifetime of a session, in seconds.
        "SESSION_TTL_SECONDS" session_ttl: Duration = seconds, default("43200");
        /// Memory of one password hash, in KiB.
        "ARGON2_MEMORY_KIB" argon2_memory_kib: NonZeroU32 = positive, default("19456");
        /// Passes of one password hash.
        "ARGON2_ITERATIONS" argon2_iterations: NonZeroU32 = positive, default("2");
        /// Lanes of one password hash.
        "ARGON2_PARALLELISM" argon2_parallelism: NonZeroU32 = positive, default("1");
        /// Concurrent password hashes for logins, and as many for registrations. Unset: half of the cores, within 256 MiB in total.
        "PASSWORD_HASHING_CONCURRENCY" password_hashing_concurrency: NonZeroU32 = positive, optional;
        /// Logins and registrations per minute of one address. 0 is off.
        "LOGIN_RATE_PER_ADDRESS_PER_MINUTE" login_rate: u32 = count, default("30");
        /// Failed logins of one account from one address before that address is locked out (NIST AC-7).
        "LOGIN_ATTEMPTS_BEFORE_LOCKOUT" attempts_before_lockout: NonZeroU32 = positive, default("5");
        /// Duration of a lockout, in seconds.
        "LOCKOUT_SECONDS" lockout: Duration = seconds, default("900");
    }
}
