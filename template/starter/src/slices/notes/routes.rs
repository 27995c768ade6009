//! The routes of notes.
use axum::{Json as JsonBody, extract::State, http::StatusCode};
use platform::{
    database::Database,
    http::{
        extract::{Id, Json, Query},
        idempotency::{self, Change, IdempotencyKey, IdempotentRequest, StoredResponse},
        pagination::{Page, PageQuery},
        problem::{Problem, ProblemBody},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    model::{Note, NoteFields},
    store,
};
use crate::{
    accounts::{Customer, OwnerOrStaff},
    slices::Slices,
};

/// Returns the routes of notes.
pub fn routes() -> OpenApiRouter<Slices> {
    OpenApiRouter::new().routes(routes!(create_note, list_notes)).routes(routes!(show_note, change_note))
}

/// Create a note
#[utoipa::path(
    post, path = "/v1/notes", tag = "notes", request_body = NoteFields, security(("session" = ["customer"])),
    params(IdempotencyKey),
    responses(
        (status = 201, description = "The note", body = Note, headers(("location" = String, description = "The note"))),
        (status = 422, description = "Invalid request, or the Idempotency-Key belongs to another request", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn create_note(
    Customer(caller): Customer,
    State(database): State<Database>,
    request: IdempotentRequest<NoteFields>,
) -> Result<StoredResponse, Problem> {
    idempotency::run(&database, caller.user_id, request, location, async |claim, fields| {
        let Some(note) = store::create(&database, claim, caller.user_id, &fields).await? else {
            // Another request has already claimed the key. If both requests are equal, `run` replays the stored
            // response; otherwise it rejects this request. `run` returns the problem below only if the key has been
            // deleted meanwhile. Then the client retries.
            return Ok(Change::Rejected(Problem::unavailable(1)));
        };
        Ok(Change::Made(note.id, StoredResponse::from_json(StatusCode::CREATED, note.body)))
    })
    .await
}

fn location(id: Uuid) -> String {
    format!("/v1/notes/{id}")
}

/// List notes
/// Returns a customer's own notes; for support and admins, the notes of all customers, which is audited.
#[utoipa::path(
    get, path = "/v1/notes", tag = "notes", params(PageQuery), security(("session" = ["customer", "support", "admin"])),
    responses((status = 200, description = "A page of notes, newest first", body = Page<Note>))
)]
async fn list_notes(
    reader: OwnerOrStaff,
    State(database): State<Database>,
    Query(query): Query<PageQuery>,
) -> Result<JsonBody<Page<Note>>, Problem> {
    let page = query.parse()?;
    let found = store::list(&database, reader.owner_filter(), page).await?;
    let found = page.page(found, |note: &Note| note.id);
    reader.record_access(&database, "notes", found.data.iter().map(|note| note.id)).await?;
    Ok(JsonBody(found))
}

/// Show a note
#[utoipa::path(
    get, path = "/v1/notes/{id}", tag = "notes", params(("id" = Uuid, Path, description = "The note's id")),
    security(("session" = ["customer", "support", "admin"])), responses((status = 200, description = "The note", body = Note))
)]
async fn show_note(
    reader: OwnerOrStaff,
    State(database): State<Database>,
    Id(id): Id,
) -> Result<JsonBody<Note>, Problem> {
    let found = store::find(&database, id, reader.owner_filter())
        .await?
        .ok_or_else(|| Problem::not_found_or_not_owned("notes", id))?;
    reader.record_access(&database, "notes", [id]).await?;
    Ok(JsonBody(found))
}

/// Change a note
#[utoipa::path(
    patch, path = "/v1/notes/{id}", tag = "notes", params(("id" = Uuid, Path, description = "The note's id")),
    request_body = NoteFields, security(("session" = ["customer"])),
    responses((status = 200, description = "The changed note", body = Note))
)]
async fn change_note(
    Customer(caller): Customer,
    State(database): State<Database>,
    Id(id): Id,
    Json(fields): Json<NoteFields>,
) -> Result<JsonBody<Note>, Problem> {
    let changed = store::change(&database, id, caller.user_id, &fields).await?;
    changed.map(JsonBody).ok_or_else(|| Problem::not_found_or_not_owned("notes", id))
}
