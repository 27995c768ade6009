//! The audit log: one row per event, in the transaction of the calling function, if any.
use axum_tracing_opentelemetry::tracing_opentelemetry_instrumentation_sdk::find_current_trace_id;
use chrono::Utc;
use serde_json::Value;
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::caller::Origin;

pub struct Event<'a> {
    pub event_type: &'static str,
    pub resource: &'static str,
    pub action: &'static str,
    pub result: &'static str,
    pub user: Option<(Uuid, &'a str)>,
    pub metadata: Value,
}

pub async fn record(
    executor: impl PgExecutor<'_>,
    origin: &Origin,
    event: Event<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"
        insert into audit_events (
          id, "timestamp", event_type, user_id, role, resource, action, result,
          ip_address, metadata, correlation_id, request_id, trace_id, service_version
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::inet, $10, $11, $12, $13, $14)
        "#,
    )
    .bind(Uuid::now_v7())
    .bind(Utc::now())
    .bind(event.event_type)
    .bind(event.user.map(|(id, _)| id))
    .bind(event.user.map(|(_, role)| role))
    .bind(event.resource)
    .bind(event.action)
    .bind(event.result)
    .bind(origin.address.to_string())
    .bind(event.metadata)
    .bind(&origin.correlation_id)
    .bind(Uuid::now_v7())
    .bind(find_current_trace_id())
    .bind(env!("CARGO_PKG_VERSION"))
    .execute(executor)
    .await?;
    Ok(())
}
