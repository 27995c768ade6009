//! The monitor: a separate connection that checks whether the database can be written to.
//!
//! Readiness reads the monitor's latest state and never waits for the pool. So a slow statement or a full pool does
//! not take every replica out of rotation.
//!
//! The monitor also replaces TCP keepalive, which sqlx 0.9.0 does not set. If the monitor's connection no longer
//! responds and a new connection can be opened, the server behind all open connections is lost: it failed without
//! closing them. The monitor then retires all open connections, so that the pool does not reuse them. Statements that
//! are still in flight a second later fail. Open connections are also retired if the check on the monitor's connection
//! fails, for example because the server is no longer a writable primary.
use std::time::Duration;

use sqlx::{PgConnection, migrate::Migrator};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    DatabaseUrl, SchemaState, Unavailable, connection,
    pool::{self, Pool},
    schema::schema_state,
    url::require_writable_primary,
};

/// Pause between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Timeout of the response to one check, of reading the schema's state, and of opening and closing a connection in
/// [`replace_connection`].
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Additional time for the response to a check once a new connection is open. An overloaded server usually responds to
/// the check within this time, because it has already completed the round trips of opening a connection.
const LATE_RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Age at which the monitor's connection is replaced. Only a new connection gets a changed default of the database,
/// such as `default_transaction_read_only`, or reaches another host with the same name.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Time after which the database counts as unreachable while a new connection is being opened. The connection attempt
/// continues.
const RECONNECT_TIME: Duration = Duration::from_millis(500);

/// The latest state of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// The reason why the database cannot be written to, if there is one.
    unavailable: Option<Unavailable>,
    /// The state of the schema, or `None` if the latest check did not read it.
    schema: Option<SchemaState>,
}

/// The handle that reads the latest state of the database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Monitor(watch::Receiver<State>);

impl Monitor {
    /// Starts the monitor of `pool`. The monitor runs until the pool is closed. Until the first check the database
    /// counts as available and its schema as current, because the service has just connected and checked the schema.
    pub(super) fn start(pool: Pool, migrations: &'static Migrator) -> Self {
        let state = State { unavailable: None, schema: Some(SchemaState::Current) };
        let (states, latest) = watch::channel(state);
        tokio::spawn(watch_database(pool, migrations, states));
        Self(latest)
    }

    /// Returns `Ok` if a writable primary responded to the latest check, or if no check is complete yet.
    ///
    /// # Errors
    /// The reason why the database cannot be written to, or [`Unavailable::Unreachable`] once the monitor has ended.
    pub fn available(&self) -> Result<(), Unavailable> {
        let ended = self.0.has_changed().is_err().then_some(Unavailable::Unreachable);
        self.0.borrow().unavailable.or(ended).map_or(Ok(()), Err)
    }

    /// Returns the state of the schema, compared with the migrations of this binary, or `None` if the latest check did
    /// not read it.
    pub fn schema(&self) -> Option<SchemaState> {
        self.0.borrow().schema
    }
}

/// The monitor's own connection.
struct DedicatedConnection {
    connection: PgConnection,
    opened: Instant,
}

async fn watch_database(pool: Pool, migrations: &'static Migrator, states: watch::Sender<State>) {
    let mut dedicated = None;
    while !pool.is_closed() {
        let (next, state) = check_once(&pool, migrations, dedicated, &states).await;
        dedicated = next;
        let previous = states.borrow().unavailable;
        report_change(previous, state.unavailable);
        states.send_replace(state);
        sleep(CHECK_INTERVAL).await;
    }
}

fn report_change(previous: Option<Unavailable>, unavailable: Option<Unavailable>) {
    match unavailable {
        Some(reason) if previous != unavailable => {
            tracing::warn!(reason = reason.as_str(), "database unavailable");
        }
        None if previous.is_some() => tracing::info!("database available again"),
        _ => {}
    }
}

