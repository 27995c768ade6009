//! The users table.
use chrono::{DateTime, Utc};
use platform::{
    audit::{self, Event, EventResult, EventType},
    database::{Database, instrument_query, violated_constraint},
};
use uuid::Uuid;

use super::{
    Role,
    errors::AccountError,
    model::{Email, User},
};

/// Stores a user, and audits the creation.
///
/// # Errors
/// If the e-mail address is taken, or the statement fails.
pub async fn create(
    database: &Database,
    email: &Email,
    name: &str,
    password_hash: &str,
    role: Role,
) -> Result<User, AccountError> {
    let id = Uuid::now_v7();
    let event = Event::change("users", "create").records([id]).with("role", role.as_str());
    let statement = sqlx::query!(
        r#"
        with created as (
          insert into users (id, email, name, password_hash, role)
          values ($1, $2, $3, $4, $5)
          returning created_at
        )
        select created_at as "created_at!", record_audit_event($6)
        from created
        "#,
        id,
        email.as_str(),
        name.trim(),
        password_hash,
        role.as_str(),
        event.to_json(),
    );
    let created = database
        .run("users.insert", async |connection| statement.fetch_one(connection).await)
        .await
        .map_err(|error| match violated_constraint(&error) {
            Some("email_is_taken_once") => AccountError::EmailTaken,
            _ => AccountError::Database(error),
        })?;
    event.log_and_count();
    let name = name.trim().to_owned();
    Ok(User { id, email: email.as_str().to_owned(), name, role, created_at: created.created_at })
}

/// A user with its password hash.
pub(super) struct UserRecord {
    pub(super) user: User,
    pub(super) password_hash: String,
}

struct Row {
    id: Uuid,
    email: String,
    name: String,
    password_hash: String,
    role: String,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for UserRecord {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        let Row { id, email, name, password_hash, created_at, .. } = row;
        let user = User { id, email, name, role: role(&row.role)?, created_at };
        Ok(Self { user, password_hash })
    }
}

/// Returns the user with this e-mail address.
pub(super) async fn by_email(database: &Database, email: &Email) -> Result<Option<UserRecord>, sqlx::Error> {
    let statement = sqlx::query_as!(
        Row,
        "select id, email, name, password_hash, role, created_at from users where email = $1",
        email.as_str()
    );
    let row =
        database.run("users.select", async |connection| statement.fetch_optional(connection).await).await?;
    row.map(UserRecord::try_from).transpose()
}

/// Returns the user with this id.
pub(super) async fn by_id(database: &Database, id: Uuid) -> Result<Option<UserRecord>, sqlx::Error> {
    let statement = sqlx::query_as!(
        Row,
        "select id, email, name, password_hash, role, created_at from users where id = $1",
        id
    );
    let row =
        database.run("users.select", async |connection| statement.fetch_optional(connection).await).await?;
    row.map(UserRecord::try_from).transpose()
}

/// Changes a password, ends every session of the user, and audits both, in one transaction. Returns `false`, and
/// changes nothing, if the user no longer has the verified hash because of a concurrent change.
pub(super) async fn change_password(
    database: &Database,
    verified: &UserRecord,
    password_hash: &str,
) -> Result<bool, sqlx::Error> {
    let id = verified.user.id;
    let mut transaction = database.begin().await?;
    let update = sqlx::query!(
        "update users set password_hash = $2, updated_at = now() where id = $1 and password_hash = $3",
        id,
        password_hash,
        verified.password_hash,
    );
    if instrument_query("users.update", update.execute(&mut *transaction)).await?.rows_affected() == 0 {
        transaction.rollback().await?;
        return Ok(false);
    }
    let end = sqlx::query_scalar!("delete from sessions where user_id = $1 returning id", id);
    let ended = instrument_query("sessions.delete", end.fetch_all(&mut *transaction)).await?;
    let count = ended.len();
    let revoked =
        Event::new(EventType::Authentication, "sessions", "revoke", EventResult::Success).records(ended);
    let revoked = audit::record_with(&mut transaction, revoked).await?;
    let changed = Event::change("users", "change_password").records([id]).with("sessions_ended", count);
    let changed = audit::record_with(&mut transaction, changed).await?;
    transaction.commit().await?;
    revoked.committed();
    changed.committed();
    Ok(true)
}

/// Replaces the outdated hash of a password by a hash of the same password with the current parameters, and audits the
/// change. Returns `false`, and changes nothing, if the user no longer has the outdated hash.
pub(super) async fn replace_hash(
    database: &Database,
    user: &User,
    outdated: &str,
    password_hash: &str,
) -> Result<bool, sqlx::Error> {
    let event =
        Event::change("users", "renew_password_hash").by(user.id, user.role.as_str()).records([user.id]);
    let statement = sqlx::query!(
        r#"
        with renewed as (
          update users set password_hash = $3, updated_at = now()
          where id = $1 and password_hash = $2
          returning id
        )
        select record_audit_event($4)
        from renewed
        "#,
        user.id,
        outdated,
        password_hash,
        event.to_json(),
    );
    let renewed = database
        .run("users.update", async |connection| statement.fetch_optional(connection).await)
        .await?
        .is_some();
    if renewed {
        event.log_and_count();
    }
    Ok(renewed)
}

/// Parses a role. A check constraint limits the column to valid names, so a name that this release does not know was
/// added by a newer release.
pub(super) fn role(text: &str) -> Result<Role, sqlx::Error> {
    Role::parse(text).ok_or_else(|| sqlx::Error::Decode(format!("unknown role {text:?}").into()))
}
