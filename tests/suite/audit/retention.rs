//! Retention: an export can be verified without the database, and only exported events are dropped from the database.
//! Audited writes continue while `audit export` or `migrate` waits for a transaction that reads the log. An interrupted
//! export can be repeated.
use std::{
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dev::harness::{CommandOutput, Service, eventually};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use sqlx::{Connection, Executor, PgConnection};

use super::{
    seals::{cause_three_events, sealing_service, verify, wait_until_everything_is_sealed},
    verification::{Scratch, documented_verifier, log_lines, run_python, tamper},
};
use crate::EXECUTABLE;

async fn export(service: &Service, until: &str, to: &str) -> CommandOutput {
    service.command(&["audit", "export", "--until", until, "--to", to], &[]).await
}

/// Creates the partition of a past month, and inserts events into it.
pub async fn insert_old_events(service: &Service, month: &str, count: usize) {
    service
        .database()
        .execute(format!(
            "create table audit_events_{} partition of audit_events
             for values from ('{month}-01 00:00Z') to ('{month}-28 00:00Z');
             insert into audit_events (id, timestamp, event_type, resource, action, result, service_version, recorded_at)
             select gen_random_uuid(), '{month}-05', 'data_change', 'things', 'create', 'success', '0.1.0', '{month}-05'
             from generate_series(1, {count})",
            month.replace('-', "_")
        ))
        .await;
}

/// Starts a service with sealed events of February 2021. Returns the service, a directory for files, and the path of a
/// file in it for the export of that month.
async fn service_with_old_events(count: usize) -> (Service, Scratch, String) {
    let service = sealing_service().await;
    insert_old_events(&service, "2021-02", count).await;
    wait_until_everything_is_sealed(&service).await;
    let scratch = Scratch::new();
    let file = scratch.path("2021-02.jsonl.gz");
    (service, scratch, file)
}

async fn count_old_partitions(service: &Service) -> i64 {
    service.database().number("select count(*) from pg_class where relname in ('audit_events_2021_02', 'audit_events_2021_03') and relkind = 'r'").await
}

#[tokio::test]
async fn the_chain_verifies_after_an_exported_partition_is_dropped() {
    let (service, scratch, february) = service_with_old_events(5).await;
    insert_old_events(&service, "2021-03", 7).await;
    cause_three_events(&service).await;
    wait_until_everything_is_sealed(&service).await;

    let exported = export(&service, "2021-03-01", &february).await.succeeded();
    assert!(exported.contains("dropped: audit_events_2021_02"), "{exported}");
    assert_eq!(
        count_old_partitions(&service).await,
        1,
        "the partition of March must remain, because only February is exported"
    );
    let exports = service.audit_events("action = 'export'").await;
    assert_eq!(exports.len(), 1);
    assert!(exported.contains(exports[0]["metadata"]["file_sha256"].as_str().unwrap()), "{exported}");
    wait_until_everything_is_sealed(&service).await;
    let hash = exports[0]["metadata"]["file_sha256"].as_str().unwrap();
    for kept in [&february, hash] {
        let verified = verify(&service, &["--exported", kept]).await.succeeded();
        assert!(verified.contains("sealed events are in exports only"), "{verified}");
    }
    let found = verify(&service, &[]).await;
    assert_eq!(found.code(), Some(1), "{}", found.stdout);
    let named = format!("missing, and in an export that was not given (SHA-256 {hash})");
    assert!(found.stderr.contains(&named), "{}", found.stderr);
    let again = export(&service, "2021-03-01", &scratch.path("again.jsonl.gz")).await;
    assert_eq!(
        again.code(),
        Some(1),
        "a repeated export must fail, because nothing is left to export: {}",
        again.stdout
    );

    // The second export starts where the first ends.
    let march = scratch.path("2021-03.jsonl.gz");
    assert!(
        export(&service, "2021-04-01T00:00:00Z", &march)
            .await
            .succeeded()
            .contains("dropped: audit_events_2021_03")
    );
    assert_eq!(count_old_partitions(&service).await, 0);
    wait_until_everything_is_sealed(&service).await;
    let heads = scratch.write("heads.jsonl", &log_lines(&service));
    verify(&service, &["--heads", &heads, "--exported", &february, &march]).await.succeeded();
    for one in [&february, &march] {
        let found = verify(&service, &["--exported", one]).await;
        assert!(found.stderr.contains("in an export that was not given"), "{}", found.stderr);
    }
    for file in [&february, &march] {
        verify(&service, &["--export", file, "--heads", &heads]).await.succeeded();
        let Some((whole, output)) = run_python(&documented_verifier(), &[file]) else { continue };
        assert!(whole && output.contains("verified up to seal"), "{output}");
    }

    // Without the audit events that record the exports, verification reports the exported events as missing.
    tamper(&service, "delete from audit_events where action = 'export'").await;
    let found = verify(&service, &["--exported", &february, &march]).await;
    assert_eq!(found.code(), Some(1));
    assert!(found.stderr.contains("seal 1, event 1 of"), "{}", found.stderr);
}

#[tokio::test]
async fn verification_rejects_a_changed_export() {
    let service = sealing_service().await;
    let scratch = Scratch::new();
    cause_three_events(&service).await;
    wait_until_everything_is_sealed(&service).await;
    let file = scratch.path("export.jsonl.gz");
    let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::days(1)).to_rfc3339();
    let rejected = export(&service, "yesterday", &file).await;
    assert_eq!(rejected.code(), Some(2), "{}", rejected.stderr);
    assert!(
        !export(&service, &tomorrow, &file).await.succeeded().contains("dropped"),
        "the partition must not be dropped before its retention ends"
    );
    verify(&service, &["--export", &file]).await.succeeded();
    let over = export(&service, &tomorrow, &file).await;
    assert_eq!(over.code(), Some(1), "an export must never be overwritten");

    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(&file).unwrap()).read_to_string(&mut text).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let without = |index: usize| [&lines[..index], &lines[index + 1..]].concat().join("\n");
    for (what, changed) in [
        ("a field", text.replacen("\"customer\"", "\"admin\"", 1)),
        ("a missing event", without(2)),
        ("a missing seal", without(1)),
        ("a missing beginning", without(0)),
        ("a missing end", without(lines.len() - 1)),
        ("a missing last event", without(lines.len() - 2)),
        ("another end", text.replace("\"end\":{\"last_seal\":", "\"end\":{\"last_seal\":1")),
        ("a line after the end", format!("{text}{}\n", lines[0])),
    ] {
        assert_ne!(changed, text, "{what}");
        let path = scratch.path("changed.jsonl.gz");
        let mut gzip = GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::fast());
        gzip.write_all(changed.as_bytes()).unwrap();
        gzip.finish().unwrap();
        let found = verify(&service, &["--export", &path]).await;
        assert_eq!(found.code(), Some(1), "{what}: {}", found.stdout);
        if ["a field", "a missing event", "a missing last event"].contains(&what)
            && let Some((whole, output)) = run_python(&documented_verifier(), &[&path])
        {
            assert!(!whole, "{what}: {output}");
        }
    }
    std::fs::write(&file, &std::fs::read(&file).unwrap()[..100]).unwrap();
    assert_eq!(
        verify(&service, &["--export", &file]).await.code(),
        Some(1),
        "a truncated file must be rejected"
    );
}

