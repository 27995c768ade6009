//! Sealing: every event gets its seal, once, whoever commits when and however many replicas there are.
use dev::harness::{Service, eventually};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};

use crate::builder;

/// A service that seals every second.
pub async fn sealing_service() -> Service {
    builder().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await
}

/// Events that no seal covers.
const UNSEALED: &str = "
    select count(*)
    from audit_events
    where not exists (
      select from audit_seals
      where
        (audit_seals.epoch, last_xact_id, last_sequence)
        >= (audit_events.epoch, xact_id::text::bigint, sequence)
    )";

/// A customer registers, logs in, and creates something: three events.
pub async fn something_happens(service: &Service) {
    let _created = service.customer().await.creates().await.is(201);
}

pub async fn everything_is_sealed(service: &Service) {
    eventually("every event is sealed", async || {
        (service.database().number(UNSEALED).await == 0).then_some(())
    })
    .await;
}

/// The heads that a process has logged: number and hash.
fn logged_heads(service: &Service) -> Vec<(i64, String)> {
    let head = |line: Value| Some((line["seal_number"].as_i64()?, line["seal_hash"].as_str()?.to_owned()));
    service.logs().into_iter().filter_map(head).collect()
}

pub async fn verify(service: &Service, arguments: &[&str]) -> dev::harness::Finished {
    service.command(&[&["audit", "verify"], arguments].concat(), &[]).await
}

#[tokio::test]
async fn every_event_is_sealed_and_the_head_of_the_chain_is_logged() {
    let service = sealing_service().await;
    something_happens(&service).await;
    everything_is_sealed(&service).await;
    something_happens(&service).await;
    everything_is_sealed(&service).await;

    let events = service.database().number("select count(*) from audit_events").await;
    let sealed = service.database().number("select sum(event_count)::bigint from audit_seals").await;
    assert_eq!(sealed, events);
    assert!(service.database().number("select count(*) from audit_seals").await >= 2);
    let head =
        service.database().rows("select number, encode(hash, 'hex') as hash from audit_seal_head").await;
    let head = (head[0]["number"].as_i64().unwrap(), head[0]["hash"].as_str().unwrap().to_owned());
    service
        .logs_that("the head is logged", |line| {
            line["target"] == "audit" && line["seal_number"] == head.0 && line["seal_hash"] == head.1
        })
        .await;
    let verified = verify(&service, &[]).await.succeeded();
    assert!(
        verified.contains(&format!("{events} events, up to seal {} with hash {}", head.0, head.1)),
        "{verified}"
    );
    let verifications = service.audit_events("event_type = 'audit' and action = 'verify'").await;
    assert_eq!(verifications.len(), 1, "verifying the trail is in the trail");
    assert_eq!(verifications[0]["metadata"]["head_hash"], head.1);
}

#[tokio::test]
async fn a_head_is_logged_again_by_a_process_that_starts() {
    let mut service = sealing_service().await;
    service.customer().await;
    everything_is_sealed(&service).await;
    service.kill_9().await;
    let head = service.database().number("select number from audit_seal_head").await;
    service.restart().await;
    service.logs_that("the head is logged again", |line| line["seal_number"] == head).await;
}

/// Records an event as a statement of the owner, which sees to its end itself.
const LATE: &str = "
    select record_audit_event(jsonb_build_object(
      'id', gen_random_uuid(), 'timestamp', now(), 'event_type', 'data_change', 'resource', 'things',
      'action', 'late', 'result', 'success', 'metadata', '{}'::jsonb, 'service_version', 'test'
    ))";

#[tokio::test]
async fn the_horizon_is_taken_before_the_events_are_read() {
    let service =
        builder().on_a_server_of_its_own().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    everything_is_sealed(&service).await;
    let late = service.database().hold(LATE).await;
    // The sealer waits where it takes its horizon, whatever it has read until then.
    let mut locker = PgConnection::connect(service.database().owner_url().as_str()).await.unwrap();
    locker.execute("begin; lock table audit_epochs in access exclusive mode").await.unwrap();
    assert_eq!(service.database().try_as_service(LATE).await, Ok(()));
    eventually("the sealer waits for its horizon", async || {
        let waits = "
            select count(*)
            from pg_locks as waiting
            join pg_locks as sealing on sealing.pid = waiting.pid and sealing.locktype = 'advisory'
            where waiting.relation = 'audit_epochs'::regclass and not waiting.granted";
        (service.database().number(waits).await == 1).then_some(())
    })
    .await;
    late.commit().await;
    locker.execute("commit").await.unwrap();
    everything_is_sealed(&service).await;
    let events = service.database().number("select count(*) from audit_events").await;
    let sealed = service.database().number("select sum(event_count)::bigint from audit_seals").await;
    assert_eq!(sealed, events, "what was committed meanwhile is not passed over");
    verify(&service, &[]).await.succeeded();
}

