//! The trail over HTTP.
use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    EventType,
    trail::{self, AuditEvent},
};
use crate::platform::{
    database::Database,
    http::{
        extract::Query,
        pagination::{Page, PageQuery},
        problem::Problem,
    },
    identity::AuditReader,
};

/// No table has a longer name.
const LONGEST_RESOURCE: usize = 63;

/// The routes of the audit trail.
pub fn routes() -> OpenApiRouter<Database> {
    OpenApiRouter::new().routes(routes!(list_audit_events))
}

/// Which events are asked for.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only those of this type.
    #[param(inline)]
    pub event_type: Option<EventType>,
    /// Only what this user did.
    pub user_id: Option<Uuid>,
    /// Only what was done to this table, or this part of the service.
    #[param(max_length = 63)]
    pub resource: Option<String>,
    /// Only what was recorded at or after this time.
    pub from: Option<DateTime<Utc>>,
    /// Only what was recorded before this time.
    pub to: Option<DateTime<Utc>>,
    /// At most so many, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 20)]
    #[serde(skip_serializing)]
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    #[serde(skip_serializing)]
    cursor: Option<String>,
}

impl Filter {
    /// What was asked for, without what was not; for the trail.
    pub(super) fn to_json(&self) -> Value {
        // A struct of texts and times always serialises.
        let mut filter = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = filter.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        filter
    }
}

/// List audit events
///
/// Who did what, newest first. Reading the trail is itself written there.
#[utoipa::path(
    get, path = "/v1/audit-events", tag = "audit", params(Filter), security(("session" = [])),
    responses((status = 200, description = "A page of events, newest first", body = Page<AuditEvent>))
)]
async fn list_audit_events(
    _reader: AuditReader,
    State(database): State<Database>,
    Query(filter): Query<Filter>,
) -> Result<Json<Page<AuditEvent>>, Problem> {
    let page = PageQuery::new(filter.limit, filter.cursor.clone()).parse()?;
    if filter.resource.as_ref().is_some_and(|resource| resource.len() > LONGEST_RESOURCE) {
        return Err(Problem::malformed(format!("resource is at most {LONGEST_RESOURCE} bytes long.")));
    }
    let events = trail::read(&database, &filter, page).await?;
    Ok(Json(page.page(events, |event| (event.recorded_at, event.id))))
}
