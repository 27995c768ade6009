//! Sealing of the audit log: every event is covered by exactly one seal of the hash chain, even with late commits and
//! several replicas. Also the service's rights on the chain, the epochs of the audit log (its periods within one
//! PostgreSQL cluster), its partitions, and the events that the database rejects.
use dev::harness::{Service, eventually};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};

use crate::builder;

/// Starts a service that seals every second.
pub async fn sealing_service() -> Service {
    builder().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await
}

/// Query for the number of events without a seal.
pub const UNSEALED: &str = "
    select count(*)
    from audit_events
    where not exists (
      select from (select * from audit_seals order by number desc limit 1) as last
      where (last.epoch, last_xact_id, last_sequence) >= (audit_events.epoch, xact_id::text::bigint, sequence)
    )";

/// Causes three events: a customer registers, logs in, and creates a record.
pub async fn cause_three_events(service: &Service) {
    let _created = service.customer().await.creates().await.assert_status(201);
}

pub async fn wait_until_everything_is_sealed(service: &Service) {
    eventually("every event is sealed", async || {
        (service.database().number(UNSEALED).await == 0).then_some(())
    })
    .await;
}

/// Returns the number and the hash of each head that the current process has logged. A head is the last seal of the
/// chain at the time of its log line.
fn logged_heads(service: &Service) -> Vec<(i64, String)> {
    let head = |line: Value| Some((line["seal_number"].as_i64()?, line["seal_hash"].as_str()?.to_owned()));
    service.logs().into_iter().filter_map(head).collect()
}

pub async fn verify(service: &Service, arguments: &[&str]) -> dev::harness::CommandOutput {
    service.command(&[&["audit", "verify"], arguments].concat(), &[]).await
}

#[tokio::test]
async fn every_event_is_sealed_and_the_head_of_the_chain_is_logged() {
    let service = sealing_service().await;
    cause_three_events(&service).await;
    wait_until_everything_is_sealed(&service).await;
    cause_three_events(&service).await;
    wait_until_everything_is_sealed(&service).await;

    let events = service.database().number("select count(*) from audit_events").await;
    let sealed = service.database().number("select sum(event_count)::bigint from audit_seals").await;
    assert_eq!(sealed, events);
    assert!(service.database().number("select count(*) from audit_seals").await >= 2);
    let head =
        service.database().rows("select number, encode(hash, 'hex') as hash from audit_seal_head").await;
    let head = (head[0]["number"].as_i64().unwrap(), head[0]["hash"].as_str().unwrap().to_owned());
    service
        .wait_for_log("the head is logged", |line| {
            line["target"] == "audit" && line["seal_number"] == head.0 && line["seal_hash"] == head.1
        })
        .await;
    eventually("the number of the last seal is in the metrics", async || {
        (service.metric("audit_seal_number").await == head.0).then_some(())
    })
    .await;
    let verified = verify(&service, &[]).await.succeeded();
    assert!(
        verified.contains(&format!("{events} events, up to seal {} with hash {}", head.0, head.1)),
        "{verified}"
    );
    let verifications = service.audit_events("event_type = 'audit' and action = 'verify'").await;
    assert_eq!(verifications.len(), 1, "the verification must be audited");
    assert_eq!(verifications[0]["metadata"]["head_hash"], head.1);
}

#[tokio::test]
async fn a_restarted_process_logs_the_head_of_the_chain_again() {
    let mut service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    service.kill_9().await;
    let head = service.database().number("select number from audit_seal_head").await;
    service.restart().await;
    service.wait_for_log("the head is logged again", |line| line["seal_number"] == head).await;
}

#[tokio::test]
async fn a_backlog_is_sealed_without_pauses() {
    // With a pause after each seal, the backlog would take far longer than the test waits.
    let mut service = builder().setting("AUDIT_SEAL_INTERVAL_SECONDS", "20").start().await;
    service.terminate().await;
    let backlog = "insert into audit_events (id, timestamp, event_type, resource, action, result, service_version)
        select gen_random_uuid(), now(), 'data_change', 'things', 'create', 'success', '0' from generate_series(1, 9000)";
    service.database().execute(backlog).await;
    service.restart().await;
    eventually("the backlog is sealed", async || {
        let sealed = "select coalesce(sum(event_count), 0)::bigint from audit_seals";
        (service.database().number(sealed).await >= 9000).then_some(())
    })
    .await;
}

/// Statement that records an event. The test controls the transaction, so that the event can commit late.
const INSERT_LATE_EVENT: &str = "
    select record_audit_event(jsonb_build_object(
      'id', gen_random_uuid(), 'timestamp', now(), 'event_type', 'data_change', 'resource', 'things',
      'action', 'late', 'result', 'success', 'metadata', '{}'::jsonb, 'service_version', 'test'
    ))";

