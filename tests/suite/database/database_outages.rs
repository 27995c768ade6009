//! Database outages, standbys, read-only databases, long statements, and a change of a column's type. During an outage
//! the probes respond within seconds. Afterwards the service recovers without intervention.
use std::time::{Duration, Instant};

use dev::harness::{HttpResponse, Request, Service, TABLE, eventually, within};
use serde_json::Value;
use url::Url;

use crate::builder;

async fn ready(service: &Service) -> (u16, Value) {
    let (status, body) = service.ops("/readyz").await;
    (status, serde_json::from_str(&body).unwrap_or_default())
}

async fn wait_until_ready(service: &Service) {
    within(Duration::from_mins(1), "the service is ready again", async || {
        (ready(service).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn probes_respond_in_time_while_the_database_hangs() {
    let service = builder().with_database_proxy().start().await;
    service.database_proxy().freeze();
    eventually("the service is not ready", async || (ready(&service).await.0 == 503).then_some(())).await;
    for _ in 0..5 {
        let started = Instant::now();
        let (status, body) = ready(&service).await;
        assert_eq!((status, body["checks"]["database"].as_str()), (503, Some("unhealthy")), "{body}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(service.ops("/healthz").await.0, 200, "the process is alive nevertheless");
    }
    let (_, report) = service.ops("/health").await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["status"], "unhealthy");
    assert_eq!(report["checks"]["database"]["message"], "the database is unreachable");
    service.database_proxy().resume();
    wait_until_ready(&service).await;
}

#[tokio::test]
async fn the_service_reconnects_after_an_outage_without_a_restart() {
    let service = builder().with_database_proxy().start().await;
    let customer = service.customer().await;
    let request = customer.creates();
    service.database_proxy().cut();
    let rejected = request.clone().await.assert_problem(503, "unavailable");
    assert!(rejected.header("retry-after").is_some(), "{rejected}");
    eventually("the service is not ready", async || (ready(&service).await.0 == 503).then_some(())).await;
    eventually("a worker fails and logs it", async || {
        service.logs().iter().any(|line| line["message"] == "worker failed").then_some(())
    })
    .await;
    service.database_proxy().resume();
    wait_until_ready(&service).await;
    assert!(!request.send_until_final().await.assert_status(201).is_replayed());
    // After several failures, a worker pauses for up to 30 seconds.
    within(Duration::from_mins(2), "the workers succeed again", async || {
        let (_, report) = service.ops("/health").await;
        let report: Value = serde_json::from_str(&report).unwrap();
        let workers = report["workers"].as_array().unwrap();
        workers.iter().all(|worker| worker["consecutive_failures"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_attempt_continues_after_its_request_timed_out() {
    let service = builder().setting("DATABASE_ACQUIRE_TIMEOUT_MS", "300").with_database_proxy().start().await;
    let customer = service.customer().await;
    // A statement takes one round trip, but opening a connection takes several, which last longer than the acquire
    // timeout. This simulates a restart of the database, after which all replicas reconnect at the same time.
    service.database_proxy().interrupt();
    service.database_proxy().slow(Duration::from_millis(100));
    let rejected = customer.lists().await.assert_problem(503, "unavailable");
    assert!(rejected.header("retry-after").is_some(), "{rejected}");
    eventually("a connection is available", async || (customer.lists().await.status == 200).then_some(()))
        .await;
    wait_until_ready(&service).await;
}

#[tokio::test]
async fn connections_to_a_lost_host_are_closed() {
    let service = builder()
        .setting("REQUEST_TIMEOUT_MS", "2600")
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .with_database_proxy()
        .start()
        .await;
    let customer = service.customer().await;
    let pool = [(); 4];
    // All connections of the pool are open and have a statement in flight when the host is lost.
    let held = service.database().lock(TABLE).await;
    let requests = pool.map(|()| customer.lists().in_background());
    service.database().wait_for_blocked_statements(4).await;
    service.database_proxy().freeze();
    for request in requests {
        let _late = request.response().await.assert_problem(504, "timeout");
    }
    held.release().await;
    service.database_proxy().replace_host();

    wait_until_ready(&service).await;
    let requests = pool.map(|()| customer.lists().in_background());
    for request in requests {
        let _served = request.response().await.assert_status(200);
    }
    let successful_runs =
        async || service.gauge("worker_last_success_timestamp_seconds{worker=\"audit_sealing\"}").await;
    let before = successful_runs().await;
    within(Duration::from_mins(1), "the workers succeed again", async || {
        (successful_runs().await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_statement_timeout_follows_the_setting() {
    let service = builder()
        .setting("DATABASE_STATEMENT_TIMEOUT_MS", "30000")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let request = customer.lists().in_background();
    // With the default of five seconds, the server would cancel the statement after five seconds. Without a response of
    // the server, the service would stop waiting after 15 seconds.
    let waited = format!(
        "select count(*) from pg_locks where relation = '{TABLE}'::regclass and not granted
         and waitstart < now() - interval '16 s'"
    );
    eventually("the statement has waited for 16 seconds", async || {
        (service.database().number(&waited).await > 0).then_some(())
    })
    .await;
    held.release().await;
    let _listed = request.response().await.assert_status(200);
}

/// Returns the first URL, extended by the host and the port of the second URL.
fn with_both_hosts(first: &Url, second: &Url) -> String {
    let host = |url: &Url| format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    first.as_str().replacen(&host(first), &format!("{},{}", host(first), host(second)), 1)
}

/// Repeats a change until it succeeds. Every earlier response must be a 503 with a `Retry-After`.
async fn succeeds_after_503s_only(request: impl Fn() -> Request) -> HttpResponse {
    within(Duration::from_mins(1), "the change succeeds", async || {
        let response = request().await;
        if response.status == 201 {
            return Some(response);
        }
        let response = response.assert_problem(503, "unavailable");
        assert!(response.header("retry-after").is_some(), "{response}");
        None
    })
    .await
}

async fn wait_until_not_ready(service: &Service, reason: &str) {
    eventually(reason, async || {
        let (_, report) = service.ops("/health").await;
        let report: Value = serde_json::from_str(&report).unwrap();
        (report["checks"]["database"]["message"] == reason && ready(service).await.0 == 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_standby_is_never_used() {
    let mut service = builder().on_a_dedicated_server().start().await;
    let standby = service.database().standby().await;
    let standby_only =
        [("DATABASE_URL", standby.service_url().as_str()), ("DATABASE_STARTUP_WAIT_SECONDS", "1")];
    let stopped = service.command(&["serve"], &standby_only).await;
    assert_eq!(stopped.code(), Some(1));
    assert!(stopped.stderr.contains("the database is a standby"), "{}", stopped.stderr);

    service.terminate().await;
    let primary = service.database().service_url().clone();
    service.restart_with("DATABASE_URL", &with_both_hosts(standby.service_url(), &primary)).await;
    let _created = service.customer().await.creates().await.assert_status(201);
}

#[tokio::test]
async fn a_promoted_standby_takes_over_within_seconds() {
    let mut service = builder()
        .on_a_dedicated_server()
        .with_database_proxy()
        // These timeouts are so long that only the loss of the host ends a statement.
        .setting("DATABASE_STATEMENT_TIMEOUT_MS", "60000")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    let standby = service.database().standby().await;
    service.terminate().await;
    let primary = service.database_proxy().url_through(service.database().service_url());
    service.restart_with("DATABASE_URL", &with_both_hosts(&primary, standby.service_url())).await;
    // From now on, a commit is confirmed only after the standby has received it.
    for statement in ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"] {
        service.database().execute_as_administrator(statement).await;
    }
    let customer = service.customer().await;
    let created = customer.creates().await.assert_status(201).id();
    let pool = [(); 4].map(|()| customer.lists().in_background());
    for request in pool {
        let _every_connection_is_open = request.response().await.assert_status(200);
    }

    service.database_proxy().freeze();
    standby.promote().await;
    let lost = Instant::now();
    let _created = succeeds_after_503s_only(|| customer.creates()).await;
    assert!(lost.elapsed() < Duration::from_secs(15), "{:?}", lost.elapsed());
    wait_until_ready(&service).await;
    let listed = customer.lists().await.assert_status(200);
    assert!(listed.to_string().contains(&created.to_string()), "no confirmed commit must be lost: {listed}");
}

#[tokio::test]
async fn statements_on_a_lost_host_end_within_seconds() {
    let service = builder()
        .with_database_proxy()
        .setting("DATABASE_STATEMENT_TIMEOUT_MS", "60000")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let requests = [(); 4].map(|()| customer.lists().in_background());
    service.database().wait_for_blocked_statements(4).await;
    service.database_proxy().replace_host();
    let lost = Instant::now();
    for request in requests {
        let _unavailable = request.response().await.assert_problem(503, "unavailable");
    }
    assert!(lost.elapsed() < Duration::from_secs(20), "{:?}", lost.elapsed());
    held.release().await;
    let _listed = customer.lists().await.assert_status(200);
}

#[tokio::test]
async fn cancelled_statements_do_not_keep_connections() {
    let service = builder()
        .setting("DATABASE_STATEMENT_TIMEOUT_MS", "60000")
        .setting("REQUEST_TIMEOUT_MS", "60000")
        .start()
        .await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let requests = [(); 4].map(|()| customer.lists().in_background());
    service.database().wait_for_blocked_statements(4).await;
    for request in requests {
        let _request = request.give_up().await;
    }
    // On the server, the cancelled statements still wait for the lock, so none of their four connections can be reused.
    let started = Instant::now();
    let _served = customer.get("/v1/me").await.assert_status(200);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    held.release().await;
    let _listed = customer.lists().await.assert_status(200);
}

#[tokio::test]
async fn the_service_recovers_after_the_server_was_read_only() {
    let service = builder().on_a_dedicated_server().start().await;
    let customer = service.customer().await;
    let _created = customer.creates().await.assert_status(201);
    let set = async |value: &str| {
        let statement = format!("alter system set default_transaction_read_only = {value}");
        service.database().execute_as_administrator(&statement).await;
        service.database().execute_as_administrator("select pg_reload_conf()").await;
    };
    set("on").await;
    eventually("changes are rejected", async || {
        let response = customer.creates().await;
        if response.status == 201 {
            return None;
        }
        let response = response.assert_problem(503, "unavailable");
        assert!(response.header("retry-after").is_some(), "{response}");
        Some(())
    })
    .await;
    wait_until_not_ready(&service, "the database is read-only").await;
    set("off").await;
    let _created = succeeds_after_503s_only(|| customer.creates()).await;
    wait_until_ready(&service).await;
}

#[tokio::test]
async fn a_database_with_read_only_sessions_is_not_used() {
    let service = builder().setting("DATABASE_ACQUIRE_TIMEOUT_MS", "1000").start().await;
    let customer = service.customer().await;
    let set = async |value: &str| {
        let statement = format!(
            "do $$ begin
               execute format('alter database %I set default_transaction_read_only = {value}', current_database());
             end $$"
        );
        service.database().execute(statement).await;
    };
    set("on").await;
    // Open sessions keep the old default. The service's database monitor detects the change, because it regularly opens
    // a new connection.
    wait_until_not_ready(&service, "the database is read-only").await;
    let role = service.database().service_role();
    let end_sessions = format!(
        "select pg_terminate_backend(pid)
         from pg_stat_activity
         where datname = current_database() and usename = '{role}'"
    );
    service.database().execute_as_administrator(&end_sessions).await;
    for _ in 0..6 {
        let rejected = customer.creates().await.assert_problem(503, "unavailable");
        assert!(rejected.header("retry-after").is_some(), "{rejected}");
    }
    // New sessions are read-only by default now. The session of this test is older than the change, so the test can
    // still write.
    set("off").await;
    let _created = succeeds_after_503s_only(|| customer.creates()).await;
    wait_until_ready(&service).await;
}

#[tokio::test]
async fn requests_succeed_again_after_a_column_changes_its_type() {
    let service = builder().start().await;
    let customer = service.customer().await;
    let _listed = customer.lists().await.assert_status(200);
    let (changed, unchanged) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (customer, mut unchanged) = (customer.clone(), unchanged.clone());
            tokio::spawn(async move {
                let mut statuses = Vec::new();
                while !*unchanged.borrow_and_update() {
                    statuses.push(customer.lists().await.status);
                }
                statuses
            })
        })
        .collect();
    let selected = "db_query_duration_seconds_count{query_type=\"sessions.select\"}";
    eventually("every connection has prepared its statements", async || {
        (service.metric(selected).await >= 100).then_some(())
    })
    .await;
    // The authentication of every request reads this column.
    service.database().execute("alter table users alter column role type varchar(20)").await;
    let mut rejected = 0;
    for _ in 0..8 {
        let response = customer.lists().await;
        assert!([200, 503].contains(&response.status), "{response}");
        rejected += usize::from(response.status == 503);
    }
    changed.send_replace(true);
    for client in clients {
        for status in client.await.unwrap() {
            assert!([200, 503].contains(&status), "{status}");
            rejected += usize::from(status == 503);
        }
    }
    assert!(rejected <= 4, "{rejected} requests were rejected, and there are 4 connections");
    for _ in 0..8 {
        let _listed = customer.lists().await.assert_status(200);
    }
}
