//! Tests of finding or starting a PostgreSQL server, of its databases and logins, and of failover and recovery.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, in its helpers too"
)]
use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use chrono::{DateTime, Utc};
use dev::{
    postgres::{
        self, Error, Failover, Ownership, Presence, Purpose, ReplicatedServer, ReplicationMode, Rights,
        Server,
    },
    process::Launch,
};
use nix::{
    sys::signal::Signal,
    unistd::{User, geteuid},
};
use sqlx::{Connection as _, PgConnection};
use url::Url;

async fn query<T>(url: &Url, statement: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
    let value = sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    value
}

async fn run(url: &Url, statement: &'static str) {
    let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn unique(name: &str) -> String {
    format!("{name}_{}", std::process::id())
}

#[tokio::test]
async fn a_database_is_created_cloned_and_dropped() {
    let server = postgres::for_tests().await.unwrap();
    let (template, copy, owner) = (unique("template"), unique("copy"), unique("the owner"));
    server.create_login(&owner, "first", Rights::Owner).await.unwrap();
    server.create_login(&owner, "it's second", Rights::Owner).await.unwrap();
    server.create_database(&template, Some(&owner)).await.unwrap();
    let url = server.url(&template, &owner, "it's second");
    run(&url, "create table things (id int); insert into things values (7)").await;

    server.create_database_from_template(&copy, &template, Some(&owner)).await.unwrap();
    let url = server.url(&copy, &owner, "it's second");
    assert_eq!(query::<i32>(&url, "select id from things").await, 7);
    assert_eq!(server.find_database(&copy).await.unwrap(), Presence::Ours);

    let still_connected = PgConnection::connect(url.as_str()).await.unwrap();
    server.drop_database(&copy).await.unwrap();
    drop(still_connected);
    assert_eq!(server.find_database(&copy).await.unwrap(), Presence::Absent);
    server.drop_database(&copy).await.unwrap();
    server.drop_database(&template).await.unwrap();
}

#[tokio::test]
async fn a_foreign_database_is_rejected() {
    let server = postgres::for_tests().await.unwrap();
    run(server.admin_url(), "create database precious").await;
    run(server.admin_url(), "comment on database precious is 'production'").await;
    run(server.admin_url(), "create role precious").await;

    let rejected = server.drop_database("precious").await.unwrap_err();
    assert!(matches!(&rejected, Error::NotOurs { comment, .. } if comment == "production"), "{rejected}");
    let rejected = server.create_login("precious", "x", Rights::Owner).await.unwrap_err();
    assert!(matches!(rejected, Error::NotOurs { .. }), "{rejected}");
    // The SQL comment below names another environment as the creator of the database.
    let ownership = Ownership::Environment("/elsewhere".to_owned());
    let comment = format!("comment on database precious is '{ownership}'");
    let mut connection = PgConnection::connect(server.admin_url().as_str()).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(comment)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    assert!(matches!(server.find_database("precious").await.unwrap(), Presence::Foreign(_)));
    run(server.admin_url(), "drop database precious").await;
    run(server.admin_url(), "drop role precious").await;
}

#[tokio::test]
async fn a_test_server_is_fast_and_private() {
    let server = postgres::for_tests().await.unwrap();
    assert_eq!(query::<String>(server.admin_url(), "show fsync").await, "off");
    assert_eq!(query::<String>(server.admin_url(), "show max_connections").await, "400");
    assert_eq!(query::<String>(server.admin_url(), "show listen_addresses").await, "127.0.0.1");
    assert_eq!(query::<String>(server.admin_url(), "show server_encoding").await, "UTF8");
    let mut wrong = server.admin_url().clone();
    wrong.set_password(Some("guess")).unwrap();
    PgConnection::connect(wrong.as_str()).await.unwrap_err();
    let directory = server.log().unwrap().parent().unwrap().to_owned();
    assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_server_killed_under_many_connections_restarts() {
    let mut server = Server::find_or_start(Purpose::Durable, &|_| ()).await.unwrap();
    for _ in 0..3 {
        let mut connections = Vec::new();
        for _ in 0..60 {
            connections.push(PgConnection::connect(server.admin_url().as_str()).await.unwrap());
        }
        server.restart(Signal::SIGKILL, &|_| ()).await.unwrap();
        drop(connections);
        assert_eq!(query::<i32>(server.admin_url(), "select 1").await, 1);
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_development_server_keeps_its_data_and_its_port() {
    let directory = std::env::temp_dir().join(unique("dev-postgres"));
    let purpose = Purpose::Development { directory: directory.clone() };
    let start = || Server::find_or_start(purpose.clone(), &|line| println!("{line}"));

    let server = start().await.unwrap();
    let port = server.admin_url().port();
    assert_eq!(query::<String>(server.admin_url(), "show fsync").await, "on");
    server.create_database("kept", None).await.unwrap();
    server.stop().await.unwrap();

    let server = start().await.unwrap();
    assert_eq!(server.find_database("kept").await.unwrap(), Presence::Ours);
    assert_eq!(server.admin_url().port(), port);
    // Another program uses the port when the server starts again.
    drop(server);
    let listener = std::net::TcpListener::bind(("127.0.0.1", port.unwrap())).unwrap();
    let server = start().await.unwrap();
    assert_ne!(server.admin_url().port(), port);
    assert_eq!(server.find_database("kept").await.unwrap(), Presence::Ours);
    drop(listener);
    server.stop().await.unwrap();

    std::fs::write(directory.join("postgres/data/PG_VERSION"), "9\n").unwrap();
    let rejected = start().await.unwrap_err();
    assert!(matches!(rejected, Error::OtherMajor { created_by: 9, .. }), "{rejected}");
    std::fs::remove_dir_all(directory).unwrap();
}

/// Runs one of the ignored tests below as a separate process, in the environment that `prepare` sets.
async fn helper(name: &str, prepare: impl FnOnce(Launch) -> Launch) -> String {
    let test = std::env::current_exe().unwrap();
    let launch = Launch::new(test).args(["--exact", "--ignored", "--nocapture", name]);
    let child = prepare(launch).start().unwrap();
    let status = child.wait(Duration::from_mins(1)).await.unwrap();
    let output: Vec<String> = child.lines().into_iter().map(|line| line.text).collect();
    let output = output.join("\n");
    assert!(status.success(), "{output}");
    output
}

#[tokio::test]
async fn an_unprivileged_user_starts_a_server() {
    if !geteuid().is_root() {
        println!("skipped: only root can switch to another user");
        return;
    }
    let unprivileged = User::from_name("nobody").unwrap().expect("the user `nobody` does not exist");
    // The test's own executable may be in a directory that only root can enter, so `nobody` runs a copy.
    let directory = std::env::temp_dir().join(unique("dev-nobody"));
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();

    let child = Launch::new(&copy)
        .args(["--exact", "--ignored", "--nocapture", "a_server_responds"])
        .run_as(unprivileged.uid.as_raw(), unprivileged.gid.as_raw())
        .env("TMPDIR", "/tmp")
        .directory(&directory)
        .start()
        .unwrap();
    let status = child.wait(Duration::from_mins(1)).await.unwrap();
    assert!(status.success(), "{:#?}", child.lines());
    assert!(
        child.lines().iter().any(|line| line.text.contains("as the current user")),
        "{:#?}",
        child.lines()
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
#[ignore = "run by other tests as another user or in another environment"]
async fn a_server_responds() {
    let server = postgres::for_tests().await.unwrap();
    server.create_database(&unique("answers"), None).await.unwrap();
    println!("the server responds at {:?}", server.admin_url().port());
}

#[tokio::test]
async fn a_configured_server_is_used_and_cleaned_up() {
    let server = postgres::for_tests().await.unwrap();
    let url = server.admin_url().as_str().to_owned();
    let output = helper("a_server_responds", |launch| launch.env("DEV_DATABASE_URL", &url)).await;
    assert!(output.contains("using the PostgreSQL of DEV_DATABASE_URL"), "{output}");
    assert!(!output.contains("starting"), "{output}");
    // The run above has ended, so the next run drops the database that the run above created.
    let output = helper("a_server_responds", |launch| launch.env("DATABASE_URL", &url)).await;
    assert!(output.contains("using the PostgreSQL of DATABASE_URL"), "{output}");
    assert!(output.contains("dropping answers_"), "{output}");
    assert!(!output.contains(server.admin_url().password().unwrap()), "a password is printed: {output}");
}

#[tokio::test]
async fn an_unusable_configured_server_is_an_error() {
    let server = postgres::for_tests().await.unwrap();
    let role = unique("powerless");
    server.create_login(&role, "x", Rights::Restricted).await.unwrap();
    let url = server.url("postgres", &role, "x");
    let output =
        helper("an_unusable_server_is_rejected", |launch| launch.env("DEV_DATABASE_URL", url.as_str())).await;
    assert!(
        output.contains("DEV_DATABASE_URL is set but unusable: its role has no right to create"),
        "{output}"
    );
    let closed = "postgres://nobody@127.0.0.1:1/postgres";
    let output =
        helper("an_unusable_server_is_rejected", |launch| launch.env("DEV_DATABASE_URL", closed)).await;
    assert!(output.contains("DEV_DATABASE_URL is set but unusable: "), "{output}");
    // `DATABASE_URL` is often set for another purpose, so an unusable server of `DATABASE_URL` is skipped.
    let output = helper("a_server_responds", |launch| launch.env("DATABASE_URL", closed)).await;
    assert!(output.contains("skipped DATABASE_URL: "), "{output}");
}

#[tokio::test]
#[ignore = "run by another test in another environment"]
async fn an_unusable_server_is_rejected() {
    println!("{}", postgres::for_tests().await.unwrap_err());
}

#[tokio::test]
async fn a_replicated_server_recovers_to_a_moment_repeatedly() {
    let server = Server::find_or_start(Purpose::Durable, &|_| ()).await.unwrap();
    let mode = Some(ReplicationMode::Synchronous);
    let mut server = ReplicatedServer::start(server, mode, &|_| ()).await.unwrap();
    let url = server.url_of_primary(server.primary().admin_url());
    run(&url, "create table things (id serial, kept bool)").await;
    let long_ago = query::<DateTime<Utc>>(&url, "select now()").await;
    server.back_up().await.unwrap();
    let earliest = query::<DateTime<Utc>>(&url, "select now()").await;
    for kept in 1..=2 {
        run(&url, "insert into things (kept) values (true)").await;
        let moment = query::<DateTime<Utc>>(&url, "select clock_timestamp()").await;
        run(&url, "insert into things (kept) values (false)").await;
        // `recover` must use the older backup, because this backup ends after the moment.
        server.back_up().await.unwrap();
        let reached = server.recover(moment, &|_| ()).await.unwrap();
        assert_eq!(reached, moment);
        server.admit().unwrap();
        server.rejoin(&|_| ()).await.unwrap();
        server.back_up().await.unwrap();
        assert_eq!(query::<i64>(&url, "select count(*) from things where kept").await, kept);
        assert_eq!(query::<i64>(&url, "select count(*) from things where not kept").await, 0);
        let synchronous = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        assert_eq!(query::<i64>(&url, synchronous).await, 1);

        server.fail_over(Failover::ProcessKilled, &|_| ()).await.unwrap();
        server.rejoin(&|_| ()).await.unwrap();
        server.back_up().await.unwrap();
        assert_eq!(query::<i64>(&url, "select count(*) from things").await, kept);
    }
    // The failover discarded the earlier backups. Every remaining backup ended after `long_ago`, so the database is
    // restored to the end of the oldest remaining backup.
    let reached = server.recover(long_ago, &|_| ()).await.unwrap();
    assert!(reached > earliest, "{reached} is not after {earliest}");
    server.admit().unwrap();
    assert_eq!(query::<i64>(&url, "select count(*) from things").await, 2);
    server.stop().await.unwrap();
}
