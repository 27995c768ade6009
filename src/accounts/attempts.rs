//! Failed logins, counted before the password is verified (NIST SP 800-53 AC-7).
//!
//! If attempts were counted after verification, a hundred parallel attempts could pass while the first is still being
//! hashed. Unknown accounts are counted like known ones. Attempts are counted by `ClientAddress::network`, like the
//! rate limits. A client with one address of an IPv6 network of 64 bits usually has all of them.
use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use platform::database::Database;
use sha2::Sha256;

use super::Settings;

/// Replaces the network in the count for the account alone.
const FROM_ANYWHERE: &str = "*";

/// Factor between the ceiling for the account alone and the ceiling for one network. With the same ceiling, five failed attempts of an attacker would lock the owner out.
const CEILING_FROM_ANYWHERE: i32 = 10;

/// Limit of failed logins and duration of a lockout. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lockout {
    attempts: i32,
    lasts: Duration,
    /// Key of the pseudonyms, read from the database before the first attempt. The key never changes.
    key: Arc<OnceLock<Vec<u8>>>,
}

/// Result of counting an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptResult {
    /// The password may be verified.
    Allowed,
    /// Too many attempts were made. This attempt and all later ones fail until the lockout ends.
    LockedOut {
        /// True for the attempt that began the lockout.
        just_now: bool,
    },
}

/// Keyed hash of an e-mail address, in the table of attempts and in the audit log. Rows of both can be joined by the
/// hash, and a copy of either does not reveal the addresses. The hash has a key because e-mail addresses can be
/// guessed.
pub(super) struct Pseudonym([u8; 32]);

impl Pseudonym {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    fn new(key: &[u8], email: &str) -> Self {
        let hmac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
        Self(hmac.chain_update(email.trim().to_lowercase()).finalize().into_bytes().into())
    }