#[tokio::test]
async fn the_audit_event_of_an_export_can_be_exported_too() {
    let (service, scratch, february) = service_with_old_events(5).await;
    export(&service, "2021-03-01", &february).await.succeeded();
    wait_until_everything_is_sealed(&service).await;
    // The second export contains the audit event that records the first export. Deleting all exported events simulates
    // a later drop of their partitions.
    let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::days(1)).to_rfc3339();
    let later = scratch.path("later.jsonl.gz");
    export(&service, &tomorrow, &later).await.succeeded();
    wait_until_everything_is_sealed(&service).await;
    tamper(
        &service,
        "delete from audit_events where recorded_at < (select max(exported_at) from audit_exports)",
    )
    .await;
    verify(&service, &["--exported", &february, &later]).await.succeeded();
}

/// Opens a transaction that reads the whole audit log and stays open, like the transaction of `pg_dump`.
async fn open_reader(service: &Service) -> dev::harness::OpenTransaction {
    service
        .database()
        .hold("set transaction isolation level repeatable read; select count(*) from audit_events")
        .await
}

/// Makes audited writes. Fails if one of them takes two seconds or longer.
async fn make_audited_writes(service: &Service, count: usize) {
    let customer = service.customer().await;
    for _ in 0..count {
        let started = Instant::now();
        let _created = customer.creates().await.assert_status(201);
        assert!(started.elapsed() < Duration::from_secs(2), "a write took {:?}", started.elapsed());
    }
}

/// Waits until the export is recorded, and its audit event is sealed. The command then only has to drop the partition.
async fn wait_until_exported(service: &Service) {
    eventually("the export is recorded", async || {
        (service.database().number("select count(*) from audit_exports").await == 1).then_some(())
    })
    .await;
    wait_until_everything_is_sealed(service).await;
}

#[tokio::test]
async fn audited_writes_continue_while_an_export_waits() {
    let (service, _scratch, file) = service_with_old_events(5).await;

    let reads = open_reader(&service).await;
    let (finished, ()) = tokio::join!(export(&service, "2021-03-01", &file), async {
        // The open transaction does not delay sealing, because it writes nothing.
        wait_until_exported(&service).await;
        for _ in 0..5 {
            make_audited_writes(&service, 2).await;
            let waiting = "
                select count(*) from pg_locks
                where not granted and relation is not null
                  and database = (select oid from pg_database where datname = current_database())";
            assert_eq!(
                service.database().number(waiting).await,
                0,
                "the export must not wait for a lock of a table"
            );
        }
        let left = service
            .database()
            .number("select count(*) from pg_class where relname = 'audit_events_2021_02'")
            .await;
        assert_eq!(left, 1, "the partition must not be dropped before the reader ends");
        reads.release().await;
        make_audited_writes(&service, 5).await;
    });
    assert!(finished.succeeded().contains("dropped: audit_events_2021_02"));
    make_audited_writes(&service, 5).await;
}