#[tokio::test]
async fn a_head_is_logged_though_nothing_else_is() {
    // The harness waits for the one line that says that the service is up.
    let filter = "off,app::service=info";
    let service =
        builder().setting("RUST_LOG", filter).setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    service.customer().await;
    everything_is_sealed(&service).await;
    let head = service.database().number("select number from audit_seal_head").await;
    service.logs_that("the head is logged", |line| line["seal_number"] == head).await;
    let others = service.logs().into_iter().find(|line| {
        !["audit", "app::service"].iter().any(|known| line["target"].as_str().unwrap().starts_with(known))
    });
    assert_eq!(others, None);
}

#[tokio::test]
async fn a_process_that_dies_between_a_seal_and_its_line_loses_neither() {
    let mut service = builder()
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .setting("CRASH_AT", "seal.committed")
        .start()
        .await;
    // Whether it is still answered is a matter of luck: the process dies as soon as it has sealed the event of it.
    let registration = serde_json::json!({
        "email": "ada@example.com", "password": dev::harness::PASSWORD, "name": "Ada Lovelace"
    });
    let _registered = service.nobody().post("/v1/users").json(&registration).in_background();
    assert!(service.ends().await.code().is_none(), "it died, and did not end");
    let sealed =
        service.database().rows("select number, encode(hash, 'hex') as hash from audit_seal_head").await;
    assert!(sealed[0]["number"].as_i64().is_some_and(|number| number > 0), "{sealed:?}");
    assert!(logged_heads(&service).iter().all(|(number, _)| *number == 0), "it had no time to say so");
    service.restart_without("CRASH_AT").await;
    let logged = |line: &Value| line["seal_number"].as_i64() >= sealed[0]["number"].as_i64();
    service.logs_that("the head is logged", logged).await;
    verify(&service, &[]).await.succeeded();
}

#[tokio::test]
async fn an_event_that_commits_late_is_sealed_exactly_once_and_nothing_overtakes_it() {
    // A transaction that stays open holds up the sealing of every database on its server.
    let service =
        builder().on_a_server_of_its_own().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    everything_is_sealed(&service).await;
    let late = service
        .database()
        .hold(
            "select record_audit_event(jsonb_build_object(
               'id', gen_random_uuid(), 'timestamp', now(), 'event_type', 'data_change', 'resource', 'things',
               'action', 'late', 'result', 'success', 'metadata', '{}'::jsonb, 'service_version', 'test'
             ))",
        )
        .await;
    service.customer().await;
    let overtaken = service.database().number(UNSEALED).await;
    assert!(overtaken > 0);
    let seen = logged_heads(&service).len();
    eventually("the sealer has looked twice more", async || {
        (logged_heads(&service).len() >= seen + 2).then_some(())
    })
    .await;
    assert!(service.database().number(UNSEALED).await >= overtaken, "nothing overtakes what may still come");
    eventually("the lag is measured beside the sealer", async || {
        let text = service.metrics().await;
        let lag =
            text.lines().find_map(|line| line.strip_prefix("audit_seal_lag_seconds ")?.parse::<f64>().ok());
        (lag? >= 1.0).then_some(())
    })
    .await;

    late.commit().await;
    everything_is_sealed(&service).await;
    assert_eq!(service.audit_events("action = 'late'").await.len(), 1);
    verify(&service, &[]).await.succeeded();
    let sealed = service.database().number("select sum(event_count)::bigint from audit_seals").await;
    let verifying = 1;
    assert_eq!(service.database().number("select count(*) from audit_events").await, sealed + verifying);
}

#[tokio::test]
async fn a_trail_that_was_loaded_into_another_cluster_begins_an_epoch_and_is_one_chain() {
    let mut service = sealing_service().await;
    service.customer().await;
    everything_is_sealed(&service).await;
    // There the ids of transactions begin anew, so what was written here last may seem to be of the future.
    service
        .database()
        .execute(
            "insert into audit_events (id, timestamp, event_type, resource, action, result, service_version, xact_id)
             values (gen_random_uuid(), now(), 'data_change', 'things', 'old', 'success', 'x', '900000000000');
             update audit_epochs set system_identifier = 0",
        )
        .await;
    service.terminate().await;
    let refused = service.command(&["serve"], &[]).await;
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr.contains("another PostgreSQL cluster"), "{}", refused.stderr);
    service.command(&["migrate"], &[]).await.succeeded();
    service.restart().await;
    service.customer().await;
    everything_is_sealed(&service).await;
    verify(&service, &[]).await.succeeded();
    assert_eq!(service.audit_events("epoch = 1 and action = 'old'").await.len(), 1);
    assert_eq!(
        service.audit_events("epoch = 2 and resource = 'audit_epochs' and action = 'begin'").await.len(),
        1
    );
    assert!(
        !service.audit_events("epoch = 2 and resource = 'users'").await.is_empty(),
        "what follows is of epoch 2"
    );
    service.command(&["migrate"], &[]).await.succeeded();
    assert_eq!(service.database().number("select count(*) from audit_epochs").await, 2, "once");
}

