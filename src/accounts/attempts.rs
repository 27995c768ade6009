//! Failed logins, counted before the password is looked at (NIST SP 800-53 AC-7).
//!
//! Counting afterwards would let a hundred parallel tries through while the first is still being hashed. Unknown
//! accounts are counted like known ones.
use std::{net::IpAddr, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use platform::database::{Database, observe};
use sha2::{Digest, Sha256};

use super::Settings;

/// In place of an address: the account alone.
const FROM_ANYWHERE: &str = "*";

/// How much higher the ceiling for the account alone is, so that a stranger's few bad tries lock the stranger
/// out, and not the owner.
const CEILING_FROM_ANYWHERE: i32 = 10;

/// When an account is locked out, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lockout {
    attempts: i32,
    lasts: Duration,
}

/// What counting an attempt said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// It may be tried.
    Allowed,
    /// There were too many; this one and all further ones fail until the lockout ends.
    LockedOut {
        /// Whether this attempt is the one that began the lockout.
        just_now: bool,
    },
}

/// Stands for an e-mail address that is nobody's. With a key, because addresses can be guessed and tried; with the
/// same one each time, because tries for the same account belong together.
pub(super) struct Pseudonym(String);

impl Pseudonym {
    fn new(key: &[u8], email: &str) -> Self {
        // HMAC takes keys of any length.
        let hash = Hmac::<Sha256>::new_from_slice(key)
            .map(|hmac| hmac.chain_update(email.trim().to_lowercase()).finalize().into_bytes());
        Self(hash.map(hex::encode).unwrap_or_default())
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

impl Lockout {
    pub(super) fn new(settings: &Settings) -> Self {
        let attempts =
            i32::try_from(settings.attempts_before_lockout.get()).unwrap_or(i32::MAX / CEILING_FROM_ANYWHERE);
        Self { attempts: attempts.min(i32::MAX / CEILING_FROM_ANYWHERE), lasts: settings.lockout }
    }

    fn ceiling(self, address: &str) -> i32 {
        if address == FROM_ANYWHERE { self.attempts * CEILING_FROM_ANYWHERE } else { self.attempts }
    }

    /// Counts one attempt, atomically, and says what stands for the account in the trail. Attempts up to the ceiling prolong the memory of them; those beyond it do
    /// not, so that a lockout ends when it was said to end.
    pub(super) async fn count(
        self,
        database: &Database,
        email: &str,
        address: IpAddr,
    ) -> Result<(Counted, Pseudonym), sqlx::Error> {
        let address = address.to_string();
        let account = account(email);
        let statement = sqlx::query!(
            r#"
            insert into login_attempts as known (account, address, attempts, expires_at)
            select $1, who.address, 1, now() + make_interval(secs => $4)
            from unnest($2::text[], $3::integer[]) as who (address, ceiling)
            on conflict (account, address) do update
            set
              attempts = case when known.expires_at < now() then 1 else known.attempts + 1 end,
              expires_at = case
                when known.expires_at < now() or known.attempts < (
                  select who.ceiling
                  from unnest($2::text[], $3::integer[]) as who (address, ceiling)
                  where who.address = known.address
                ) then now() + make_interval(secs => $4)
                else known.expires_at
              end
            returning
              known.address, known.attempts,
              (select pseudonym_key.key from pseudonym_key) as "key!"
            "#,
            account.as_slice(),
            &[address.clone(), FROM_ANYWHERE.to_owned()],
            &[self.ceiling(&address), self.ceiling(FROM_ANYWHERE)],
            self.lasts.as_secs_f64(),
        );
        let mut connection = database.acquire().await?;
        let counts = observe("login_attempts.upsert", statement.fetch_all(&mut *connection)).await?;
        connection.release();
        let over = |beyond: i32| {
            counts.iter().any(|count| count.attempts > self.ceiling(&count.address).saturating_add(beyond))
        };
        let counted = if over(0) { Counted::LockedOut { just_now: !over(1) } } else { Counted::Allowed };
        let key = counts.first().map_or(&[][..], |count| count.key.as_slice());
        Ok((counted, Pseudonym::new(key, email)))
    }

    /// Forgets the attempts from this address after a success, and takes them off the account's own count.
    pub(super) async fn forget(
        self,
        database: &Database,
        email: &str,
        address: IpAddr,
    ) -> Result<(), sqlx::Error> {
        let account = account(email);
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
            account.as_slice(),
            address.to_string(),
            FROM_ANYWHERE,
        );
        let mut connection = database.acquire().await?;
        observe("login_attempts.delete", statement.execute(&mut *connection)).await?;
        connection.release();
        Ok(())
    }
}

/// Deletes counts whose time is over, a batch at a time; says how many.
///
/// # Errors
/// The statement's.
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
    let mut connection = database.acquire().await?;
    Ok(observe("login_attempts.delete", statement.execute(&mut *connection)).await?.rows_affected())
}

/// What stands for an account: a hash, so that the table does not collect the addresses of strangers.
fn account(email: &str) -> [u8; 32] {
    Sha256::digest(email.trim().to_lowercase()).into()
}