#[tokio::test]
async fn the_horizon_is_taken_before_the_events_are_read() {
    let service = builder().on_a_dedicated_server().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    wait_until_everything_is_sealed(&service).await;
    let late = service.database().hold(INSERT_LATE_EVENT).await;
    // The sealer reads the locked table to determine its horizon: the transaction id below which every transaction has
    // ended. If the sealer read the events first and determined the horizon later, it would miss the events that are
    // committed in between.
    let mut locker = PgConnection::connect(service.database().owner_url().as_str()).await.unwrap();
    locker.execute("begin; lock table audit_epochs in access exclusive mode").await.unwrap();
    assert_eq!(service.database().try_as_service(INSERT_LATE_EVENT).await, Ok(()));
    eventually("the sealer waits for the lock", async || {
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
    wait_until_everything_is_sealed(&service).await;
    let events = service.database().number("select count(*) from audit_events").await;
    let sealed = service.database().number("select sum(event_count)::bigint from audit_seals").await;
    assert_eq!(sealed, events, "events that were committed during the wait must be sealed");
    verify(&service, &[]).await.succeeded();
}

#[tokio::test]
async fn the_head_is_logged_with_all_other_targets_off() {
    // The harness waits for the log line "the service is up", so the filter keeps the target of this line.
    let filter = "off,app::service=info";
    let service =
        builder().setting("RUST_LOG", filter).setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    let head = service.database().number("select number from audit_seal_head").await;
    service.wait_for_log("the head is logged", |line| line["seal_number"] == head).await;
    let others = service.logs().into_iter().find(|line| {
        !["audit", "app::service"].iter().any(|known| line["target"].as_str().unwrap().starts_with(known))
    });
    assert_eq!(others, None);
}

#[tokio::test]
async fn a_crash_between_a_seal_and_its_log_line_loses_neither() {
    let mut service = builder()
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .setting("CRASH_AT", "seal.committed")
        .start()
        .await;
    // The response may be lost, because the process crashes as soon as it has sealed the request's event.
    let registration = serde_json::json!({
        "email": "ada@example.com", "password": dev::harness::PASSWORD, "name": "Ada Lovelace"
    });
    let _registered = service.anonymous().post("/v1/users").json(&registration).in_background();
    assert!(service.wait_for_exit().await.code().is_none(), "a signal ended the process");
    let sealed =
        service.database().rows("select number, encode(hash, 'hex') as hash from audit_seal_head").await;
    assert!(sealed[0]["number"].as_i64().is_some_and(|number| number > 0), "{sealed:?}");
    assert!(
        logged_heads(&service).iter().all(|(number, _)| *number == 0),
        "the process must have logged no seal"
    );
    service.restart_without("CRASH_AT").await;
    let logged = |line: &Value| line["seal_number"].as_i64() >= sealed[0]["number"].as_i64();
    service.wait_for_log("the head is logged", logged).await;
    verify(&service, &[]).await.succeeded();
}

#[tokio::test]
async fn a_late_commit_is_sealed_exactly_once_in_order() {
    // An open transaction with writes delays sealing in every database of its server, so this test has its own server.
    let service = builder().on_a_dedicated_server().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    wait_until_everything_is_sealed(&service).await;
    let late = service.database().hold(INSERT_LATE_EVENT).await;
    service.customer().await;
    let unsealed = service.database().number(UNSEALED).await;
    assert!(unsealed > 0);
    let before = logged_heads(&service).len();
    eventually("the sealer has run twice more", async || {
        (logged_heads(&service).len() >= before + 2).then_some(())
    })
    .await;
    assert!(
        service.database().number(UNSEALED).await >= unsealed,
        "no event must be sealed while an earlier transaction is open"
    );
    eventually("the lag is measured independently of the sealer", async || {
        let text = service.metrics().await;
        let lag =
            text.lines().find_map(|line| line.strip_prefix("audit_seal_lag_seconds ")?.parse::<f64>().ok());
        (lag? >= 1.0).then_some(())
    })
    .await;

    late.commit().await;
    wait_until_everything_is_sealed(&service).await;
    assert_eq!(service.audit_events("action = 'late'").await.len(), 1);
    verify(&service, &[]).await.succeeded();
    let sealed = service.database().number("select sum(event_count)::bigint from audit_seals").await;
    let events_of_verification = 1;
    assert_eq!(
        service.database().number("select count(*) from audit_events").await,
        sealed + events_of_verification
    );
}

#[tokio::test]
async fn a_restored_audit_log_starts_an_epoch_of_the_same_chain() {
    let mut service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    // This simulates a restore into a new PostgreSQL cluster. Its transaction ids start at a low number, so existing
    // events may have higher ids. `migrate` therefore begins a new epoch, and events are ordered by epoch first.
    service
        .database()
        .execute(
            "insert into audit_events (id, timestamp, event_type, resource, action, result, service_version, xact_id)
             values (gen_random_uuid(), now(), 'data_change', 'things', 'old', 'success', 'x', '900000000000');
             update audit_epochs set system_identifier = 0",
        )
        .await;
    service.terminate().await;
    let rejected = service.command(&["serve"], &[]).await;
    assert_eq!(rejected.code(), Some(1));
    assert!(rejected.stderr.contains("different PostgreSQL cluster"), "{}", rejected.stderr);
    service.command(&["migrate"], &[]).await.succeeded();
    service.restart().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    verify(&service, &[]).await.succeeded();
    assert_eq!(service.audit_events("epoch = 1 and action = 'old'").await.len(), 1);
    assert_eq!(
        service.audit_events("epoch = 2 and resource = 'audit_epochs' and action = 'begin'").await.len(),
        1
    );
    assert!(
        !service.audit_events("epoch = 2 and resource = 'users'").await.is_empty(),
        "later events must belong to epoch 2"
    );
    service.command(&["migrate"], &[]).await.succeeded();
    assert_eq!(
        service.database().number("select count(*) from audit_epochs").await,
        2,
        "a second `migrate` must begin no further epoch"
    );
}

#[tokio::test]
async fn many_replicas_make_one_chain() {
    let service = sealing_service().await;
    let (second, third) = tokio::join!(service.replica(), service.replica());
    let customer = service.customer().await;
    for replica in [&service, &second, &third] {
        for _ in 0..5 {
            let _placed = replica.user_through(&customer).creates().await.assert_status(201);
        }
    }
    wait_until_everything_is_sealed(&service).await;
    verify(&service, &[]).await.succeeded();
    let mut heads: Vec<_> = [&service, &second, &third].into_iter().flat_map(logged_heads).collect();
    heads.sort();
    heads.dedup();
    for pair in heads.windows(2) {
        assert!(pair[0].0 < pair[1].0, "two heads have the same number: {heads:?}");
    }
}

#[tokio::test]
async fn seals_are_only_appended() {
    let service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
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
        "select exported_audit_partitions(now(), 1, '1', 1)",
        "select drop_exported_audit_partition('audit_events_default', now(), 1, '1', 1, '{}')",
        "insert into audit_exports (event_id, first_seal, last_seal, file_sha256)
         values (gen_random_uuid(), 1, 1, repeat('0', 64))",
        "update audit_exports set last_seal = 1",
        "delete from audit_exports",
        "set session_replication_role = replica",
    ] {
        let rejected = service.database().try_as_service(statement).await;
        assert_eq!(rejected, Err("42501".to_owned()), "{statement}");
    }
    for fork in [
        insert_next_seal(&[("number", "number + 2")]),
        insert_next_seal(&[("previous_hash", "sha256(hash)")]),
    ] {
        let rejected = service.database().try_as_service(&fork).await;
        assert_eq!(rejected, Err("23000".to_owned()), "{fork}");
    }
    assert_eq!(
        service.database().try_as_service(&insert_next_seal(&[])).await,
        Ok(()),
        "a valid seal must be appended"
    );
}

/// Returns the statement that appends a seal. All columns have valid values, except for the forged ones.
fn insert_next_seal(forged: &[(&str, &str)]) -> String {
    let columns = [
        ("number", "number + 1"),
        ("epoch", "epoch"),
        ("first_xact_id", "last_xact_id"),
        ("first_sequence", "last_sequence + 1"),
        ("last_xact_id", "last_xact_id"),
        ("last_sequence", "last_sequence + 1"),
        ("event_count", "event_count"),
        ("digests", "digests"),
        ("sealed_at", "sealed_at"),
        ("previous_hash", "hash"),
        ("hash", "sha256(hash)"),
    ];
    let values = columns.map(|(column, value)| {
        forged.iter().find_map(|(name, value)| (*name == column).then_some(*value)).unwrap_or(value)
    });
    format!(
        "insert into audit_seals ({}) select {} from audit_seals order by number desc limit 1",
        columns.map(|(column, _)| column).join(", "),
        values.join(", ")
    )
}

#[tokio::test]
async fn a_seal_covers_only_events_that_are_complete() {
    let service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    for forged in [
        [("last_xact_id", "9223372036854775807")].as_slice(),
        &[("last_xact_id", "pg_current_xact_id()::text::bigint")],
        &[("epoch", "2")],
        &[("first_sequence", "last_sequence")],
        &[("first_xact_id", "last_xact_id - 1")],
        &[("first_sequence", "last_sequence + 2")],
        &[("sealed_at", "now() + interval '1 hour'")],
    ] {
        let rejected = service.database().try_as_service(&insert_next_seal(forged)).await;
        assert_eq!(rejected, Err("23000".to_owned()), "{forged:?}");
    }
}

#[tokio::test]
async fn the_service_cannot_move_the_end_of_the_chain_by_a_trigger() {
    let service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    let attempt = "
        create temporary table seals (like audit_seals);
        create trigger moves_the_end after insert on seals for each row execute function continue_audit_chain();
        insert into seals (number, previous_hash, hash) select number + 1, hash, sha256(hash) from audit_seal_head";
    assert_eq!(service.database().try_as_service(attempt).await, Err("42501".to_owned()));
    // A temporary table `audit_events` in the first schema of the search path must not receive events.
    let event = INSERT_LATE_EVENT.replace("'late'", "'caught'");
    let attempt = format!(
        "create temporary table audit_events (like public.audit_events including defaults);
         set local search_path = pg_temp, public;
         {event};
         do $$ begin
           if exists (select from pg_temp.audit_events) then raise exception 'the event was caught'; end if;
         end $$"
    );
    assert_eq!(service.database().try_as_service(&attempt).await, Ok(()));
}

#[tokio::test]
async fn a_forged_seal_of_the_future_is_reported_with_the_lag() {
    let service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    // This simulates an attacker who bypasses the triggers.
    let forged = insert_next_seal(&[
        ("last_xact_id", "9223372036854775807"),
        ("sealed_at", "now() - interval '10 minutes'"),
    ]);
    super::verification::tamper(
        &service,
        &format!(
            "{forged}; update audit_seal_head set number = seals.number, hash = seals.hash
                  from (select number, hash from audit_seals order by number desc limit 1) as seals"
        ),
    )
    .await;
    service.customer().await;
    service
        .wait_for_log("an alert is raised", |line| {
            line.to_string().contains("covers transactions that are still in progress")
        })
        .await;
    eventually("the lag is measured", async || {
        (service.gauge("audit_seal_lag_seconds").await >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cluster_switch_at_run_time_is_detected() {
    let mut service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    // This simulates a switch to a copy that was made by logical replication: another PostgreSQL cluster with lower
    // transaction ids.
    service
        .database()
        .execute(
            "update audit_epochs set system_identifier = 0;
             insert into audit_events
               (id, timestamp, event_type, resource, action, result, service_version, xact_id, recorded_at)
             values (gen_random_uuid(), now(), 'data_change', 'things', 'low', 'success', 'x', '3',
               now() + interval '2 minutes')",
        )
        .await;
    let seals = service.database().number("select count(*) from audit_seals").await;
    service
        .wait_for_log("an alert is raised", |line| {
            line.to_string().contains("Sealing stopped: different PostgreSQL cluster")
        })
        .await;
    service.customer().await;
    eventually("the lag is measured", async || {
        (service.gauge("audit_seal_lag_seconds").await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(
        service.database().number("select count(*) from audit_seals").await,
        seals,
        "nothing is sealed"
    );

    service.command(&["migrate"], &[]).await.succeeded();
    service.terminate().await;
    service.restart().await;
    wait_until_everything_is_sealed(&service).await;
    assert_eq!(service.audit_events("action = 'low' and epoch = 2").await.len(), 1);
    verify(&service, &[]).await.succeeded();
}

/// Query for the definitions of the monthly partitions: columns, defaults, constraints, indexes, triggers, rights, and
/// bounds.
const PARTITION_DEFINITIONS: &str = "
    select
      relname,
      (select json_agg(json_build_array(attname, atttypid, attnotnull, pg_get_expr(adbin, adrelid)) order by attnum)
       from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
       where attrelid = child.oid and attnum > 0) as columns,
      (select json_agg(pg_get_constraintdef(oid) order by conname) from pg_constraint where conrelid = child.oid) as constraints,
      (select json_agg(index order by index) from (
        select replace(pg_get_indexdef(indexrelid), relname, '') as index from pg_index where indrelid = child.oid
      ) as of_child) as indexes,
      (select json_agg(json_build_array(tgname, tgtype, tgfoid) order by tgname) from pg_trigger where tgrelid = child.oid)
        as triggers,
      relacl::text,
      pg_get_expr(relpartbound, child.oid) as bounds
    from pg_class as child
    join pg_inherits on inhrelid = child.oid
    where inhparent = 'audit_events'::regclass and relname <> 'audit_events_default'
    order by relname";

/// Starts a service whose worker has checked for missing partitions. The next check is hours later, so a test can drop
/// partitions.
async fn partitioned_service() -> Service {
    let service = crate::service().await;
    eventually("the partitions are checked", async || {
        let (_, health) = service.ops("/health").await;
        let health: Value = serde_json::from_str(&health).ok()?;
        let workers = health["workers"].as_array()?;
        let worker = workers.iter().find(|worker| worker["name"] == "audit_partitions")?;
        worker["last_success"].is_string().then_some(())
    })
    .await;
    service
}

#[tokio::test]
async fn creating_a_partition_blocks_no_writer() {
    let service = partitioned_service().await;
    let definitions = service.database().rows(PARTITION_DEFINITIONS).await;
    assert_eq!(definitions.len(), 4);
    let last = definitions[3]["relname"].as_str().unwrap();
    service.database().execute(format!("drop table {last}")).await;

    // This simulates pg_dump, which keeps its transaction open for its whole run.
    let mut reader = PgConnection::connect(service.database().owner_url().as_str()).await.unwrap();
    reader
        .execute("begin isolation level repeatable read; select count(*) from audit_events; select 1")
        .await
        .unwrap();
    let create_partitions =
        "set timezone = 'America/New_York'; set datestyle = 'SQL, DMY'; set search_path = pg_catalog;
                  set standard_conforming_strings = off; set intervalstyle = 'sql_standard';
                  select public.make_audit_partitions()";
    let mut connection = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    let customer = service.customer().await;
    let (attempt, ()) = tokio::join!(connection.execute(create_partitions), async {
        service.database().wait_for_blocked_statements(1).await;
        for _ in 0..5 {
            let started = std::time::Instant::now();
            let _created = customer.creates().await.assert_status(201);
            assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
        }
    });
    let error = attempt.unwrap_err();
    assert_eq!(
        error.as_database_error().unwrap().code().as_deref(),
        Some("55P03"),
        "the function must time out while it waits for the lock: {error}"
    );

    reader.execute("rollback").await.unwrap();
    connection.execute(create_partitions).await.unwrap();
    assert_eq!(service.database().rows(PARTITION_DEFINITIONS).await, definitions);
}

#[tokio::test]
async fn an_event_in_the_default_partition_blocks_only_its_month() {
    let service = partitioned_service().await;
    let definitions = service.database().rows(PARTITION_DEFINITIONS).await;
    let [third, fourth] = [2, 3].map(|index| definitions[index]["relname"].as_str().unwrap());
    service
        .database()
        .execute(format!(
            "drop table {third}, {fourth};
             insert into audit_events (id, timestamp, event_type, resource, action, result, service_version, recorded_at)
             values (gen_random_uuid(), now(), 'audit', 'x', 'x', 'success', 'x',
               date_trunc('month', now(), 'UTC') + interval '2 months 1 day')"
        ))
        .await;
    service.database().execute("select make_audit_partitions()").await;
    let definitions: Vec<_> = service
        .database()
        .rows(PARTITION_DEFINITIONS)
        .await
        .iter()
        .map(|row| row["relname"].clone())
        .collect();
    assert!(definitions.contains(&fourth.into()) && !definitions.contains(&third.into()), "{definitions:?}");
}

#[tokio::test]
async fn ambiguous_metadata_is_rejected() {
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
        let rejected = service.database().try_as_service(&event(metadata, timestamp)).await;
        assert_eq!(rejected, Err("23514".to_owned()), "{metadata} {timestamp}");
    }
    let valid_event = event(r#"{"a":[1,true,"x",{"b":-9007199254740991}]}"#, now);
    assert_eq!(service.database().try_as_service(&valid_event).await, Ok(()));
}

#[tokio::test]
async fn an_event_in_the_default_partition_raises_an_alert() {
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
        .wait_for_log("an alert is raised", |line| {
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
    wait_until_everything_is_sealed(&service).await;
    let connection = concat!(
        "select pid from pg_stat_activity where datname = current_database() and application_name = '",
        env!("CARGO_PKG_NAME"),
        "'"
    );
    let before = service.database().rows(connection).await;
    assert_eq!(before.len(), 1);
    let heads = || service.logs().iter().filter(|line| line["message"] == "sealed the audit log").count();
    let logged = heads();
    eventually("the head is logged three more times", async || (heads() >= logged + 3).then_some(())).await;
    assert_eq!(service.database().rows(connection).await, before);
}
