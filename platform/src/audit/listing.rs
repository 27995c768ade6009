//! A list of the events of the audit log, page by page.
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Event, EventResult, EventType, record_with};
use crate::{
    database::{Database, instrument_query},
    http::{
        extract::Identifier,
        pagination::{Page, PageQuery, PageRequest},
        problem::Problem,
        timestamp::{self, Timestamp},
    },
};

/// The filters and the page of a list of events.
#[derive(Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Event type of the events.
    #[param(inline)]
    pub event_type: Option<EventType>,
    /// User who caused the events.
    pub user_id: Option<Uuid>,
    /// Table, or part of the service, that the events concern.
    #[param(value_type = Option<String>, min_length = 1, max_length = 63, pattern = "^[a-z0-9_]*$")]
    pub resource: Option<Identifier>,
    /// Earliest time of recording.
    #[param(value_type = Option<DateTime<Utc>>)]
    pub from: Option<Timestamp>,
    /// Exclusive upper limit of the recording time.
    #[param(value_type = Option<DateTime<Utc>>)]
    pub to: Option<Timestamp>,
    /// Maximum number of items, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 20)]
    #[serde(skip_serializing)]
    limit: Option<i64>,
    /// `next_cursor` of the previous page.
    // A cursor begins with a time in microseconds. The first two characters of the pattern limit this time to the years
    // 1970 to 9961.
    #[param(pattern = "^A[A-Za-z0-3][A-Za-z0-9_-]{30}$")]
    #[serde(skip_serializing)]
    cursor: Option<String>,
}

impl Filter {
    /// Parses the limit and the cursor of the requested page.
    ///
    /// # Errors
    /// 400 for a limit out of range, or an invalid cursor.
    pub fn page(&self) -> Result<PageRequest<(DateTime<Utc>, Uuid)>, Problem> {
        PageQuery::new(self.limit, self.cursor.clone()).parse()
    }

    /// Returns the filters that are set, for the audit event of the query.
    pub(super) fn to_json(&self) -> Value {
        // A struct of strings and times always serializes.
        let mut filter = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = filter.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        filter
    }
}

/// An event of the audit log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "01980000-0000-7000-8000-000000000000", "timestamp": "2026-01-31T12:00:00.000000Z",
    "recorded_at": "2026-01-31T12:00:00.001000Z", "event_type": "data_change",
    "user_id": "01980000-0000-7000-8000-000000000001", "role": "customer", "resource": "users",
    "action": "create", "result": "success", "ip_address": "192.0.2.7",
    "metadata": { "record_ids": ["01980000-0000-7000-8000-000000000002"], "record_count": 1 },
    "correlation_id": "01980000-0000-7000-8000-000000000003", "request_id": "01980000-0000-7000-8000-000000000004",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "service_version": "0.1.0"
}))]
pub struct AuditEvent {
    /// The event's id.
    pub id: Uuid,
    /// Time of the event by the service's clock.
    #[serde(serialize_with = "timestamp::serialize")]
    timestamp: DateTime<Utc>,
    /// Time of recording by the database's clock. The list is ordered and filtered by it.
    #[serde(serialize_with = "timestamp::serialize")]
    pub recorded_at: DateTime<Utc>,
    // Text instead of the enum, so that this release can list events that a newer release has written.
    #[schema(value_type = EventType, inline)]
    event_type: String,
    /// The user who caused the event; `null` without a login.
    user_id: Option<Uuid>,
    /// The user's role at that time.
    role: Option<String>,
    /// The table, or part of the service, that the event concerns.
    resource: String,
    /// The action.
    action: String,
    #[schema(value_type = EventResult, inline)]
    result: String,
    /// Address of the client.
    ip_address: Option<String>,
    /// Ids of the records, and further details.
    #[schema(value_type = Object)]
    metadata: Value,
    /// Correlation id of the request or of the background work.
    correlation_id: Option<String>,
    /// Id of the request, which distinguishes requests with the same correlation id.
    request_id: Option<Uuid>,
    /// Id of the trace.
    trace_id: Option<String>,
    /// Release of the service that recorded the event.
    service_version: String,
}

/// Returns a page of the audit log, newest first. The same transaction records the query as an audit event.
pub async fn list(
    database: &Database,
    filter: &Filter,
    page: PageRequest<(DateTime<Utc>, Uuid)>,
) -> Result<Page<AuditEvent>, sqlx::Error> {
    let mut transaction = database.begin().await?;
    // Most conditions below are optional (`is null or`), and a generic plan cannot use an index for such a condition.
    // So PostgreSQL plans this statement for its actual values each time. The planning time does not matter, because an
    // auditor can wait for the response.
    let planning = sqlx::query!("set local plan_cache_mode = force_custom_plan");
    instrument_query("audit_events.plan", planning.execute(&mut *transaction)).await?;
    let (before, before_id) = page.after.unzip();
    let statement = sqlx::query_as!(
        AuditEvent,
        r#"
        select
          id, "timestamp", recorded_at, event_type, user_id, role, resource, action, result,
          host(ip_address) as ip_address, metadata, correlation_id, request_id, trace_id, service_version
        from audit_events
        where
          ($1::text is null or event_type = $1)
          and ($2::uuid is null or user_id = $2)
          and ($3::text is null or resource = $3)
          and recorded_at >= coalesce($4::timestamptz, '-infinity')
          and recorded_at < coalesce($5::timestamptz, 'infinity')
          and ($6::timestamptz is null or (recorded_at, id) < ($6, $7::uuid))
        order by recorded_at desc, id desc
        limit $8
        "#,
        filter.event_type.map(EventType::as_str),
        filter.user_id,
        filter.resource.as_deref(),
        filter.from.map(DateTime::from) as Option<DateTime<Utc>>,
        filter.to.map(DateTime::from) as Option<DateTime<Utc>>,
        before,
        before_id,
        page.rows(),
    );
    let events = instrument_query("audit_events.list", statement.fetch_all(&mut *transaction)).await?;
    let shown = events.len().min(usize::try_from(page.limit).unwrap_or(usize::MAX));
    let access = Event::new(EventType::DataAccess, "audit_events", "read", EventResult::Success)
        .with("filter", filter.to_json())
        .with("record_count", shown);
    let access = record_with(&mut transaction, access).await?;
    transaction.commit().await?;
    access.committed();
    Ok(page.page(events, |event| (event.recorded_at, event.id)))
}
