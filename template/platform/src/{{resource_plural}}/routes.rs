//! Creating, reading and changing {{resource_plural_words}}.
use axum::{Json as JsonBody, extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    model::{ {{Resource}}, {{Resource}}Fields },
    store,
};
use crate::platform::{
    database::Database,
    http::{
        extract::{Id, Json, Query},
        idempotency::{self, Claim, Idempotent, Replayable},
        pagination::{Page, PageQuery},
        problem::Problem,
    },
    identity::{Customer, OwnerOrStaff},
};

/// The routes of {{resource_plural_words}}.
pub fn routes() -> OpenApiRouter<Database> {
    OpenApiRouter::new()
        .routes(routes!(create_{{resource}}, list_{{resource_plural}}))
        .routes(routes!(show_{{resource}}, change_{{resource}}))
}

/// Create a new {{resource_words}}
#[utoipa::path(
    post, path = "/v1/{{resource_plural}}", tag = "{{resource_plural}}", request_body = {{Resource}}Fields, security(("session" = [])),
    params(("Idempotency-Key" = String, Header, description = "1 to 255 visible ASCII characters; the same again for a retry")),
    responses((status = 201, description = "The {{resource}}", body = {{Resource}}))
)]
async fn create_{{resource}}(
    Customer(caller): Customer,
    State(database): State<Database>,
    request: Idempotent<{{Resource}}Fields>,
) -> Result<Replayable, Problem> {
    let claim = Claim::of_user(caller.user_id, &request);
    let refusal = match request.body {
        Ok(fields) => match store::create(&database, &claim, caller.user_id, &fields).await? {
            Some(created) => return answer(&created),
            // A twin has just let the key go, with a change that was never committed.
            None => Problem::unavailable(1),
        },
        Err(invalid) => invalid,
    };
    let mut connection = database.acquire().await?;
    let previous = idempotency::previous(&mut connection, &claim).await?;
    connection.release();
    let replayed = previous.and_then(|previous| Some(previous.answer?.at(location(previous.resource_id))));
    replayed.ok_or(refusal)
}

fn answer(created: &{{Resource}}) -> Result<Replayable, Problem> {
    Ok(Replayable::new(StatusCode::CREATED, created)?.at(location(created.id)))
}

fn location(id: Uuid) -> String {
    format!("/v1/{{resource_plural}}/{id}")
}

/// List {{resource_plural_words}}
///
/// Customers see their own; support and admins see everybody's, which is audited.
#[utoipa::path(
    get, path = "/v1/{{resource_plural}}", tag = "{{resource_plural}}", params(PageQuery), security(("session" = [])),
    responses((status = 200, description = "A page of {{resource_plural}}, newest first", body = Page<{{Resource}}>))
)]
async fn list_{{resource_plural}}(
    reader: OwnerOrStaff,
    State(database): State<Database>,
    Query(query): Query<PageQuery>,
) -> Result<JsonBody<Page<{{Resource}}>>, Problem> {
    let page = query.parse()?;
    let found = store::list(&database, reader.only_own(), page).await?;
    let found = page.page(found, |{{resource}}: &{{Resource}}| {{resource}}.id);
    if reader.only_own().is_none() {
        store::record_access(&database, found.data.iter().map(|{{resource}}| {{resource}}.id)).await?;
    }
    Ok(JsonBody(found))
}

/// Show one {{resource_words}}
#[utoipa::path(
    get, path = "/v1/{{resource_plural}}/{id}", tag = "{{resource_plural}}", params(("id" = Uuid, Path, description = "Its id")),
    security(("session" = [])), responses((status = 200, description = "The {{resource}}", body = {{Resource}}))
)]
async fn show_{{resource}}(
    reader: OwnerOrStaff,
    State(database): State<Database>,
    Id(id): Id,
) -> Result<JsonBody<{{Resource}}>, Problem> {
    let found = store::find(&database, id, reader.only_own())
        .await?
        .ok_or_else(|| Problem::not_yours("{{resource_plural}}", id))?;
    if reader.only_own().is_none() {
        store::record_access(&database, [id]).await?;
    }
    Ok(JsonBody(found))
}

/// Change one {{resource_words}}
#[utoipa::path(
    patch, path = "/v1/{{resource_plural}}/{id}", tag = "{{resource_plural}}", params(("id" = Uuid, Path, description = "Its id")),
    request_body = {{Resource}}Fields, security(("session" = [])),
    responses((status = 200, description = "The {{resource}}, changed", body = {{Resource}}))
)]
async fn change_{{resource}}(
    Customer(caller): Customer,
    State(database): State<Database>,
    Id(id): Id,
    Json(fields): Json<{{Resource}}Fields>,
) -> Result<JsonBody<{{Resource}}>, Problem> {
    let changed = store::change(&database, id, caller.user_id, &fields).await?;
    changed.map(JsonBody).ok_or_else(|| Problem::not_yours("{{resource_plural}}", id))
}
