//! The statements that take the sealing lock, read the horizon, and read events in the order of their positions.
//! Further statements read and extend the chain of seals, measure the sealing lag, and find the transaction that delays
//! sealing.
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::canonical::{EventPosition, GENESIS, Hash, Seal, StoredEvent};
use crate::database::{Database, instrument_query};

/// The number and the hash of a seal that is, or once was, the last seal (head) of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub number: i64,
    pub hash: Hash,
}

impl Head {
    /// The head of a chain without seals.
    pub(super) const NONE: Self = Self { number: 0, hash: GENESIS };

    pub(super) fn read(number: i64, hash: &[u8]) -> Result<Self, sqlx::Error> {
        let hash = hash.try_into().map_err(|_| sqlx::Error::Decode("a hash has 32 bytes".into()))?;
        Ok(Self { number, hash })
    }
}

/// The limit up to which events can be sealed, because no event can be added before it any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Horizon {
    /// The current epoch, in which events are being written.
    pub epoch: i32,
    /// Every transaction with a lower id has ended.
    pub xact_id: i64,
    /// `true` if the epoch belongs to the cluster of this connection. In another cluster transaction ids start again,
    /// so its ids cannot be compared with those of the epoch.
    pub same_cluster: bool,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

/// Tries to take the sealing lock, which is held until the transaction ends. Returns `false` if another transaction
/// holds the lock.
pub(super) async fn lock(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtext('public.audit_seals')) as "locked!""#
    );
    instrument_query("audit_seals.lock", statement.fetch_one(connection)).await
}

/// Returns the current horizon. The caller must call this function before it reads the events. Otherwise an event that
/// commits between the two statements may never be sealed.
pub(super) async fn horizon(connection: &mut PgConnection) -> Result<Horizon, sqlx::Error> {
    instrument_query("audit_epochs.horizon", select_horizon(connection)).await
}

async fn select_horizon(connection: &mut PgConnection) -> Result<Horizon, sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        select
          epoch,
          pg_snapshot_xmin(pg_current_snapshot())::text::bigint as "xact_id!",
          audit_epochs.system_identifier = cluster.system_identifier as "same_cluster!",
          clock_timestamp() as "now!"
        from audit_epochs, pg_control_system() as cluster
        order by epoch desc
        limit 1
        "#
    );
    let row = statement.fetch_one(connection).await?;
    let (xact_id, same_cluster) = (row.xact_id, row.same_cluster);
    Ok(Horizon { epoch: row.epoch, xact_id, same_cluster, now: row.now })
}

/// Returns the last seal, if there is one.
pub(super) async fn last(connection: &mut PgConnection) -> Result<Option<Seal>, sqlx::Error> {
    instrument_query("audit_seals.last", select_last(connection)).await
}

async fn select_last(connection: &mut PgConnection) -> Result<Option<Seal>, sqlx::Error> {
    let statement = sqlx::query_as!(
        Seal,
        r#"
        select
          number, epoch, first_xact_id, first_sequence, last_xact_id, last_sequence, event_count, digests,
          sealed_at, previous_hash, hash
        from audit_seals
        order by number desc
        limit 1
        "#
    );
    statement.fetch_optional(connection).await
}

/// Returns at most `limit` seals with numbers greater than `after` and up to `until`, in order.
pub(super) async fn page(
    connection: &mut PgConnection,
    after: i64,
    until: i64,
    limit: i64,
) -> Result<Vec<Seal>, sqlx::Error> {
    let statement = sqlx::query_as!(
        Seal,
        r#"
        select
          number, epoch, first_xact_id, first_sequence, last_xact_id, last_sequence, event_count, digests,
          sealed_at, previous_hash, hash
        from audit_seals
        where number > $1 and number <= $2
        order by number
        limit $3
        "#,
        after,
        until,
        limit,
    );
    instrument_query("audit_seals.page", statement.fetch_all(connection)).await
}

/// Returns the hash of a seal, if the seal exists.
pub(super) async fn hash_of(database: &Database, number: i64) -> Result<Option<Vec<u8>>, sqlx::Error> {
    let statement = sqlx::query_scalar!("select hash from audit_seals where number = $1", number);
    database.run("audit_seals.hash", async |connection| statement.fetch_optional(connection).await).await
}

/// Returns the number of the first seal that ends at or after a position, if there is one.
pub(super) async fn covering(
    database: &Database,
    position: EventPosition,
) -> Result<Option<i64>, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select number
        from audit_seals
        where (epoch, last_xact_id, last_sequence) >= ($1, $2, $3)
        order by number
        limit 1
        "#,
        position.epoch,
        position.xact_id,
        position.sequence,
    );
    database.run("audit_seals.covering", async |connection| statement.fetch_optional(connection).await).await
}

/// Returns the head of the chain, which the database stores separately from the seals.
pub(super) async fn head(connection: &mut PgConnection) -> Result<Head, sqlx::Error> {
    instrument_query("audit_seal_head.select", select_head(connection)).await
}

async fn select_head(connection: &mut PgConnection) -> Result<Head, sqlx::Error> {
    let row = sqlx::query!("select number, hash from audit_seal_head").fetch_one(connection).await?;
    Head::read(row.number, &row.hash)
}

/// Returns the number of the newest seal.
pub(super) async fn last_number(database: &Database) -> Result<i64, sqlx::Error> {
    Ok(database.run("audit_seal_head.select", select_head).await?.number)
}