    pub(super) fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl Lockout {
    pub(super) fn new(settings: &Settings) -> Self {
        let attempts =
            i32::try_from(settings.attempts_before_lockout.get()).unwrap_or(i32::MAX / CEILING_FROM_ANYWHERE);
        Self {
            attempts: attempts.min(i32::MAX / CEILING_FROM_ANYWHERE),
            lasts: settings.lockout,
            key: Arc::default(),
        }
    }

    /// Returns the pseudonym of an e-mail address, whether or not a user has it.
    pub(super) async fn pseudonym(&self, database: &Database, email: &str) -> Result<Pseudonym, sqlx::Error> {
        if let Some(key) = self.key.get() {
            return Ok(Pseudonym::new(key, email));
        }
        let statement = sqlx::query_scalar!("select key from pseudonym_key");
        let key = database
            .run("pseudonym_key.select", async |connection| statement.fetch_one(connection).await)
            .await?;
        Ok(Pseudonym::new(self.key.get_or_init(|| key), email))
    }

    /// Counts one attempt, atomically, for the account from this network and for the account alone. An attempt that the
    /// network's own lockout rejects does not count for the account alone. Otherwise one network could lock the owner
    /// out everywhere.
    ///
    /// Attempts up to the ceiling extend the expiry of the count. Attempts beyond the ceiling do not, so that a lockout
    /// ends after its configured duration.
    pub(super) async fn count(
        &self,
        database: &Database,
        account: &Pseudonym,
        network: IpAddr,
    ) -> Result<AttemptResult, sqlx::Error> {
        let (ceiling, ceiling_from_anywhere) = (self.attempts, self.attempts * CEILING_FROM_ANYWHERE);
        let statement = sqlx::query!(
            r#"
            with from_network as (
              insert into login_attempts as known (account, address, attempts, expires_at)
              values ($1, $2, 1, now() + make_interval(secs => $6))
              on conflict (account, address) do update
              set
                attempts = case when known.expires_at < now() then 1 else known.attempts + 1 end,
                expires_at = case
                  when known.expires_at < now() or known.attempts < $3 then now() + make_interval(secs => $6)
                  else known.expires_at
                end
              returning attempts
            ), from_anywhere as (
              insert into login_attempts as known (account, address, attempts, expires_at)
              select $1, $4, 1, now() + make_interval(secs => $6)
              from from_network
              where from_network.attempts <= $3
              on conflict (account, address) do update
              set
                attempts = case when known.expires_at < now() then 1 else known.attempts + 1 end,
                expires_at = case
                  when known.expires_at < now() or known.attempts < $5 then now() + make_interval(secs => $6)
                  else known.expires_at
                end
              returning attempts
            )
            select
              from_network.attempts as "from_network!",
              from_anywhere.attempts as "from_anywhere?"
            from from_network
            left join from_anywhere on true
            "#,
            account.0.as_slice(),
            network.to_string(),
            ceiling,
            FROM_ANYWHERE,
            ceiling_from_anywhere,
            self.lasts.as_secs_f64(),
        );
        let attempts = database
            .run("login_attempts.upsert", async |connection| statement.fetch_one(connection).await)
            .await?;
        let beyond_network = attempts.from_network.saturating_sub(ceiling);
        let beyond_anywhere =
            attempts.from_anywhere.unwrap_or_default().saturating_sub(ceiling_from_anywhere);
        Ok(match beyond_network.max(beyond_anywhere) {
            ..=0 => AttemptResult::Allowed,
            beyond => AttemptResult::LockedOut { just_now: beyond == 1 },
        })
    }

    /// Deletes the attempts from this network after a success, and subtracts them from the account's own count.
    pub(super) async fn forget(
        &self,
        database: &Database,
        account: &Pseudonym,
        network: IpAddr,
    ) -> Result<(), sqlx::Error> {
        let statement = sqlx::query!(
            r#"
            with forgotten as (
              delete from login_attempts
              where account = $1 and address = $2
              returning attempts
            )
            update login_attempts
            set attempts = greatest(login_attempts.attempts - forgotten.attempts, 1)
            from forgotten
            where account = $1 and address = $3
            "#,
            account.0.as_slice(),
            network.to_string(),
            FROM_ANYWHERE,
        );
        database.run("login_attempts.delete", async |connection| statement.execute(connection).await).await?;
        Ok(())
    }
}

/// Deletes a batch of expired counts and returns their number.
pub async fn sweep(database: &Database) -> Result<u64, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        delete from login_attempts
        where (account, address) in (
          select account, address
          from login_attempts
          where expires_at < now()
          order by expires_at
          limit 1000
          for update skip locked
        )
        "#
    );
    let deleted =
        database.run("login_attempts.delete", async |connection| statement.execute(connection).await).await?;
    Ok(deleted.rows_affected())
}

#[cfg(test)]
mod tests {
    use platform::settings::Reader;

    use super::*;

    fn lockout(attempts: &'static str) -> Lockout {
        let source = move |name: &str| (name == "LOGIN_ATTEMPTS_BEFORE_LOCKOUT").then(|| attempts.to_owned());
        Lockout::new(&Settings::read(&mut Reader::new(source)).unwrap())
    }

    #[test]
    fn the_ceiling_for_the_account_alone_does_not_overflow() {
        assert_eq!([lockout("1").attempts, lockout("5").attempts, lockout("1000").attempts], [1, 5, 1000]);
        for attempts in ["214748365", "2147483647", "2147483648", "4294967295"] {
            assert_eq!(lockout(attempts).attempts, 214_748_364, "{attempts}");
        }
    }

    #[test]
    fn a_pseudonym_depends_on_the_key_and_the_account_alone() {
        let pseudonym = |key: &str, email| Pseudonym::new(key.as_bytes(), email).to_hex();
        let ada = pseudonym("key", "ada@example.com");
        assert_eq!(ada.len(), 64);
        assert_eq!(pseudonym("key", " Ada@Example.COM "), ada);
        assert_ne!(pseudonym("other", "ada@example.com"), ada);
        assert_ne!(pseudonym("key", "bob@example.com"), ada);
    }
}
