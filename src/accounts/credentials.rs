//! The methods that the routes call for registration, login, the change of a password, and the current user.
use platform::{
    audit::{Event, EventResult, EventType},
    http::client_address::ClientAddress,
    identity::Caller,
};

use super::{
    Accounts, Role,
    attempts::{AttemptResult, Pseudonym},
    errors::AccountError,
    metrics::AUTHENTICATION_FAILURES,
    model::{Credentials, Email, NewSession, NewUser, Password, PasswordChange, User},
    sessions::{self, Token},
    users::{self, UserRecord},
};

/// Maximum number of verifications of one request's credentials. A concurrent request can replace the hash after the
/// first verification. The second verification fails if the concurrent request changed the password, and succeeds if
/// that request only rehashed the same password.
const MAX_VERIFICATIONS: u32 = 2;

impl Accounts {
    /// Registers a customer.
    pub(super) async fn register(&self, email: &Email, new: &NewUser) -> Result<User, AccountError> {
        let hash = self.passwords.hash(&new.password).await?;
        users::create(&self.database, email, &new.name, &hash, Role::Customer).await
    }

    /// Verifies these credentials, and begins a session of their user.
    pub(super) async fn log_in(
        &self,
        credentials: &Credentials,
        client: ClientAddress,
    ) -> Result<NewSession, AccountError> {
        let token = Token::generate()?;
        for _ in 0..MAX_VERIFICATIONS {
            let UserRecord { user, password_hash } = self.verify(credentials, client).await?;
            let hash = self.rehash_if_outdated(&user, password_hash, &credentials.password).await?;
            let begun = sessions::begin(&self.database, &user, &hash, &token, self.session_ttl).await?;
            if let Some(expires_at) = begun {
                return Ok(NewSession { token: token.into_text(), expires_at, user });
            }
        }
        Err(AccountError::HashReplaced)
    }

    /// Changes the caller's password, and ends every session of the caller.
    pub(super) async fn change_password(
        &self,
        caller: &Caller,
        change: PasswordChange,
        client: ClientAddress,
    ) -> Result<(), AccountError> {
        let user = self.current_user(caller).await?;
        if let Some(rule) = change.new_password.weakness(&user.email, &user.name) {
            return Err(AccountError::WeakPassword(rule));
        }
        let credentials = Credentials { email: user.email, password: change.current_password };
        for _ in 0..MAX_VERIFICATIONS {
            let verified = self.verify(&credentials, client).await?;
            let hash = self.passwords.hash(&change.new_password).await?;
            if users::change_password(&self.database, &verified, &hash).await? {
                return Ok(());
            }
        }
        Err(AccountError::HashReplaced)
    }

    /// Returns the user of the caller's session.
    pub(super) async fn current_user(&self, caller: &Caller) -> Result<User, AccountError> {
        let record = users::by_id(&self.database, caller.user_id).await?;
        Ok(record.ok_or(AccountError::UserNotFound)?.user)
    }

    /// Verifies these credentials, and counts and audits a failure. Returns their user, and the hash that the password
    /// was verified against. The attempt is counted before the password is verified. A hash is computed even for an
    /// unknown or locked account, so that the response time does not reveal the reason of a failure.
    async fn verify(
        &self,
        credentials: &Credentials,
        client: ClientAddress,
    ) -> Result<UserRecord, AccountError> {
        let account = self.lockout.pseudonym(&self.database, &credentials.email).await?;
        let attempt = self.lockout.count(&self.database, &account, client.network()).await?;
        let record = match Email::parse(&credentials.email) {
            Some(email) => users::by_email(&self.database, &email).await?,
            None => None,
        };
        let hash = record.as_ref().map(|record| record.password_hash.clone());
        let matches = self.passwords.verify(&credentials.password, hash).await?;
        match (matches, attempt, record) {
            (true, AttemptResult::Allowed, Some(record)) => {
                self.lockout.forget(&self.database, &account, client.network()).await?;
                Ok(record)
            }
            (_, attempt, record) => {
                self.record_failure(attempt, record.map(|record| record.user), &account).await?;
                Err(AccountError::BadCredentials)
            }
        }
    }

    /// Hashes the password again if the parameters of its hash differ from the settings. Returns the new hash if it was
    /// stored, otherwise the given hash.
    async fn rehash_if_outdated(
        &self,
        user: &User,
        hash: String,
        password: &Password,
    ) -> Result<String, AccountError> {
        if self.passwords.is_outdated(&hash) {
            let renewed = self.passwords.hash(password).await?;
            if users::replace_hash(&self.database, user, &hash, &renewed).await? {
                return Ok(renewed);
            }
        }
        Ok(hash)
    }

    /// Counts and audits the failed verification of credentials.
    async fn record_failure(
        &self,
        attempt: AttemptResult,
        user: Option<User>,
        account: &Pseudonym,
    ) -> Result<(), AccountError> {
        let (reason, action) = match attempt {
            AttemptResult::Allowed => ("bad_credentials", "login"),
            AttemptResult::LockedOut { begins: true } => ("locked_out", "lockout"),
            AttemptResult::LockedOut { begins: false } => ("locked_out", "login"),
        };
        AUTHENTICATION_FAILURES.with_label_values(&[reason]).inc();
        let mut event = Event::new(EventType::Authentication, "sessions", action, EventResult::Failure)
            .with("reason", reason);
        event = match user {
            Some(user) => event.by(user.id, user.role.as_str()),
            None => event.with("unknown_account", account.to_hex()),
        };
        Ok(self.denials.record(event).await?)
    }
}
