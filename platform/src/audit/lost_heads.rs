//! The recorded restores, and the heads that they lost. A head is the number and the hash of a seal.
use sqlx::PgConnection;

use super::{chain::RestoreRecord, seals::Head};
use crate::database::{Database, instrument_query};

/// Returns every restore that the schema owner has recorded.
pub(super) async fn recorded(connection: &mut PgConnection) -> Result<Vec<RestoreRecord>, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select audit_restores.event_id, number as "number?", hash as "hash?"
        from audit_restores
        left join audit_lost_heads on audit_lost_heads.event_id = audit_restores.event_id
        order by audit_restores.recorded_at, audit_restores.event_id
        "#
    );
    let rows = instrument_query("audit_restores.select", statement.fetch_all(connection)).await?;
    let mut restores: Vec<RestoreRecord> = Vec::new();
    for row in rows {
        if restores.last().is_none_or(|last| last.event_id != row.event_id) {
            restores.push(RestoreRecord { event_id: row.event_id, lost_heads: [].into() });
        }
        if let (Some(restore), Some(number), Some(hash)) = (restores.last_mut(), row.number, row.hash) {
            restore.lost_heads.insert((number, hash));
        }
    }
    Ok(restores)
}

/// Returns whether a recorded restore lists this head as lost.
pub(super) async fn is_lost(database: &Database, head: Head) -> Result<bool, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"select exists (select from audit_lost_heads where number = $1 and hash = $2) as "is_lost!""#,
        head.number,
        head.hash.as_slice(),
    );
    database.run("audit_lost_heads.select", async |connection| statement.fetch_one(connection).await).await
}

/// Returns the number of recorded restores.
pub(super) async fn count(database: &Database) -> Result<i64, sqlx::Error> {
    let statement = sqlx::query_scalar!(r#"select count(*) as "count!" from audit_restores"#);
    database.run("audit_restores.count", async |connection| statement.fetch_one(connection).await).await
}
