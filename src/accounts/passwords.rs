//! Hashing and verification of passwords with argon2id (RFC 9106), on a limited number of blocking threads.
//!
//! A hash takes tens of milliseconds and tens of megabytes by design. Requests therefore never hash on the async
//! threads, and the number of concurrent hashes is limited. Otherwise a burst of logins would take the memory and the
//! processors from all other requests.
//!
//! Verifications (logins) and new hashes (registrations) have separate permits, so that neither can block the other. A
//! password change, and a login that replaces an outdated hash, need one permit of each kind in turn.
use std::{num::NonZeroU32, sync::Arc, thread::available_parallelism};

use argon2::{
    Algorithm, Argon2, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use tokio::sync::Semaphore;

use super::Settings;
use super::model::Password;

/// Maximum memory of all concurrent hashes in KiB, if `PASSWORD_HASHING_CONCURRENCY` is not set. This is half of the
/// 512 MiB that a pod may use in `deploy/kubernetes`.
const MAX_HASHING_MEMORY_KIB: u32 = 256 * 1024;

/// Hashes and verifies passwords. Cheap to clone.
#[derive(Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    logins: Arc<Semaphore>,
    registrations: Arc<Semaphore>,
    /// Hash that is verified at a login to an account that does not exist. With this hash, such a login takes as long
    /// as a login to an existing account.
    dummy_hash: Arc<str>,
}

/// Error of hashing or verifying a password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The hash algorithm failed.
    #[error("failed to hash the password: {0}")]
    Hash(#[from] argon2::password_hash::Error),
    /// The stored password hash is not a valid PHC string.
    #[error("failed to parse the stored password hash: {0}")]
    Stored(argon2::password_hash::phc::Error),
    /// The process is shutting down, or the hashing thread panicked.
    #[error("the hashing was cancelled")]
    Cancelled,
}

impl Passwords {
    /// Creates a hasher with the parameters of the settings.
    pub fn new(settings: &Settings) -> Self {
        // The settings are checked, so the default is never used.
        let params = settings.argon2_params().unwrap_or_default();
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let dummy_hash = argon2.hash_password(b"dummy").map(|hash| hash.to_string()).unwrap_or_default();
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let permits = settings
            .password_hashing_concurrency
            .map_or_else(|| default_permits(cores, settings.argon2_memory_kib), NonZeroU32::get);
        // `Semaphore::new` panics above `MAX_PERMITS`.
        let permits = usize::try_from(permits).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            argon2,
            logins: Arc::new(Semaphore::new(permits)),
            registrations: Arc::new(Semaphore::new(permits)),
            dummy_hash: dummy_hash.into(),
        }
    }

    /// Returns a hash of the password to store, with a new salt.
    ///
    /// # Errors
    /// If the hash algorithm fails, the process is shutting down, or the hashing thread panics.
    pub async fn hash(&self, password: &Password) -> Result<String, PasswordError> {
        let (argon2, password) = (self.argon2.clone(), password.clone());
        run_blocking(&self.registrations, move || {
            Ok(argon2.hash_password(password.expose().as_bytes())?.to_string())
        })
        .await
    }

    /// Returns whether the password matches the hash. Without a hash (the user does not exist), the verification takes
    /// the same time and returns `false`.
    ///
    /// # Errors
    /// If the stored hash cannot be parsed, the process is shutting down, or the hashing thread panics.
    pub(super) async fn verify(
        &self,
        password: &Password,
        hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        let (argon2, password, dummy_hash) = (self.argon2.clone(), password.clone(), self.dummy_hash.clone());
        run_blocking(&self.logins, move || {
            let exists = hash.is_some();
            let hash = hash.as_deref().unwrap_or(&dummy_hash);
            let hash = PasswordHash::new(hash).map_err(PasswordError::Stored)?;
            let matches = argon2.verify_password(password.expose().as_bytes(), &hash).is_ok();
            Ok(matches && exists)
        })
        .await
    }

    /// Returns whether the parameters of a hash differ from those of the settings. Callers check this at a login,
    /// because the password that a new hash needs is available only then.
    pub(super) fn is_outdated(&self, hash: &str) -> bool {
        parameters(hash) != parameters(&self.dummy_hash)
    }
}

