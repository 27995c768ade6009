//! Compatibility with a pooler in transaction mode: the service leaves no state in a session except prepared
//! statements.
use std::{
    collections::BTreeSet,
    env,
    fs::Permissions,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use dev::{
    harness::{Service, TABLE, eventually},
    process::{Child, Launch},
};
use url::Url;
use uuid::Uuid;

use crate::{builder, service};

/// Trigger function that records the state of the session that executes it. The function has no `set` clause, because
/// `pg_settings` would report the setting of this clause as a setting of the session.
const RECORD_SESSION_STATE: &str = "
    create table session_state (kind text not null, name text not null);
    create function record_session_state() returns trigger
    language plpgsql
    security definer
    as $$
    begin
      insert into public.session_state (kind, name)
      select source, name from pg_settings where source in ('client', 'session')
      union all select 'channel', channel from pg_listening_channels() as channel
      union all select 'cursor', name from pg_cursors where is_holdable
      union all select 'temporary schema', 'pg_temp' where pg_my_temp_schema() <> 0;
      return null;
    end
    $$";

/// The start-up parameters that sqlx sends. `PgBouncer` sets them on each server connection before a client uses it.
const CLIENT_PARAMETERS: [&str; 4] = ["DateStyle", "TimeZone", "application_name", "client_encoding"];

#[tokio::test]
async fn sessions_have_no_state_but_prepared_statements() {
    let service = builder().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    service.database().execute(RECORD_SESSION_STATE).await;
    for table in ["sessions", TABLE, "audit_seals"] {
        service
            .database()
            .execute(format!(
                "create trigger session_state_is_recorded after insert on {table}
                 for each statement execute function record_session_state()"
            ))
            .await;
    }
    let customer = service.customer().await;
    let seals = "select count(*) from audit_seals";
    let before = service.database().number(seals).await;
    customer.uses_every_customer_route().await.unwrap();
    eventually("the sealer has fired the trigger", async || {
        (service.database().number(seals).await > before).then_some(())
    })
    .await;

    let recorded = service.database().rows("select distinct kind, name from session_state").await;
    let names_of_kind = |kind: &str| -> BTreeSet<_> {
        let of_kind = recorded.iter().filter(|row| row["kind"] == kind);
        of_kind.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names_of_kind("client"), CLIENT_PARAMETERS.map(str::to_owned).into());
    let unexpected: Vec<_> = recorded.iter().filter(|row| row["kind"] != "client").collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    // A session-level advisory lock outlives its transaction. The pooler could then assign the session, with the lock,
    // to another client.
    let locks = "select count(*)
                 from pg_locks
                 join pg_stat_activity using (pid)
                 where locktype = 'advisory' and state = 'idle' and datname = current_database()";
    assert_eq!(service.database().number(locks).await, 0);
}

/// Returns the path of `PgBouncer`, or `None` if the `PATH` has no `PgBouncer` 1.21 or newer. Older versions do not
/// support prepared statements in transaction mode.
fn pgbouncer() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let program =
        env::split_paths(&path).map(|directory| directory.join("pgbouncer")).find(|file| file.is_file())?;
    let version = Command::new(&program).arg("--version").output().ok()?;
    let version = String::from_utf8(version.stdout).ok()?;
    let mut numbers = version.lines().next()?.strip_prefix("PgBouncer ")?.split('.').map(str::parse::<u32>);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (version >= (1, 21)).then_some(program)
}

/// A running `PgBouncer` in transaction mode, with two server connections.
struct Pooler {
    _child: Child,
    url: Url,
    directory: PathBuf,
}

impl Pooler {
    async fn start(program: &Path, database: &Url) -> Self {
        let directory = env::temp_dir().join(format!("pgbouncer-{}", Uuid::now_v7()));
        std::fs::create_dir(&directory).unwrap();
        let free = dev::ports::listen().unwrap().local_addr().unwrap().port();
        let settings = format!(
            "[databases]\n\
             pooled = host={host} port={port} dbname={name} user={user} password={password}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {free}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             pool_mode = transaction\n\
             max_prepared_statements = 200\n\
             default_pool_size = 2\n",
            host = database.host_str().unwrap(),
            port = database.port().unwrap(),
            name = database.path().trim_start_matches('/'),
            user = database.username(),
            password = database.password().unwrap(),
        );
        let file = directory.join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        let mut launch = Launch::new(program);
        // PgBouncer does not run as root.
        if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
            launch = launch.args(["-u", "nobody"]);
        }
        launch = launch.args([&file]);
        let child = launch.start().unwrap();
        let mut url = database.clone();
        url.set_port(Some(free)).unwrap();
        url.set_path("pooled");
        eventually("the pooler listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", free)).await.ok()
        })
        .await;
        Self { _child: child, url, directory }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// Starts a replica of the service that connects to the database through a pooler.
async fn replica_with_pooler(service: &Service, pooler: &Pooler) -> Service {
    service.replica_with(&[("DATABASE_URL", pooler.url.as_str())]).await
}

#[tokio::test]
async fn the_main_flows_work_through_a_pooler() {
    let Some(program) = pgbouncer() else {
        println!("skipped: no PgBouncer 1.21 or newer");
        return;
    };
    let service = service().await;
    let pooler = Pooler::start(&program, service.database().service_url()).await;
    let (first, second) =
        (replica_with_pooler(&service, &pooler).await, replica_with_pooler(&service, &pooler).await);
    // Each replica has four connections, and all eight share the two server connections of the pooler. A statement
    // therefore also runs in server sessions in which its client has not prepared it.
    let (one, two) = (first.customer().await, second.customer().await);
    for _ in 0..10 {
        let (one, two) = tokio::join!(one.uses_every_customer_route(), two.uses_every_customer_route());
        one.unwrap();
        two.unwrap();
    }
    first.terminate().await;
    second.terminate().await;
    service.invariants_hold().await;
}
