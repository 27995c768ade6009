//! The view *Audit*: the newest events and seals, and the verification of the chain of seals by the service.
//!
//! The console reads the tables directly, as the owner of the schema. A read through the API would add an event to the
//! audit log.
use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use url::Url;
use uuid::Uuid;

use crate::{
    process::{Launch, Stream, WaitError},
    project,
};

/// Maximum number of displayed events, and of displayed seals.
const MAX_SHOWN: i64 = 60;

/// Deadline of a verification, which reads the whole audit log.
const VERIFICATION_DEADLINE: Duration = Duration::from_mins(5);

#[derive(Debug, Serialize, sqlx::FromRow)]
#[expect(clippy::struct_field_names, reason = "`event_type` is the name of the column, too")]
pub(super) struct Event {
    recorded_at: DateTime<Utc>,
    event_type: String,
    resource: String,
    action: String,
    result: String,
    user_id: Option<Uuid>,
    role: Option<String>,
    ip_address: Option<String>,
    correlation_id: Option<String>,
    trace_id: Option<String>,
    metadata: Value,
}

#[derive(Debug, Serialize, sqlx::FromRow)]
pub(super) struct Seal {
    number: i64,
    sealed_at: DateTime<Utc>,
    event_count: i32,
    hash: String,
    previous_hash: String,
}

#[derive(Debug, Serialize)]
pub(super) struct AuditLog {
    events: Vec<Event>,
    seals: Vec<Seal>,
}

pub(super) async fn audit_log(owner_url: &Url) -> Result<AuditLog, sqlx::Error> {
    let mut connection = PgConnection::connect(owner_url.as_str()).await?;
    let events = sqlx::query_as(
        "select recorded_at, event_type, resource, action, result, user_id, role, host(ip_address) as ip_address,
           correlation_id, trace_id, metadata
         from audit_events
         order by recorded_at desc, sequence desc
         limit $1",
    )
    .bind(MAX_SHOWN)
    .fetch_all(&mut connection)
    .await?;
    let seals = sqlx::query_as(
        "select number, sealed_at, event_count, encode(hash, 'hex') as hash,
           encode(previous_hash, 'hex') as previous_hash
         from audit_seals
         order by number desc
         limit $1",
    )
    .bind(MAX_SHOWN)
    .fetch_all(&mut connection)
    .await?;
    connection.close().await?;
    Ok(AuditLog { events, seals })
}

/// The output of `audit verify`.
#[derive(Debug, Serialize)]
pub(super) struct Verification {
    is_intact: bool,
    /// The executed command.
    command: String,
    output: String,
    seconds: f64,
}

/// Returns whether the service's log contains a head: a line with the number and the hash of the seal that was the
/// newest when the line was logged. The log can be larger than memory, so it is read line by line.
fn contains_heads(log: &Path) -> bool {
    let lines = File::open(log).map(|file| BufReader::new(file).lines());
    lines.is_ok_and(|lines| lines.map_while(Result::ok).any(|line| line.contains("\"seal_hash\"")))
}

/// Runs the service's `audit verify` as the service's restricted role. If the log has heads, the command also compares
/// the stored seals with these heads.
pub(super) async fn verify(
    executable: &Path,
    database_url: &Url,
    log: Option<&Path>,
) -> Result<Verification, WaitError> {
    let mut arguments = vec!["audit".to_owned(), "verify".to_owned()];
    if let Some(log) = log.filter(|log| contains_heads(log)) {
        arguments.extend(["--heads".to_owned(), log.display().to_string()]);
    }
    let command = format!("{} {}", project::name(), arguments.join(" "));
    let began = std::time::Instant::now();
    let process = Launch::new(executable)
        .args(&arguments)
        .directory(Path::new("/"))
        .env("DATABASE_URL", database_url.as_str())
        .start()?;
    let status = process.wait(VERIFICATION_DEADLINE).await?;
    let mut lines = process.lines();
    // Sorts standard output, which has the results, before standard error.
    lines.sort_by_key(|line| line.stream == Stream::Stderr);
    let output: Vec<String> = lines.into_iter().map(|line| line.text).collect();
    let seconds = began.elapsed().as_secs_f64();
    Ok(Verification { is_intact: status.success(), command, output: output.join("\n"), seconds })
}
