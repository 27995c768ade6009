//! The `{{resource_plural}}` table.
use chrono::{SubsecRound, Utc};
use uuid::Uuid;

use super::{
    metrics::CREATED,
    model::{ {{Resource}}, {{Resource}}Fields },
};
use crate::platform::{
    audit::{Event, EventResult, EventType, record},
    database::{Database, observe},
    http::{idempotency::Claim, pagination::PageRequest, problem::Problem},
};

/// Creates one: claims the key, stores the row, the answer and the audit event. `None` if the key is taken; then
/// nothing was stored.
///
/// One statement, and so one round trip and its own transaction, which no cancelled request can leave half open.
pub(super) async fn create(
    database: &Database,
    claim: &Claim,
    owner_id: Uuid,
    fields: &{{Resource}}Fields,
) -> Result<Option<{{Resource}}>, Problem> {
    // As exact as the database keeps it: what is answered now is what is read later.
    let now = Utc::now().trunc_subsecs(6);
    let name = fields.name.trim().to_owned();
    let created = {{Resource}} { id: Uuid::now_v7(), owner_id, name, created_at: now, updated_at: now };
    let answer = serde_json::to_string(&created).map_err(|error| Problem::internal(&error))?;
    let event = Event::change("{{resource_plural}}", "create").records([created.id]);
    let statement = sqlx::query!(
        r#"
        with claimed as materialized (
          select claim_idempotency_key($1, $2, $3, $4, null, 201, $5) as is_mine
        ), created as (
          insert into {{resource_plural}} (id, owner_id, name, created_at, updated_at)
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
        answer,
        created.owner_id,
        created.name,
        created.created_at,
        event.to_json(),
    );
    let mut connection = database.acquire().await?;
    let stored = observe("{{resource_plural}}.insert", statement.fetch_optional(&mut *connection)).await?;
    connection.release();
    Ok(stored.map(|_| {
        CREATED.inc();
        event.mirror();
        created
    }))
}

/// One of them; only if it is this owner's, where one is given.
pub(super) async fn find(
    database: &Database,
    id: Uuid,
    only_of: Option<Uuid>,
) -> Result<Option<{{Resource}}>, sqlx::Error> {
    let statement = sqlx::query_as!(
        {{Resource}},
        r#"
        select id, owner_id, name, created_at, updated_at
        from {{resource_plural}}
        where id = $1 and ($2::uuid is null or owner_id = $2)
        "#,
        id,
        only_of,
    );
    let mut connection = database.acquire().await?;
    let found = observe("{{resource_plural}}.select", statement.fetch_optional(&mut *connection)).await?;
    connection.release();
    Ok(found)
}

/// A page of them, newest first.
///
/// Two statements rather than one with an optional condition: prepared once for all values, that one would have
/// to walk through everybody's rows to find one owner's.
pub(super) async fn list(
    database: &Database,
    owner_id: Option<Uuid>,
    page: PageRequest,
) -> Result<Vec<{{Resource}}>, sqlx::Error> {
    let before = page.after.unwrap_or(Uuid::max());
    let mut connection = database.acquire().await?;
    if let Some(owner_id) = owner_id {
        let statement = sqlx::query_as!(
            {{Resource}},
            r#"
            select id, owner_id, name, created_at, updated_at
            from {{resource_plural}}
            where owner_id = $1 and id < $2
            order by id desc
            limit $3
            "#,
            owner_id,
            before,
            page.rows(),
        );
        let page = observe("{{resource_plural}}.list_of_owner", statement.fetch_all(&mut *connection)).await?;
        connection.release();
        return Ok(page);
    }
    let statement = sqlx::query_as!(
        {{Resource}},
        r#"
        select id, owner_id, name, created_at, updated_at
        from {{resource_plural}}
        where id < $1
        order by id desc
        limit $2
        "#,
        before,
        page.rows(),
    );
    let page = observe("{{resource_plural}}.list", statement.fetch_all(&mut *connection)).await?;
    connection.release();
    Ok(page)
}

/// Changes one of this owner's, and says so in the trail.
pub(super) async fn change(
    database: &Database,
    id: Uuid,
    owner_id: Uuid,
    fields: &{{Resource}}Fields,
) -> Result<Option<{{Resource}}>, sqlx::Error> {
    let event = Event::change("{{resource_plural}}", "update").records([id]);
    let statement = sqlx::query!(
        r#"
        with changed as (
          update {{resource_plural}}
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
    let mut connection = database.acquire().await?;
    let changed = observe("{{resource_plural}}.update", statement.fetch_optional(&mut *connection)).await?;
    connection.release();
    Ok(changed.map(|row| {
        event.mirror();
        {{Resource}} {
            id: row.id,
            owner_id: row.owner_id,
            name: row.name,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }))
}

/// Writes down that staff has read what is customers'. What cannot be written is not shown.
pub(super) async fn record_access(
    database: &Database,
    ids: impl IntoIterator<Item = Uuid>,
) -> Result<(), sqlx::Error> {
    let event =
        Event::new(EventType::DataAccess, "{{resource_plural}}", "read", EventResult::Success).records(ids);
    record(database, event).await
}
