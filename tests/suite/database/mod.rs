//! The privileges and session settings of the service in the database, the migration of the schema, query plans, and
//! cancelled transactions.
mod database_outages;
mod pooling;
pub(crate) mod round_trips;

use std::{num::NonZeroU32, path::Path, sync::Arc, time::Duration};

use dev::harness::{Database, Service, TABLE, eventually, run};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::{EXECUTABLE, service};

/// The SQLSTATE of an operation that the role has no privilege for.
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";

#[tokio::test]
async fn the_service_has_no_privilege_to_rewrite_records_or_schema() {
    let service = service().await;
    let _created = service.customer().await.creates().await.assert_status(201);
    let partition = service
        .database()
        .rows("select relname from pg_class where relname like 'audit_events_2%' and relkind = 'r' limit 1")
        .await;
    let partition = partition[0]["relname"].as_str().unwrap();

    for statement in [
        // The audit log.
        "update audit_events set user_id = null",
        "delete from audit_events",
        "truncate audit_events",
        &format!("select from {partition}"),
        &format!("delete from {partition}"),
        &format!("truncate {partition}"),
        "truncate audit_events_default",
        "insert into audit_events_default select * from audit_events",
        "insert into audit_events (sequence) values (1)",
        "insert into audit_events (recorded_at) values ('2020-01-01')",
        "insert into audit_events (xact_id) values ('1')",
        "select setval('audit_event_sequence', 1)",
        "alter table audit_events disable trigger all",
        // The idempotency keys with their responses.
        "update idempotency_keys set fingerprint = ''",
        "update idempotency_keys set resource_id = gen_random_uuid()",
        // The users and their sessions.
        "update users set role = 'admin'",
        "update users set email = 'root@example.com'",
        "delete from users",
        "update sessions set user_id = gen_random_uuid()",
        "update sessions set expires_at = 'infinity'",
        // The schema.
        "create table loot (id integer)",
        "create function loot() returns integer language sql as 'select 1'",
        &format!("drop table {TABLE}"),
        &format!("alter table {TABLE} add column loot integer"),
        "update _sqlx_migrations set success = true",
        "create role loot",
        "grant app_runtime to current_user with admin option",
    ] {
        let rejected = service.database().try_as_service(statement).await;
        assert_eq!(rejected, Err(INSUFFICIENT_PRIVILEGE.to_owned()), "{statement}");
    }
}

#[tokio::test]
async fn migrate_turns_synchronous_commit_on_for_the_service() {
    // The server of the tests has `synchronous_commit = off`, like a server that is tuned for speed.
    let service = service().await;
    let mut as_service = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    let query = "select current_setting('synchronous_commit')";
    let service_value: String = sqlx::query_scalar(query).fetch_one(&mut as_service).await.unwrap();
    let mut as_owner = PgConnection::connect(service.database().owner_url().as_str()).await.unwrap();
    let owner_value: String = sqlx::query_scalar(query).fetch_one(&mut as_owner).await.unwrap();
    assert_eq!((owner_value.as_str(), service_value.as_str()), ("off", "on"));
}

#[tokio::test]
async fn migrate_overrides_synchronous_commit_off_on_the_role() {
    let service = service().await;
    let database = service.database();
    let role = database.service_role();
    // With these settings, commits of the owner's sessions are durable, but those of the service's sessions are not.
    for (scope, value) in [(String::new(), "on"), (format!("role {role} in "), "off")] {
        let statement =
            if scope.is_empty() { "alter database".to_owned() } else { format!("alter {scope}database") };
        database
            .execute(format!(
                "do $$ begin execute format('{statement} %I set synchronous_commit = {value}', current_database()); end $$"
            ))
            .await;
    }
    for environment in ["staging", "production"] {
        let stopped = service.command(&["serve"], &[("APP_ENV", environment)]).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains("synchronous_commit"), "{}", stopped.stderr);
    }
    migrate(database).await.succeeded();
    let mut as_service = PgConnection::connect(database.service_url().as_str()).await.unwrap();
    let effective: String = sqlx::query_scalar("select current_setting('synchronous_commit')")
        .fetch_one(&mut as_service)
        .await
        .unwrap();
    assert_eq!(effective, "on");
}

