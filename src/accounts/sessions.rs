//! The sessions table. A token has 256 random bits, and only its SHA-256 is stored.
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use platform::{
    audit::{self, Event, EventResult, EventType, PendingEvent},
    database::{Database, instrument_query},
    identity::Caller,
};
use rand::{
    TryRng,
    rngs::{SysError, SysRng},
};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Role,
    model::{Email, User},
    users::role,
};

/// Bearer token of a session.
pub(super) struct Token(String);

impl Token {
    /// Generates a token from the operating system's random numbers.
    pub(super) fn generate() -> Result<Self, SysError> {
        let mut bytes = [0; 32];
        SysRng.try_fill_bytes(&mut bytes)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }

    fn hash(&self) -> [u8; 32] {
        hash(&self.0)
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Begins a session and audits the login in one statement, so that no login goes unaudited. Returns the session's
/// expiry.
///
/// Returns `None`, and changes nothing, if the user no longer has `verified_hash`. The statement locks the user's row,
/// and so waits for a concurrent password change to commit. Without the lock, the password change would not see this
/// session and could not end it, so the session would outlive the old password.
pub(super) async fn begin(
    database: &Database,
    user: &User,
    verified_hash: &str,
    token: &Token,
    ttl: std::time::Duration,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let (id, token_hash) = (Uuid::now_v7(), token.hash());
    let event = Event::new(EventType::Authentication, "sessions", "login", EventResult::Success)
        .by(user.id, user.role.as_str())
        .records([id]);
    let statement = sqlx::query!(
        r#"
        with begun as (
          insert into sessions (id, user_id, token_hash, expires_at)
          select $1, users.id, $3, now() + make_interval(secs => $4)
          from users
          where users.id = $2 and users.password_hash = $6
          for share
          returning expires_at
        )
        select expires_at as "expires_at!", record_audit_event($5)
        from begun
        "#,
        id,
        user.id,
        token_hash.as_slice(),
        ttl.as_secs_f64(),
        event.to_json(),
        verified_hash,
    );
    let begun = database
        .run("sessions.insert", async |connection| statement.fetch_optional(connection).await)
        .await?;
    Ok(begun.map(|begun| {
        event.log_and_count();
        begun.expires_at
    }))
}

/// Returns the caller whose session has this token, unless the session is unknown or has expired.
pub(super) async fn caller(database: &Database, token: &str) -> Result<Option<Caller>, sqlx::Error> {
    let token_hash = hash(token);
    let statement = sqlx::query!(
        r#"
        select sessions.id, sessions.user_id, users.role
        from sessions
        join users on users.id = sessions.user_id
        where sessions.token_hash = $1 and sessions.expires_at > now()
        "#,
        token_hash.as_slice(),
    );
    let row = database
        .run("sessions.select", async |connection| statement.fetch_optional(connection).await)
        .await?;
    row.map(|row| Ok(Caller { user_id: row.user_id, role: role(&row.role)?.as_str(), session_id: row.id }))
        .transpose()
}

/// Ends the caller's session, and audits the logout if the session still existed.
pub(super) async fn end(database: &Database, caller: &Caller) -> Result<(), sqlx::Error> {
    let event = Event::new(EventType::Authentication, "sessions", "logout", EventResult::Success)
        .records([caller.session_id]);
    let statement = sqlx::query!(
        r#"
        with ended as (
          delete from sessions where id = $1 returning id
        )
        select record_audit_event($2)
        from ended
        "#,
        caller.session_id,
        event.to_json(),
    );
    let ended = database
        .run("sessions.delete", async |connection| statement.fetch_optional(connection).await)
        .await?;
    if ended.is_some() {
        event.log_and_count();
    }
    Ok(())
}

/// Ends every session after a restore of the database, because the restore can bring back sessions that had ended.
/// Records one audit event for all of them. Returns the number of ended sessions, and the event that the caller must
/// log after the commit.
pub async fn end_all(
    connection: &mut PgConnection,
    reason: &str,
) -> Result<(u64, PendingEvent), sqlx::Error> {
    let statement = sqlx::query!("delete from sessions");
    let ended =
        instrument_query("sessions.delete", statement.execute(&mut *connection)).await?.rows_affected();
    let event = Event::new(EventType::Authentication, "sessions", "end_all", EventResult::Success)
        .with("reason", reason)
        .with("record_count", ended);
    Ok((ended, audit::record_with(connection, event).await?))
}

/// Ends every session of a user, with one audit event. Returns the number of ended sessions, or `None` if no user has
/// this e-mail address.
pub async fn end_of(database: &Database, email: &Email, reason: &str) -> Result<Option<u64>, sqlx::Error> {
    let mut transaction = database.begin().await?;
    let statement = sqlx::query!(
        r#"
        with ended as (
          delete from sessions using users
          where users.id = sessions.user_id and users.email = $1
          returning sessions.id
        )
        select users.id, (select count(*) from ended) as "ended!"
        from users
        where users.email = $1
        "#,
        email.as_str(),
    );
    let row = instrument_query("sessions.delete", statement.fetch_optional(&mut *transaction)).await?;
    let Some(row) = row else {
        transaction.rollback().await?;
        return Ok(None);
    };
    let ended = row.ended.unsigned_abs();
    let event = Event::new(EventType::Authentication, "sessions", "end_all", EventResult::Success)
        .with("user_id", row.id.to_string())
        .with("reason", reason)
        .with("record_count", ended);
    let recorded = audit::record_with(&mut transaction, event).await?;
    transaction.commit().await?;
    recorded.committed();
    Ok(Some(ended))
}

/// Deletes a batch of expired sessions, with an audit event for each. Returns the number of deleted sessions.
pub async fn sweep(database: &Database) -> Result<u64, sqlx::Error> {
    let mut transaction = database.begin().await?;
    let statement = sqlx::query!(
        r#"
        with expired as (
          delete from sessions
          where id in (
            select id from sessions where expires_at < now() order by expires_at limit 1000
          )
          returning id, user_id
        )
        select expired.id, expired.user_id, users.role
        from expired
        join users on users.id = expired.user_id
        "#
    );
    let expired = instrument_query("sessions.delete", statement.fetch_all(&mut *transaction)).await?;
    let mut events = Vec::with_capacity(expired.len());
    for session in &expired {
        let event = Event::new(EventType::Authentication, "sessions", "expire", EventResult::Success);
        // A newer release may have added a role. Sessions of users with that role must not prevent the deletion of
        // the other expired sessions.
        let role = Role::parse(&session.role).map_or("unknown", Role::as_str);
        events.push(event.by(session.user_id, role).records([session.id]));
    }
    let recorded = audit::record_all_with(&mut transaction, events).await?;
    transaction.commit().await?;
    recorded.into_iter().for_each(audit::PendingEvent::committed);
    Ok(u64::try_from(expired.len()).unwrap_or(u64::MAX))
}