#[tokio::test]
async fn many_replicas_make_one_chain() {
    let service = sealing_service().await;
    let (second, third) = tokio::join!(service.replica(), service.replica());
    let customer = service.customer().await;
    for replica in [&service, &second, &third] {
        for _ in 0..5 {
            let _placed = replica.serves(&customer).creates().await.is(201);
        }
    }
    everything_is_sealed(&service).await;
    verify(&service, &[]).await.succeeded();
    let mut heads: Vec<_> = [&service, &second, &third].into_iter().flat_map(logged_heads).collect();
    heads.sort();
    heads.dedup();
    for pair in heads.windows(2) {
        assert!(pair[0].0 < pair[1].0, "two heads of one number: {heads:?}");
    }
}

#[tokio::test]
async fn seals_are_appended_to_the_end_of_the_chain_and_never_rewritten() {
    let service = sealing_service().await;
    service.customer().await;
    everything_is_sealed(&service).await;
    for statement in [
        "update audit_seals set hash = previous_hash",
        "delete from audit_seals",
        "truncate audit_seals",
        "alter table audit_seals disable trigger all",
        "update audit_seal_head set number = 0",
        "insert into audit_seal_head (number, hash) values (0, '')",
        "delete from audit_seal_head",
        "update audit_epochs set system_identifier = 0",
        "insert into audit_events (epoch) values (2)",
        "alter table audit_events alter column epoch set default 2",
        "alter table audit_events detach partition audit_events_default",
        "select begin_audit_epoch('{}')",
        "select drop_exported_audit_partitions(now(), 1, '1', 1)",
        "set session_replication_role = replica",
    ] {
        let refused = service.database().try_as_service(statement).await;
        assert_eq!(refused, Err("42501".to_owned()), "{statement}");
    }
    let copy = |number: &str, previous: &str| {
        format!(
            "insert into audit_seals
             select number + {number}, epoch, first_xact_id, first_sequence, last_xact_id, last_sequence, event_count,
                    digests, sealed_at, {previous}, sha256(hash)
             from audit_seals order by number desc limit 1"
        )
    };
    for fork in [copy("2", "hash"), copy("1", "sha256(hash)")] {
        let refused = service.database().try_as_service(&fork).await;
        assert_eq!(refused, Err("23000".to_owned()), "{fork}");
    }
    assert_eq!(
        service.database().try_as_service(&copy("1", "hash")).await,
        Ok(()),
        "the end may be continued"
    );
}

#[tokio::test]
async fn what_cannot_be_hashed_in_one_way_only_is_not_taken() {
    let service = crate::service().await;
    let event = |metadata: &str, timestamp: &str| {
        format!(
            "select record_audit_event(jsonb_build_object(
               'id', gen_random_uuid(), 'timestamp', '{timestamp}', 'event_type', 'audit', 'resource', 'x',
               'action', 'x', 'result', 'success', 'metadata', '{metadata}'::jsonb, 'service_version', 'x'
             ))"
        )
    };
    let now = "2026-01-01T00:00:00Z";
    for (metadata, timestamp) in [
        (r#"{"a":1.5}"#, now),
        (r#"{"a":[9007199254740992]}"#, now),
        (r#"{"a":{"b":null}}"#, now),
        (r#"{"a":{"b":{"c":{"d":1}}}}"#, now),
        ("{}", "infinity"),
        ("{}", "1999-12-31T23:59:59Z"),
    ] {
        let refused = service.database().try_as_service(&event(metadata, timestamp)).await;
        assert_eq!(refused, Err("23514".to_owned()), "{metadata} {timestamp}");
    }
    let taken = event(r#"{"a":[1,true,"x",{"b":-9007199254740991}]}"#, now);
    assert_eq!(service.database().try_as_service(&taken).await, Ok(()));
}

#[tokio::test]
async fn an_event_that_finds_no_partition_of_its_own_is_told_to_people() {
    let mut service = crate::service().await;
    service.terminate().await;
    service
        .database()
        .execute(
            "insert into audit_events (id, timestamp, event_type, resource, action, result, service_version, recorded_at)
             values (gen_random_uuid(), now(), 'audit', 'x', 'x', 'success', 'x', '2020-01-01')",
        )
        .await;
    service.restart().await;
    service
        .logs_that("an alert is raised", |line| {
            line.to_string().contains("Audit events are in the default partition")
        })
        .await;
}

#[tokio::test]
async fn sealing_that_finds_nothing_to_seal_keeps_its_connection() {
    let service = builder()
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .setting("DATABASE_MAX_CONNECTIONS", "1")
        .start()
        .await;
    everything_is_sealed(&service).await;
    let connection = concat!(
        "select pid from pg_stat_activity where datname = current_database() and application_name = '",
        env!("CARGO_PKG_NAME"),
        "'"
    );
    let before = service.database().rows(connection).await;
    assert_eq!(before.len(), 1);
    let heads = || service.logs().iter().filter(|line| line["message"] == "audit trail sealed").count();
    let told = heads();
    eventually("the head is told three times more", async || (heads() >= told + 3).then_some(())).await;
    assert_eq!(service.database().rows(connection).await, before);
}
