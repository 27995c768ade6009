//! Attempts to log in or to change a password, counted for lockouts (NIST SP 800-53 AC-7). Each attempt is counted
//! before the password is verified. If the password is correct and no limit is exceeded, the account's attempts from
//! the client's network are removed from the counts.
//!
//! Hashing a password is slow. If attempts were counted after the verification, a hundred parallel attempts could pass
//! the limit before the first one is counted. Attempts on unknown accounts are counted too, so that a lockout does not
//! reveal whether an account exists. Attempts are counted by `ClientAddress::network`, like the rate limits, because a
//! client with one address of an IPv6 /64 network usually controls the whole network.
use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use platform::database::Database;
use sha2::Sha256;

use super::Settings;

/// Value of the column `address` in the row that counts an account's attempts from all networks.
const ALL_NETWORKS: &str = "*";

/// Factor between an account's limit for all networks and its limit for one network. With the same limit for both, a
/// few failed attempts of an attacker in one network would lock the owner out everywhere.
const ALL_NETWORKS_FACTOR: i32 = 10;

/// Maximum number of attempts for one account from one network, duration of a lockout, and key for hashing e-mail
/// addresses to [`Pseudonym`]s. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lockout {
    attempts: i32,
    duration: Duration,
    /// Key of the pseudonyms. The key is read from the database at the first attempt, and never changes.
    key: Arc<OnceLock<Vec<u8>>>,
}

/// Result of counting an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptResult {
    /// The attempt is within the limits.
    Allowed,
    /// The attempt exceeds the limit for its network, or the limit for all networks. This attempt fails even with the
    /// correct password. Later attempts to which the exceeded limit applies fail too, until the lockout ends.
    LockedOut {
        /// True for the attempt that began the lockout.
        begins: bool,
    },
}

/// Keyed hash of an e-mail address, in the table of attempts and in the audit log. The same address has the same hash
/// in both, and a copy of either does not reveal the address. With an unkeyed hash, an attacker could hash guessed
/// addresses and compare the results.
pub(super) struct Pseudonym([u8; 32]);

impl Pseudonym {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    fn new(key: &[u8], email: &str) -> Self {
        let hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC rejected the length of the key");
        Self(hmac.chain_update(email.trim().to_lowercase()).finalize().into_bytes().into())
    }

    pub(super) fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl Lockout {
    pub(super) fn new(settings: &Settings) -> Self {
        let attempts =
            i32::try_from(settings.attempts_before_lockout.get()).unwrap_or(i32::MAX / ALL_NETWORKS_FACTOR);
        Self {
            attempts: attempts.min(i32::MAX / ALL_NETWORKS_FACTOR),
            duration: settings.lockout,
            key: Arc::default(),
        }
    }

    /// Returns the pseudonym of an e-mail address, whether or not a user has this address.
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

    /// Adds one attempt to two counts, atomically: the account's attempts from this network, and from all networks. The
    /// second count excludes attempts beyond the network's own limit. Otherwise one network could lock the owner out
    /// everywhere.
    ///
    /// In the count of a network, attempts up to the limit extend the expiry, so a lockout ends one configured duration
    /// after the last attempt within the limit. The count of all networks expires one duration after its first attempt,
    /// and a lockout extends it once. If every attempt extended it, one or two networks could lock the owner out
    /// everywhere with a few attempts per duration.
    pub(super) async fn count(
        &self,
        database: &Database,
        account: &Pseudonym,
        network: IpAddr,
    ) -> Result<AttemptResult, sqlx::Error> {
        let (limit, limit_of_all_networks) = (self.attempts, self.attempts * ALL_NETWORKS_FACTOR);
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
                  when known.expires_at < now() or known.attempts = $5 then now() + make_interval(secs => $6)
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
            limit,
            ALL_NETWORKS,
            limit_of_all_networks,
            self.duration.as_secs_f64(),
        );
        let attempts = database
            .run("login_attempts.upsert", async |connection| statement.fetch_one(connection).await)
            .await?;
        let beyond_network = attempts.from_network.saturating_sub(limit);
        let beyond_all_networks =
            attempts.from_anywhere.unwrap_or_default().saturating_sub(limit_of_all_networks);
        Ok(match beyond_network.max(beyond_all_networks) {
            ..=0 => AttemptResult::Allowed,
            beyond => AttemptResult::LockedOut { begins: beyond == 1 },
        })
    }

    /// Deletes the attempts from this network after a successful verification, and subtracts them from the count for
    /// all networks. That count stays at least 1, because the table accepts no lower value.
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
            ALL_NETWORKS,
        );
        database.run("login_attempts.delete", async |connection| statement.execute(connection).await).await?;
        Ok(())
    }
}

/// Deletes a batch of expired attempt counts, and returns the number of deleted rows.
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
    fn the_limit_for_all_networks_does_not_overflow() {
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
