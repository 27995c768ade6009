//! The reasons why a request about an account is rejected, or fails.
use rand::rngs::SysError;

use super::passwords::PasswordError;

/// A rejected or failed request about an account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Another user has the e-mail address.
    #[error("the e-mail address belongs to another user")]
    EmailTaken,
    /// The credentials are wrong, or the account is locked out. The response must not reveal which of the two is the
    /// reason.
    #[error("the credentials are wrong, or the account is locked out")]
    BadCredentials,
    /// The new password breaks this rule.
    #[error("the new password {0}")]
    WeakPassword(&'static str),
    /// The user of the session no longer exists.
    #[error("the user of the session no longer exists")]
    UserNotFound,
    /// Concurrent requests replaced the password's hash after each verification.
    #[error("concurrent requests replaced the hash of the password")]
    HashReplaced,
    /// A password could not be hashed, or could not be compared with its stored hash.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The operating system returned no random numbers for a token.
    #[error("failed to generate a token: {0}")]
    Random(#[from] SysError),
    /// A statement failed, or the database is unreachable.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}