#[tokio::test]
async fn sessions_have_timeouts_that_detect_a_lost_replica() {
    let service = service().await;
    let mut as_service = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    for (setting, expected) in [
        ("tcp_keepalives_idle", "15"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "30000"),
        ("client_connection_check_interval", "1s"),
    ] {
        let effective: String = sqlx::query_scalar("select current_setting($1)")
            .bind(setting)
            .fetch_one(&mut as_service)
            .await
            .unwrap();
        assert_eq!(effective, expected, "{setting}");
    }
}

#[tokio::test]
async fn triggers_protect_the_audit_log_from_its_owner() {
    let service = service().await;
    let _created = service.customer().await.creates().await.assert_status(201);
    let before = service.database().number("select count(*) from audit_events").await;
    for statement in
        ["update audit_events set user_id = null", "delete from audit_events", "truncate audit_events"]
    {
        let mut owner = PgConnection::connect(service.database().owner_url().as_str()).await.unwrap();
        let rejected = owner.execute(AssertSqlSafe(statement)).await;
        assert!(rejected.unwrap_err().to_string().contains("append-only"), "{statement}");
    }
    assert_eq!(service.database().number("select count(*) from audit_events").await, before);
}

/// Returns each statement of the service in the directories `.sqlx`, and the number of its parameters.
pub fn statements() -> Vec<(String, usize)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [".sqlx", "platform/.sqlx", "src/slices/.sqlx"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    let statement = |file| {
        let cached: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let parameters = cached["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
        (cached["query"].as_str().unwrap().to_owned(), parameters)
    };
    files.map(statement).collect()
}

/// Returns a query plan and all JSON values within it, in particular its nodes.
pub fn nodes(plan: &Value) -> Vec<&Value> {
    let mut found = vec![plan];
    match plan {
        Value::Array(items) => items.iter().for_each(|item| found.extend(nodes(item))),
        Value::Object(members) => members.values().for_each(|member| found.extend(nodes(member))),
        _ => {}
    }
    found
}

/// Asserts that no statement that names this table reads the whole table sequentially. Returns the number of statements
/// that name the table.
pub async fn assert_no_full_scan(service: &Service, table: &str) -> usize {
    // The connection has the service's rights, and the plan mode that `migrate` has set on the service's role.
    let mut connection = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    let statements: Vec<_> =
        statements().into_iter().filter(|(statement, _)| statement.contains(table)).collect();
    for (number, (statement, parameters)) in statements.iter().enumerate() {
        let prepare = format!("prepare statement_{number} as {statement}");
        connection.execute(AssertSqlSafe(prepare)).await.unwrap();
        let nulls = vec!["null"; *parameters].join(", ");
        let explain = format!("explain (format json) execute statement_{number}({nulls})");
        let plan: Value =
            sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut connection).await.unwrap();
        let is_scan = |node: &&Value| node["Node Type"] == "Seq Scan" && node["Relation Name"] == table;
        assert_eq!(nodes(&plan).iter().find(|node| is_scan(node)), None, "{statement}\n{plan:#}");
    }
    statements.len()
}

async fn migrate(database: &Database) -> dev::harness::CommandOutput {
    let settings = database.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    run(Path::new(EXECUTABLE), &["migrate"], &settings).await
}

#[tokio::test]
async fn concurrent_migrations_of_several_replicas_succeed() {
    let database = Arc::new(Database::create_empty().await);
    let replicas: Vec<_> = (0..8)
        .map(|_| {
            let database = Arc::clone(&database);
            tokio::spawn(async move { migrate(&database).await })
        })
        .collect();
    let mut outputs = Vec::new();
    for replica in replicas {
        outputs.push(replica.await.unwrap().succeeded());
    }
    let migrations = database.number("select count(*) from _sqlx_migrations where success").await;
    let all = format!("applied {migrations} migrations");
    assert!(outputs.iter().any(|output| output.starts_with(&all)), "{outputs:#?}");
    assert!(migrate(&database).await.succeeded().starts_with("applied 0 migrations"));
}

#[tokio::test]
async fn a_changed_applied_migration_is_rejected() {
    let database = Database::create_empty().await;
    migrate(&database).await.succeeded();
    database.execute(r"update _sqlx_migrations set checksum = '\x00' where version = 1").await;
    let rejected = migrate(&database).await;
    assert_eq!(rejected.code(), Some(1));
    assert!(rejected.stderr.contains("migration 1"), "{}", rejected.stderr);
}

