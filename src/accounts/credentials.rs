//! Registration, login and the change of a password: everything that verifies or sets credentials.
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

/// Maximum number of verifications of one request's credentials. The second verification follows if the hash was
/// replaced after the first. Either another password replaced it, and the request is refused, or a concurrent login
/// renewed the hash.
const MAX_VERIFICATIONS: u32 = 2;

impl Accounts {
    /// Registers a customer.
    pub(super) async fn register(&self, email: &Email, new: &NewUser) -> Result<User, AccountError> {
        let hash = self.passwords.hash(&new.password).await?;
        users::create(&self.database, email, &new.name, &hash, Role::Customer).await
    }

    /// Begins a session of the user with these credentials.
    pub(super) async fn log_in(
        &self,
        credentials: &Credentials,
        client: ClientAddress,
    ) -> Result<NewSession, AccountError> {
        let token = Token::generate()?;
        for _ in 0..MAX_VERIFICATIONS {
            let UserRecord { user, password_hash } = self.recognise(credentials, client).await?;
            let hash = self.rehash_if_outdated(&user, password_hash, &credentials.password).await?;
            let begun = sessions::begin(&self.database, &user, &hash, &token, self.session_ttl).await?;
            if let Some(expires_at) = begun {
                return Ok(NewSession { token: token.into_text(), expires_at, user });
            }
        }
        Err(AccountError::HashReplaced)
    }

    /// Changes the password of the caller, which ends every session of the caller.
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
            let verified = self.recognise(&credentials, client).await?;
            let hash = self.passwords.hash(&change.new_password).await?;
            if users::change_password(&self.database, &verified, &hash).await? {
                return Ok(());
            }
        }
        Err(AccountError::HashReplaced)
    }

    /// Returns the user of the caller's session.
    pub(super) async fn current_user(&self, caller: &Caller) -> Result<User, AccountError> {
        let found = users::by_id(&self.database, caller.user_id).await?;
        Ok(found.ok_or(AccountError::UserNotFound)?.user)
    }

    /// Returns the user of these credentials, and the hash that the password was verified against. The attempt is
    /// counted before the password is verified, and a hash is computed in every case.
    async fn recognise(
        &self,
        credentials: &Credentials,
        client: ClientAddress,
    ) -> Result<UserRecord, AccountError> {
        let account = self.lockout.pseudonym(&self.database, &credentials.email).await?;
        let counted = self.lockout.count(&self.database, &account, client.network()).await?;
        let found = match Email::parse(&credentials.email) {
            Some(email) => users::by_email(&self.database, &email).await?,
            None => None,
        };
        let hash = found.as_ref().map(|found| found.password_hash.clone());
        let fits = self.passwords.verify(&credentials.password, hash).await?;
        match (fits, counted, found) {
            (true, AttemptResult::Allowed, Some(found)) => {
                self.lockout.forget(&self.database, &account, client.network()).await?;
                Ok(found)
            }
            (_, counted, found) => {
                self.record_refusal(counted, found.map(|found| found.user), &account).await?;
                Err(AccountError::BadCredentials)
            }
        }
    }

    /// Hashes the password again if the parameters of its hash differ from the settings. Returns the user's hash.
    async fn rehash_if_outdated(
        &self,
        user: &User,
        hash: String,
        password: &Password,
    ) -> Result<String, AccountError> {
        if self.passwords.is_outdated(&hash) {
            let renewed = self.passwords.hash(password).await?;
            if users::renew_hash(&self.database, user, &hash, &renewed).await? {
                return Ok(renewed);
            }
        }
        Ok(hash)
    }

    /// Counts and audits a refused login.
    async fn record_refusal(
        &self,
        counted: AttemptResult,
        user: Option<User>,
        account: &Pseudonym,
    ) -> Result<(), AccountError> {
        let (reason, action) = match counted {
            AttemptResult::Allowed => ("bad_credentials", "login"),
            AttemptResult::LockedOut { just_now: true } => ("locked_out", "lockout"),
            AttemptResult::LockedOut { just_now: false } => ("locked_out", "login"),
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