#[tokio::test]
async fn a_drop_gives_way_to_a_reader() {
    let service = sealing_service().await;
    insert_old_events(&service, "2021-02", 1).await;
    // This reader simulates a transaction that begins after `audit export` has waited for all older transactions. The
    // drop must time out, because audited writes queue behind the lock that it requests.
    let reads = open_reader(&service).await;
    let mut owner = PgConnection::connect(service.database().owner_url().as_str()).await.unwrap();
    let drop = "select drop_exported_audit_partition('audit_events_2021_02', now(), 1, '1', 1, '{}')";
    let started = Instant::now();
    let error = owner.execute(drop).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("55P03"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    reads.release().await;
}

#[tokio::test]
async fn audited_writes_continue_while_a_new_epoch_waits() {
    let service = sealing_service().await;
    let customer = service.customer().await;
    // This simulates a switch to another PostgreSQL cluster. Transaction ids start again in a new cluster, so `migrate`
    // begins a new epoch of the audit log: events are ordered by epoch first, and then by transaction id.
    service.database().execute("update audit_epochs set system_identifier = 0").await;
    let reads = open_reader(&service).await;
    let (migrated, ()) = tokio::join!(service.command(&["migrate"], &[]), async {
        service.database().wait_for_blocked_statements(1).await;
        for _ in 0..5 {
            let started = Instant::now();
            let _created = customer.creates().await.assert_status(201);
            assert!(started.elapsed() < Duration::from_secs(5), "a write took {:?}", started.elapsed());
        }
        reads.release().await;
    });
    migrated.succeeded();
    assert_eq!(service.database().number("select count(*) from audit_epochs").await, 2);
}

fn start_export(service: &Service, file: &str) -> Child {
    Command::new(EXECUTABLE)
        .args(["audit", "export", "--until", "2021-03-01", "--to", file])
        .env_clear()
        .envs(service.database().settings())
        .current_dir("/")
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn an_export_whose_drop_fails_ends_with_the_error() {
    let (service, _scratch, file) = service_with_old_events(5).await;
    service.database().execute("drop function drop_exported_audit_partition").await;
    let failed = export(&service, "2021-03-01", &file).await;
    assert_eq!(failed.code(), Some(1), "{}", failed.stdout);
    assert!(failed.stderr.contains("drop_exported_audit_partition"), "{}", failed.stderr);
}

#[tokio::test]
async fn an_export_that_is_killed_while_it_writes_can_be_repeated() {
    let (service, _scratch, file) = service_with_old_events(500).await;

    // `ulimit -f` sets a maximum size of files. The kernel kills the export when its file exceeds this size.
    let killed = Command::new("bash")
        .args([
            "-c",
            "ulimit -c 0 -f 4; exec \"$0\" audit export --until 2021-03-01 --to \"$1\"",
            EXECUTABLE,
            &file,
        ])
        .env_clear()
        .envs(service.database().settings())
        .current_dir("/")
        .output()
        .unwrap();
    assert!(killed.status.signal().is_some(), "{killed:?}");
    assert!(!Path::new(&file).exists(), "a truncated file must not have the name of the export");

    export(&service, "2021-03-01", &file).await.succeeded();
    wait_until_everything_is_sealed(&service).await;
    verify(&service, &["--exported", &file]).await.succeeded();

    insert_old_events(&service, "2021-03", 1).await;
    wait_until_everything_is_sealed(&service).await;
    let overwriting = export(&service, "2021-04-01", &file).await;
    assert_eq!(overwriting.code(), Some(1), "{}", overwriting.stdout);
    assert!(overwriting.stderr.contains("exists"), "{}", overwriting.stderr);
}

#[tokio::test]
async fn an_interrupted_export_can_be_repeated() {
    let (service, scratch, file) = service_with_old_events(5).await;

    // The export reads the locked table before it writes its file. The test kills the export during this read, so the
    // file does not exist yet.
    let held = service.database().lock("audit_exports").await;
    let mut exporting = start_export(&service, &file);
    let active_export = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'audit export' and state = 'active'";
    eventually("the export waits within a statement", async || {
        (service.database().number(active_export).await == 1).then_some(())
    })
    .await;
    exporting.kill().unwrap();
    exporting.wait().unwrap();
    eventually("the statement is cancelled", async || {
        (service.database().number(active_export).await == 0).then_some(())
    })
    .await;
    held.release().await;

    // An export that waits for a reader has already recorded its file. If the export is killed during this wait, the
    // next run only drops the partition.
    let reads = open_reader(&service).await;
    let mut exporting = start_export(&service, &file);
    wait_until_exported(&service).await;
    exporting.kill().unwrap();
    exporting.wait().unwrap();
    make_audited_writes(&service, 3).await;
    reads.release().await;
    let again = export(&service, "2021-03-01", &scratch.path("again.jsonl.gz")).await.succeeded();
    assert_eq!(again, "dropped: audit_events_2021_02\n");
    verify(&service, &["--exported", &file]).await.succeeded();
}