#[tokio::test]
async fn an_older_release_does_not_change_a_newer_schema() {
    let database = Database::create_empty().await;
    migrate(&database).await.succeeded();
    let newer = r"insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                  values (9999, 'of the next release', true, '\x00', 0)";
    database.execute(newer).await;
    let output = migrate(&database).await.succeeded();
    assert!(output.starts_with("nothing to do: the schema has version 9999"), "{output}");

    database.execute(r"update _sqlx_migrations set checksum = '\x00' where version = 1").await;
    let rejected = migrate(&database).await;
    assert_eq!(rejected.code(), Some(1));
    assert!(rejected.stderr.contains("migration 1"), "{}", rejected.stderr);
}

#[tokio::test]
async fn an_unsuitable_database_is_rejected_before_any_change() {
    let database = Database::create_empty().await;
    let prefer_another_schema = "create schema shop;
        do $$ begin execute format('alter database %I set search_path = shop, public', current_database()); end $$";
    database.execute(prefer_another_schema).await;
    let rejected = migrate(&database).await;
    assert_eq!(rejected.code(), Some(1));
    assert!(rejected.stderr.contains("search_path is shop, and public is required"), "{}", rejected.stderr);
    let tables = "select count(*) from pg_class where relname = '_sqlx_migrations'";
    assert_eq!(database.number(tables).await, 0);

    let database = Database::create_empty().await;
    let service_url = database.service_url().as_str();
    let settings = [("DATABASE_URL", service_url), ("DATABASE_MIGRATION_URL", service_url)];
    let rejected = run(Path::new(EXECUTABLE), &["migrate"], &settings).await;
    assert_eq!(rejected.code(), Some(1));
    for missing in ["no right to create tables", "no right to create roles"] {
        assert!(rejected.stderr.contains(missing), "{}", rejected.stderr);
    }
    assert_eq!(rejected.stderr.trim_end().lines().count(), 1, "{}", rejected.stderr);
}

#[tokio::test]
async fn the_service_runs_on_a_newer_schema() {
    let mut service = service().await;
    service.terminate().await;
    service
        .database()
        .execute(
            r"insert into _sqlx_migrations (version, description, success, checksum, execution_time)
              values (9999, 'of the next release', true, '\x00', 0)",
        )
        .await;
    service.restart().await;
    let _created = service.customer().await.creates().await.assert_status(201);
}

#[tokio::test]
async fn a_cancelled_begin_leaves_no_open_transaction() {
    let database = Database::create_empty().await;
    let settings = platform::database::Settings {
        url: database.owner_url().as_str().parse().unwrap(),
        migration_url: None,
        max_connections: NonZeroU32::new(2).unwrap(),
        acquire_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_secs(10),
        startup_wait: Duration::from_secs(10),
        migrate_on_start: false,
    };
    let pool = platform::database::Database::connect(&settings, "cancelled").await.unwrap();
    let mut begun = 0;
    // Each attempt is cancelled later than the previous one. The last attempts begin their transaction before the
    // cancellation.
    let attempts: Vec<_> = (0..100).chain((100..3_000).step_by(50)).collect();
    for &yields in &attempts {
        // This opens a connection if none is open, so the cancellation below hits `BEGIN`, not a connection attempt.
        pool.acquire().await.unwrap().release();
        let yielding = async {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            transaction = pool.begin() => begun += usize::from(transaction.is_ok()),
            () = yielding => {}
        }
    }
    assert!(
        (1..attempts.len()).contains(&begun),
        "some attempts must begin a transaction, and some must not: {begun} did"
    );
    let open_transactions = "select count(*) from pg_stat_activity \
                  where application_name = 'cancelled' and state like 'idle in transaction%'";
    eventually("no connection is within a transaction", async || {
        (database.number(open_transactions).await == 0).then_some(())
    })
    .await;
    // The pool may use either of its connections for a statement. Neither is within a transaction afterwards.
    for _ in 0..4 {
        pool.acquire().await.unwrap().execute("select 1").await.unwrap();
    }
    assert_eq!(database.number(open_transactions).await, 0);
    pool.close(Duration::from_secs(10)).await;
}
