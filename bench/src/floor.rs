//! The floor: a server with only the service's statements and pool behind `POST /v1/orders` and `GET /v1/orders/{id}`.
//! The floor has no layers, limits, validation, telemetry or audit events, so the difference from the service is the
//! cost of these parts.
//!
//! The floor is this program, run again as a separate process, so that its CPU time is counted separately.
use std::{env, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use dev::process::Launch;
use platform::{
    database::{Connection, Database as Pool, Settings},
    settings::Reader,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::types::Json as Jsonb;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{
    peers::POOL_SIZE,
    pgbench::statement,
    service::Server,
    test_bed::{Database, free_address},
};

/// The expression that records the audit event, in the statement that places an order. The floor omits this expression.
const AUDIT: &str = ", record_audit_event($8)";

/// Starts the floor on a database.
pub async fn start(database: &Database) -> anyhow::Result<Server> {
    let address = free_address()?;
    let launch = Launch::new(env::current_exe()?)
        .args(["floor", &address.to_string()])
        .env("DATABASE_URL", database.url.as_str())
        .env("DATABASE_MAX_CONNECTIONS", POOL_SIZE.to_string())
        .uncaptured();
    Server::launch(launch, address, None, &format!("http://{address}/")).await
}

/// Serves requests until the process is ended.
pub async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let settings = Reader::new(|name| env::var(name).ok()).finish(Settings::read)?;
    let place = statement(&["insert into orders", "claim_idempotency_key("])?;
    anyhow::ensure!(place.contains(AUDIT), "the statement that places an order does not contain {AUDIT:?}");
    let floor = Floor {
        pool: Pool::connect(&settings, "floor").await?,
        session: statement(&["from sessions", "sessions.token_hash = $1"])?.leak(),
        show: statement(&["from orders_with_items", "where id = $1"])?.leak(),
        place: place.replace(AUDIT, "").leak(),
    };
    let router = Router::new()
        .route("/v1/orders", post(place_order))
        .route("/v1/orders/{id}", get(show_order))
        .with_state(Arc::new(floor));
    Ok(axum::serve(TcpListener::bind(address).await?, router).await?)
}

struct Floor {
    pool: Pool,
    session: &'static str,
    show: &'static str,
    place: &'static str,
}

struct Failure(StatusCode);

impl<E: std::error::Error> From<E> for Failure {
    fn from(_: E) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Failure> {
    headers.get(name).and_then(|value| value.to_str().ok()).ok_or(Failure(StatusCode::BAD_REQUEST))
}

impl Floor {
    async fn connection(&self) -> Result<Connection, sqlx::Error> {
        self.pool.acquire().await
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Uuid, Failure> {
        let unauthenticated = Failure(StatusCode::UNAUTHORIZED);
        let token = text(headers, "authorization")?.strip_prefix("Bearer ").ok_or(unauthenticated)?;
        let mut connection = self.connection().await?;
        let session: Option<(Uuid, Uuid, String)> = sqlx::query_as(self.session)
            .bind(Sha256::digest(token).as_slice())
            .fetch_optional(&mut *connection)
            .await?;
        connection.release();
        session.map(|(_, user_id, _)| user_id).ok_or(Failure(StatusCode::UNAUTHORIZED))
    }
}

#[derive(Deserialize)]
struct Basket {
    items: Vec<BasketItem>,
}

#[derive(Deserialize)]
struct BasketItem {
    product_id: Uuid,
    quantity: i32,
}

async fn place_order(
    State(floor): State<Arc<Floor>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let caller = floor.caller(&headers).await?;
    let basket: Basket = serde_json::from_slice(&body)?;
    let mut connection = floor.connection().await?;
    let id = Uuid::now_v7();
    let placed: Option<(String,)> = sqlx::query_as(floor.place)
        .bind(id)
        .bind(caller)
        .bind(basket.items.iter().map(|item| item.product_id).collect::<Vec<_>>())
        .bind(basket.items.iter().map(|item| item.quantity).collect::<Vec<_>>())
        .bind(caller.to_string())
        .bind(text(&headers, "idempotency-key")?)
        .bind(Sha256::digest(&body).as_slice())
        .fetch_optional(&mut *connection)
        .await?;
    connection.release();
    let (body,) = placed.ok_or(Failure(StatusCode::UNPROCESSABLE_ENTITY))?;
    let headers = [
        (header::LOCATION, format!("/v1/orders/{id}")),
        (header::CONTENT_TYPE, "application/json".to_owned()),
    ];
    Ok((StatusCode::CREATED, headers, body).into_response())
}

#[derive(Serialize)]
struct Order {
    id: Uuid,
    customer_id: Uuid,
    status: String,
    currency: String,
    total_amount: i64,
    items: Vec<OrderItem>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
struct OrderItem {
    product_id: Uuid,
    name: String,
    unit_amount: i64,
    quantity: i32,
    amount: i64,
}

type Row = (Uuid, Uuid, String, String, i64, Jsonb<Vec<OrderItem>>, DateTime<Utc>, DateTime<Utc>);

async fn show_order(
    State(floor): State<Arc<Floor>>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Json<Order>, Failure> {
    let caller = floor.caller(&headers).await?;
    let mut connection = floor.connection().await?;
    let row: Option<Row> =
        sqlx::query_as(floor.show).bind(id).bind(caller).fetch_optional(&mut *connection).await?;
    connection.release();
    let (id, customer_id, status, currency, total_amount, items, created_at, updated_at) =
        row.ok_or(Failure(StatusCode::NOT_FOUND))?;
    let items = items.0;
    Ok(Json(Order { id, customer_id, status, currency, total_amount, items, created_at, updated_at }))
}
