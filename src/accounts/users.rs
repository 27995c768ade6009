//! The users table.
use platform::{
    audit::{self, Event, EventResult, EventType},
    database::{Database, observe, violated_constraint},
    http::problem::Problem,
};
use uuid::Uuid;

use super::{
    Role,
    model::{Email, User},
};

/// Error of creating a user.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Another user has the e-mail address.
    #[error("the e-mail address belongs to another user")]
    EmailTaken,
    /// The statement failed, or the database is unreachable.
    #[error("failed to store the user: {0}")]
    Database(#[from] sqlx::Error),
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::EmailTaken => Self::conflict("The e-mail address belongs to another user."),
            CreateError::Database(error) => error.into(),
        }
    }
}

/// Stores a user and its audit event.
///
/// # Errors
/// If the e-mail address is taken, or the statement fails.
pub async fn create(
    database: &Database,
    email: &Email,
    name: &str,
    password_hash: &str,
    role: Role,
) -> Result<User, CreateError> {
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
    let mut connection = database.acquire().await?;
    let created = observe("users.insert", statement.fetch_one(&mut *connection)).await.map_err(|error| {
        match violated_constraint(&error) {
            Some("email_is_taken_once") => CreateError::EmailTaken,
            _ => CreateError::Database(error),
        }
    })?;
    connection.release();
    event.mirror();
    let name = name.trim().to_owned();
    Ok(User { id, email: email.as_str().to_owned(), name, role, created_at: created.created_at })
}

/// A user with its password hash.
pub(super) struct UserRecord {
    pub(super) user: User,
    pub(super) password_hash: String,
}

/// Returns the user with this e-mail address.
pub(super) async fn by_email(database: &Database, email: &Email) -> Result<Option<UserRecord>, sqlx::Error> {
    let statement = sqlx::query!(
        "select id, email, name, password_hash, role, created_at from users where email = $1",
        email.as_str()
    );
    let mut connection = database.acquire().await?;
    let row = observe("users.select", statement.fetch_optional(&mut *connection)).await?;
    connection.release();
    row.map(|row| {
        let user = User {
            id: row.id,
            email: row.email,
            name: row.name,
            role: role(&row.role)?,
            created_at: row.created_at,
        };
        Ok(UserRecord { user, password_hash: row.password_hash })
    })
    .transpose()
}

/// Returns the user with this id.
pub(super) async fn by_id(database: &Database, id: Uuid) -> Result<Option<UserRecord>, sqlx::Error> {
    let statement =
        sqlx::query!("select id, email, name, password_hash, role, created_at from users where id = $1", id);
    let mut connection = database.acquire().await?;
    let row = observe("users.select", statement.fetch_optional(&mut *connection)).await?;
    connection.release();
    row.map(|row| {
        let user = User {
            id: row.id,
            email: row.email,
            name: row.name,
            role: role(&row.role)?,
            created_at: row.created_at,
        };
        Ok(UserRecord { user, password_hash: row.password_hash })
    })
    .transpose()
}

/// Changes a password and ends every session of the user, in one transaction. Returns `false`, and changes nothing, if
/// the user no longer has the verified hash because of a concurrent change.
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
    if observe("users.update", update.execute(&mut *transaction)).await?.rows_affected() == 0 {
        transaction.rollback().await?;
        return Ok(false);
    }
    let end = sqlx::query_scalar!("delete from sessions where user_id = $1 returning id", id);
    let ended = observe("sessions.delete", end.fetch_all(&mut *transaction)).await?;
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

/// Stores a hash of the same password with the current parameters. Returns `false`, and changes nothing, if the user no
/// longer has the outdated hash.
pub(super) async fn renew_hash(
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
    let mut connection = database.acquire().await?;
    let renewed = observe("users.update", statement.fetch_optional(&mut *connection)).await?.is_some();
    connection.release();
    if renewed {
        event.mirror();
    }
    Ok(renewed)
}

/// Parses a role. A constraint limits the column to these names; an unknown name comes from a newer release.
pub(super) fn role(text: &str) -> Result<Role, sqlx::Error> {
    Role::parse(text).ok_or_else(|| sqlx::Error::Decode(format!("unknown role {text:?}").into()))
}