/// Checks the database once, on `dedicated` or, without it, on a new connection. Retires the open connections if their
/// server is lost, or if the check on `dedicated` fails. Returns the connection for the next check, and the state of
/// the database.
async fn check_once(
    pool: &Pool,
    migrations: &Migrator,
    dedicated: Option<DedicatedConnection>,
    states: &watch::Sender<State>,
) -> (Option<DedicatedConnection>, State) {
    let url = &pool.manager().url.clone().for_monitor();
    let Some(mut dedicated) = dedicated else { return reconnect(url, migrations, states).await };
    let mut check = Box::pin(require_writable_primary(&mut dedicated.connection));
    let response = match timeout(RESPONSE_TIMEOUT, &mut check).await {
        Ok(response) => response,
        Err(_elapsed) => {
            let reconnected = tokio::select! {
                biased;
                response = &mut check => Err(response),
                reconnected = reconnect(url, migrations, states) => Ok(reconnected),
            };
            match reconnected {
                Err(late) => late,
                // The old connection is kept. If a later check opens a new connection and the old one still does not
                // respond, the open connections are retired.
                Ok((None, state)) => {
                    drop(check);
                    return (Some(dedicated), state);
                }
                // An overloaded server soon responds to the check on the old connection. A lost server never responds.
                Ok(reconnected) => match timeout(LATE_RESPONSE_TIMEOUT, &mut check).await {
                    Ok(late) => late,
                    Err(_elapsed) => {
                        tracing::warn!(
                            "an open database connection no longer responds, but a new connection does"
                        );
                        retire(pool).await;
                        connection::end_statements_of_lost_server();
                        return reconnected;
                    }
                },
            }
        }
    };
    drop(check);
    match response {
        Ok(()) if dedicated.opened.elapsed() < MAX_AGE => read_schema(dedicated, migrations).await,
        Ok(()) => replace_connection(pool, migrations, dedicated).await,
        Err(error) => {
            // The server of the open connections is not writable, or has closed the monitor's connection. Once the open
            // connections are retired, new connections go to a host that is a writable primary.
            drop(dedicated);
            retire(pool).await;
            let (reconnected, state) = reconnect(url, migrations, states).await;
            let demoted = is_not_writable(&error).then(|| Unavailable::of(&error));
            let unavailable = state.unavailable.map(|reason| demoted.unwrap_or(reason));
            (reconnected, State { unavailable, ..state })
        }
    }
}

fn is_not_writable(error: &sqlx::Error) -> bool {
    matches!(Unavailable::of(error), Unavailable::ReadOnly | Unavailable::Standby)
}

async fn retire(pool: &Pool) {
    pool::retire_open_connections();
    pool::close_idle(pool, |_| false).await;
}

/// Opens a new connection, and reads the schema's state. If the attempt takes longer than [`RECONNECT_TIME`], a
/// database that was available is reported as unreachable before the attempt ends.
async fn reconnect(
    url: &DatabaseUrl,
    migrations: &Migrator,
    states: &watch::Sender<State>,
) -> (Option<DedicatedConnection>, State) {
    let mut connecting = std::pin::pin!(url.connect());
    let connected = match timeout(RECONNECT_TIME, &mut connecting).await {
        Ok(connected) => connected,
        Err(_elapsed) => {
            let unreachable = State { unavailable: Some(Unavailable::Unreachable), schema: None };
            // An earlier reason is kept, because it may be more specific.
            let previous = states.borrow().unavailable;
            if previous.is_none() {
                report_change(previous, unreachable.unavailable);
                states.send_replace(unreachable);
            }
            connecting.await
        }
    };
    match connected {
        Ok(connection) => {
            read_schema(DedicatedConnection { connection, opened: Instant::now() }, migrations).await
        }
        Err(error) => (None, State { unavailable: Some(Unavailable::of(&error)), schema: None }),
    }
}

/// Replaces a working connection with a new one. If no new connection can be opened, the old one is kept. The database
/// then still counts as available, unless the attempt found a server that is not writable.
async fn replace_connection(
    pool: &Pool,
    migrations: &Migrator,
    dedicated: DedicatedConnection,
) -> (Option<DedicatedConnection>, State) {
    let url = pool.manager().url.clone().for_monitor();
    let connecting = timeout(RESPONSE_TIMEOUT, url.connect());
    match connecting.await.unwrap_or_else(|_elapsed| Err(Unavailable::Unreachable.into())) {
        Ok(connection) => {
            let _closed = timeout(RESPONSE_TIMEOUT, sqlx::Connection::close(dedicated.connection)).await;
            read_schema(DedicatedConnection { connection, opened: Instant::now() }, migrations).await
        }
        Err(error) if is_not_writable(&error) => {
            (Some(dedicated), State { unavailable: Some(Unavailable::of(&error)), schema: None })
        }
        Err(_) => read_schema(dedicated, migrations).await,
    }
}

/// Reads the schema's state on a working connection. If this fails, closes the connection, so that the next check opens
/// a new one.
async fn read_schema(
    mut dedicated: DedicatedConnection,
    migrations: &Migrator,
) -> (Option<DedicatedConnection>, State) {
    let schema = timeout(RESPONSE_TIMEOUT, schema_state(&mut dedicated.connection, migrations)).await;
    match schema {
        Ok(Ok(schema)) => (Some(dedicated), State { unavailable: None, schema: Some(schema) }),
        _ => (None, State { unavailable: None, schema: None }),
    }
}