/// Returns the maximum number of concurrent hashes for logins, which is also the maximum for registrations. Logins and
/// registrations each get half of the cores. Together they use at most [`MAX_HASHING_MEMORY_KIB`], unless a single hash
/// of each needs more.
fn default_permits(cores: usize, memory_per_hash_kib: NonZeroU32) -> u32 {
    let by_cores = u32::try_from(cores / 2).unwrap_or(u32::MAX);
    by_cores.min(MAX_HASHING_MEMORY_KIB / 2 / memory_per_hash_kib).max(1)
}

/// Returns a PHC string without its salt and its hash.
fn parameters(hash: &str) -> Option<&str> {
    hash.rsplitn(3, '$').nth(2)
}

async fn run_blocking<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
) -> Result<T, PasswordError> {
    let permit = permits.clone().acquire_owned().await.map_err(|_| PasswordError::Cancelled)?;
    let task = tokio::task::spawn_blocking(move || {
        let result = work();
        // The permit is held until the work ends, because the task that waits for the result may be cancelled earlier.
        drop(permit);
        result
    });
    task.await.map_err(|_| PasswordError::Cancelled)?
}

#[cfg(test)]
mod tests {
    use platform::settings::Reader;

    use super::*;

    /// Returns a hasher of low cost.
    fn passwords(iterations: &'static str) -> Passwords {
        let source = move |name: &str| match name {
            "ARGON2_MEMORY_KIB" => Some("64".to_owned()),
            "ARGON2_ITERATIONS" => Some(iterations.to_owned()),
            _ => None,
        };
        Passwords::new(&Settings::read(&mut Reader::new(source)).unwrap())
    }

    #[tokio::test]
    async fn only_the_password_of_an_existing_user_is_verified() {
        let passwords = passwords("1");
        let secret = Password::new("correct horse");
        let hash = passwords.hash(&secret).await.unwrap();
        assert!(passwords.verify(&secret, Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(&Password::new("battery staple"), Some(hash)).await.unwrap());
        assert!(!passwords.verify(&secret, None).await.unwrap());
        assert!(!passwords.verify(&Password::new("nobody"), None).await.unwrap());
    }

    #[tokio::test]
    async fn a_hash_with_other_parameters_is_outdated() {
        let hash = passwords("1").hash(&Password::new("correct horse")).await.unwrap();
        assert!(!passwords("1").is_outdated(&hash));
        assert!(passwords("2").is_outdated(&hash));
    }

    #[test]
    fn parameters_exclude_the_salt_and_the_hash() {
        let hash = |parameters, rest| format!("$argon2id$v=19${parameters}${rest}");
        let weak = hash("m=64,t=1,p=1", "c2FsdA$aGFzaA");
        assert_eq!(parameters(&weak), Some("$argon2id$v=19$m=64,t=1,p=1"));
        assert_eq!(parameters(&weak), parameters(&hash("m=64,t=1,p=1", "b3RoZXI$b3RoZXI")));
        assert_ne!(parameters(&weak), parameters(&hash("m=64,t=2,p=1", "c2FsdA$aGFzaA")));
    }

    #[test]
    fn hashing_permits_depend_on_cores_and_are_bounded_by_memory() {
        let permits = |cores, memory_kib| default_permits(cores, NonZeroU32::new(memory_kib).unwrap());
        assert_eq!([permits(1, 19_456), permits(2, 19_456), permits(8, 19_456)], [1, 1, 4]);
        assert_eq!(permits(64, 19_456), 6, "six permits for logins and six for registrations use 228 MiB");
        assert_eq!(permits(64, 64), 32);
        assert_eq!(permits(64, 1024 * 1024), 1, "there must be at least one permit");
    }
}