/// Appends a seal to the chain. The database rejects a seal that does not continue the chain.
pub(super) async fn insert(connection: &mut PgConnection, seal: &Seal) -> Result<(), sqlx::Error> {
    let statement = sqlx::query!(
        r#"
        insert into audit_seals (
          number, epoch, first_xact_id, first_sequence, last_xact_id, last_sequence, event_count, digests,
          sealed_at, previous_hash, hash
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        "#,
        seal.number,
        seal.epoch,
        seal.first_xact_id,
        seal.first_sequence,
        seal.last_xact_id,
        seal.last_sequence,
        seal.event_count,
        seal.digests,
        seal.sealed_at,
        seal.previous_hash,
        seal.hash,
    );
    instrument_query("audit_seals.insert", statement.execute(connection)).await?;
    Ok(())
}

/// Returns at most `limit` events with positions after `after` and up to `until`, in order.
pub(super) async fn events(
    connection: &mut PgConnection,
    after: EventPosition,
    until: EventPosition,
    limit: i64,
) -> Result<Vec<StoredEvent>, sqlx::Error> {
    let statement = sqlx::query_as!(
        StoredEvent,
        r#"
        select
          epoch, xact_id::text::bigint as "xact_id!", sequence, id, recorded_at, "timestamp", event_type, user_id,
          role, resource, action, result, host(ip_address) as ip_address, metadata, correlation_id, request_id,
          trace_id, service_version
        from audit_events
        where
          (epoch, xact_id, sequence) > ($1, $2::text::xid8, $3)
          and (epoch, xact_id, sequence) <= ($4, $5::text::xid8, $6)
        order by epoch, audit_events.xact_id, sequence
        limit $7
        "#,
        after.epoch,
        after.xact_id.to_string(),
        after.sequence,
        until.epoch,
        until.xact_id.to_string(),
        until.sequence,
        limit,
    );
    instrument_query("audit_events.page", statement.fetch_all(connection)).await
}

/// The number of events after a position, up to a limit, and the earliest time of their recording.
pub(super) struct UnsealedEvents {
    pub count: i64,
    pub oldest: Option<DateTime<Utc>>,
}

/// Counts the events after a position, up to a limit.
pub(super) async fn count_unsealed(
    connection: &mut PgConnection,
    after: EventPosition,
    limit: i64,
) -> Result<UnsealedEvents, sqlx::Error> {
    let statement = sqlx::query_as!(
        UnsealedEvents,
        r#"
        select count(*) as "count!", min(recorded_at) as oldest
        from (
          select recorded_at
          from audit_events
          where (epoch, xact_id, sequence) > ($1, $2::text::xid8, $3)
          order by epoch, xact_id, sequence
          limit $4
        ) as unsealed
        "#,
        after.epoch,
        after.xact_id.to_string(),
        after.sequence,
        limit,
    );
    instrument_query("audit_events.tail", statement.fetch_one(connection)).await
}

/// Returns the age of the oldest event without a seal, by the database's clock. Returns zero if every event has a seal.
///
/// An event has no seal if its position is after the last seal, or if it was recorded more than one minute after the
/// last seal was made. The first condition may never hold if the last seal has a forged range. It also may never hold
/// if the database was moved to another cluster with lower transaction ids. So the second condition does not use
/// positions. The minute allows for a clock that was set back.
pub(super) async fn lag(database: &Database) -> Result<Duration, sqlx::Error> {
    let last = database.run("audit_seals.last", select_last).await?;
    let after = last.as_ref().map_or(EventPosition::START, Seal::last);
    let statement = sqlx::query_scalar!(
        r#"
        select extract(epoch from clock_timestamp() - least(
          (
            select recorded_at
            from audit_events
            where (epoch, xact_id, sequence) > ($1, $2::text::xid8, $3)
            order by epoch, xact_id, sequence
            limit 1
          ),
          (
            select recorded_at
            from audit_events
            where recorded_at > $4::timestamptz + interval '1 minute'
            order by recorded_at
            limit 1
          )
        ))::float8 as lag
        "#,
        after.epoch,
        after.xact_id.to_string(),
        after.sequence,
        last.map(|seal| seal.sealed_at),
    );
    let seconds =
        database.run("audit_events.lag", async |connection| statement.fetch_one(connection).await).await?;
    // The lag is negative if the clock was set back.
    Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default())
}

/// Returns a description of the transaction that holds back the horizon: the oldest writing transaction in the cluster.
pub(super) async fn oldest_writer(database: &Database) -> Result<Option<String>, sqlx::Error> {
    let statement = sqlx::query_scalar!(
        r#"
        select writer as "writer!"
        from (
          select
            format('backend %s (%s in %s)', pid, coalesce(nullif(application_name, ''), usename), datname) as writer,
            backend_xid as xid
          from pg_stat_activity
          where backend_xid is not null and pid <> pg_backend_pid()
          union all
          select format('prepared transaction %s (in %s)', gid, database), transaction
          from pg_prepared_xacts
        ) as writers
        order by age(xid) desc
        limit 1
        "#
    );
    database
        .run("pg_stat_activity.select", async |connection| statement.fetch_optional(connection).await)
        .await
}

/// Returns whether the latest epoch belongs to this cluster. While it does not, new events cannot be sealed.
///
/// # Errors
/// The statement failed, or no connection was available.
pub async fn cluster_is_known(database: &Database) -> Result<bool, sqlx::Error> {
    Ok(database.run("audit_epochs.horizon", select_horizon).await?.same_cluster)
}
