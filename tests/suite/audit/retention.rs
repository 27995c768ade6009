//! Exports verify by themselves, and only what is in one leaves the database.
use std::io::{Read, Write};

use dev::harness::{Finished, Service};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::{
    seals::{everything_is_sealed, sealing_service, something_happens, verify},
    verification::{Scratch, documented_verifier, log_lines, python, tamper},
};

async fn export(service: &Service, until: &str, to: &str) -> Finished {
    service.command(&["audit", "export", "--until", until, "--to", to], &[]).await
}

/// Events of a month that ended long ago, in a partition of their own.
async fn old_events(service: &Service, month: &str, count: usize) {
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

async fn partitions(service: &Service) -> i64 {
    service.database().number("select count(*) from pg_class where relname in ('audit_events_2021_02', 'audit_events_2021_03') and relkind = 'r'").await
}

#[tokio::test]
async fn a_partition_leaves_when_it_is_sealed_and_exported_and_the_chain_still_verifies() {
    let service = sealing_service().await;
    let scratch = Scratch::new();
    old_events(&service, "2021-02", 5).await;
    everything_is_sealed(&service).await;
    old_events(&service, "2021-03", 7).await;
    something_happens(&service).await;
    everything_is_sealed(&service).await;

    let february = scratch.path("2021-02.jsonl.gz");
    let exported = export(&service, "2021-03-01", &february).await.succeeded();
    assert!(exported.contains("dropped: audit_events_2021_02"), "{exported}");
    assert_eq!(partitions(&service).await, 1, "March is not exported, or not over at that time");
    let exports = service.audit_events("action = 'export'").await;
    assert_eq!(exports.len(), 1);
    assert!(exported.contains(exports[0]["metadata"]["file_sha256"].as_str().unwrap()), "{exported}");
    everything_is_sealed(&service).await;
    let verified = verify(&service, &[]).await.succeeded();
    assert!(verified.contains("in exports and no longer here"), "{verified}");
    let again = export(&service, "2021-03-01", &scratch.path("again.jsonl.gz")).await;
    assert_eq!(again.code(), Some(1), "nothing is left of it: {}", again.stdout);

    // The next file goes on where the first ended.
    let march = scratch.path("2021-03.jsonl.gz");
    assert!(
        export(&service, "2021-04-01T00:00:00Z", &march)
            .await
            .succeeded()
            .contains("dropped: audit_events_2021_03")
    );
    assert_eq!(partitions(&service).await, 0);
    everything_is_sealed(&service).await;
    let heads = scratch.write("heads.jsonl", &log_lines(&service));
    verify(&service, &["--heads", &heads]).await.succeeded();
    for file in [&february, &march] {
        verify(&service, &["--export", file, "--heads", &heads]).await.succeeded();
        let Some((whole, told)) = python(&documented_verifier(), &[file]) else { continue };
        assert!(whole && told.contains("verified up to seal"), "{told}");
    }

    // Without the export's own event, what is missing is missing.
    tamper(&service, "delete from audit_events where action = 'export'").await;
    let found = verify(&service, &[]).await;
    assert_eq!(found.code(), Some(1));
    assert!(found.stderr.contains("seal 1, event 1 of"), "{}", found.stderr);
}

#[tokio::test]
async fn an_export_that_was_changed_does_not_verify() {
    let service = sealing_service().await;
    let scratch = Scratch::new();
    something_happens(&service).await;
    everything_is_sealed(&service).await;
    let file = scratch.path("export.jsonl.gz");
    let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::days(1)).to_rfc3339();
    let refused = export(&service, "yesterday", &file).await;
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr);
    assert!(!export(&service, &tomorrow, &file).await.succeeded().contains("dropped"), "it is not that old");
    verify(&service, &["--export", &file]).await.succeeded();
    let over = export(&service, &tomorrow, &file).await;
    assert_eq!(over.code(), Some(1), "an export is never overwritten");

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
        ("something behind the end", format!("{text}{}\n", lines[0])),
    ] {
        assert_ne!(changed, text, "{what}");
        let path = scratch.path("changed.jsonl.gz");
        let mut gzip = GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::fast());
        gzip.write_all(changed.as_bytes()).unwrap();
        gzip.finish().unwrap();
        let found = verify(&service, &["--export", &path]).await;
        assert_eq!(found.code(), Some(1), "{what}: {}", found.stdout);
        if ["a field", "a missing event", "a missing last event"].contains(&what)
            && let Some((whole, told)) = python(&documented_verifier(), &[&path])
        {
            assert!(!whole, "{what}: {told}");
        }
    }
    std::fs::write(&file, &std::fs::read(&file).unwrap()[..100]).unwrap();
    assert_eq!(verify(&service, &["--export", &file]).await.code(), Some(1), "cut off");
}
