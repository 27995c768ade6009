//! The `notes` table.
use chrono::{SubsecRound, Utc};
use platform::{
    audit::Event,
    database::Database,
    http::{idempotency::Claim, pagination::PageRequest},
};
use uuid::Uuid;

use super::{
    metrics::CREATED,
    model::{Note, NoteFields},
};

/// The created note: its id, and the JSON body as stored for idempotent replay.
pub(super) struct CreatedNote {
    pub(super) id: Uuid,
    pub(super) body: String,
}

/// Creates a note: claims the idempotency key, and stores the row, the response and the audit event. Returns `None`,
/// and stores nothing, if the key is taken.
///
/// All of this is a single statement. It costs one round trip, and a cancelled request cannot leave its transaction
/// open.
pub(super) async fn create(
    database: &Database,
    claim: &Claim,
    owner_id: Uuid,
    fields: &NoteFields,
) -> Result<Option<CreatedNote>, sqlx::Error> {
    // PostgreSQL stores microseconds, and the first response must have the same times as later reads of the note.
    let now = Utc::now().trunc_subsecs(6);
    let name = fields.name.trim().to_owned();
    let created = Note { id: Uuid::now_v7(), owner_id, name, created_at: now, updated_at: now };
    let body = serde_json::to_string(&created).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let event = Event::change("notes", "create").records([created.id]);
    let statement = sqlx::query!(
        r#"
        with claimed as materialized (
          select claim_idempotency_key($1, $2, $3, $4, null, 201, $5) as is_mine
        ), created as (
          insert into notes (id, owner_id, name, created_at, updated_at)
          select $4, $6, $7, $8, $8
          from claimed
          where is_mine
          returning id
        )
        select record_audit_event($9)
        from created
        "#,
        claim.scope,
        claim.key,
        claim.fingerprint.as_bytes(),
        created.id,
        body,
        created.owner_id,
        created.name,
        created.created_at,
        event.to_json(),
    );
    let stored =
        database.run("notes.insert", async |connection| statement.fetch_optional(connection).await).await?;
    Ok(stored.map(|_| {
        CREATED.inc();
        event.log_and_count();
        CreatedNote { id: created.id, body }
    }))
}

/// Returns one note. With `owner`, returns it only if this customer owns the note.
pub(super) async fn find(
    database: &Database,
    id: Uuid,
    owner: Option<Uuid>,
) -> Result<Option<Note>, sqlx::Error> {
    let statement = sqlx::query_as!(
        Note,
        r#"
        select id, owner_id, name, created_at, updated_at
        from notes
        where id = $1 and ($2::uuid is null or owner_id = $2)
        "#,
        id,
        owner,
    );
    let found =
        database.run("notes.select", async |connection| statement.fetch_optional(connection).await).await?;
    Ok(found)
}

/// Returns a page of notes, newest first.
///
/// There are two statements, because `plan_cache_mode` is `force_generic_plan`: a prepared statement has one plan for
/// all values. The plan of a single statement with an optional condition would scan the notes of every customer.
pub(super) async fn list(
    database: &Database,
    owner_id: Option<Uuid>,
    page: PageRequest,
) -> Result<Vec<Note>, sqlx::Error> {
    let before = page.after.unwrap_or(Uuid::max());
    if let Some(owner_id) = owner_id {
        let statement = sqlx::query_as!(
            Note,
            r#"
            select id, owner_id, name, created_at, updated_at
            from notes
            where owner_id = $1 and id < $2
            order by id desc
            limit $3
            "#,
            owner_id,
            before,
            page.rows(),
        );
        return database
            .run("notes.list_of_owner", async |connection| statement.fetch_all(connection).await)
            .await;
    }
    let statement = sqlx::query_as!(
        Note,
        r#"
        select id, owner_id, name, created_at, updated_at
        from notes
        where id < $1
        order by id desc
        limit $2
        "#,
        before,
        page.rows(),
    );
    database.run("notes.list", async |connection| statement.fetch_all(connection).await).await
}

/// Changes a note of this owner, and records the audit event. Returns `None` if this owner has no such note.
pub(super) async fn change(
    database: &Database,
    id: Uuid,
    owner_id: Uuid,
    fields: &NoteFields,
) -> Result<Option<Note>, sqlx::Error> {
    let event = Event::change("notes", "update").records([id]);
    let statement = sqlx::query!(
        r#"
        with changed as (
          update notes
          set name = $3, updated_at = now()
          where id = $1 and owner_id = $2
          returning id, owner_id, name, created_at, updated_at
        )
        select
          id as "id!", owner_id as "owner_id!", name as "name!", created_at as "created_at!",
          updated_at as "updated_at!", record_audit_event($4)
        from changed
        "#,
        id,
        owner_id,
        fields.name.trim(),
        event.to_json(),
    );
    let changed =
        database.run("notes.update", async |connection| statement.fetch_optional(connection).await).await?;
    Ok(changed.map(|row| {
        event.log_and_count();
        Note {
            id: row.id,
            owner_id: row.owner_id,
            name: row.name,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }))
}
