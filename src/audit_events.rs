//! The route that lists audit events. The route is in the service and not in `platform`, because the service's roles
//! decide who is allowed to read the audit log.
use axum::{Json, extract::State};
use platform::{
    audit::{self, AuditEvent, Filter},
    database::Database,
    http::{extract::Query, pagination::Page, problem::Problem},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::accounts::AuditReader;

/// Returns the routes of the audit log.
pub fn routes() -> OpenApiRouter<Database> {
    OpenApiRouter::new().routes(routes!(list_audit_events))
}

/// List audit events
/// Newest first. Reading the audit log is itself audited.
#[utoipa::path(
    get, path = "/v1/audit-events", tag = "audit", params(Filter), security(("session" = ["auditor", "admin"])),
    responses((status = 200, description = "A page of events, newest first", body = Page<AuditEvent>))
)]
async fn list_audit_events(
    _reader: AuditReader,
    State(database): State<Database>,
    Query(filter): Query<Filter>,
) -> Result<Json<Page<AuditEvent>>, Problem> {
    let page = filter.page()?;
    Ok(Json(audit::list(&database, &filter, page).await?))
}
