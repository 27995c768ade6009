//! Tests of the chain of seals: each rule with a log that obeys it, and one that violates it. The last tests are about
//! the arguments of commands: a reason, and an external export.
use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ExternalExport, KnownHeads,
    canonical::{EventPosition, Seal, StoredEvent},
    chain::{Chain, ExportRecord, Exports, RestoreRecord, Restores, Verdict},
    parse_reason,
    report::add_head,
    sealing::seal,
    seals::{Head, Horizon},
};

const HASH_OF_FILE: &str = "5e1f";

/// A seal, and the events that the database has for it.
type SealWithEvents = (Seal, Vec<StoredEvent>);

fn event(sequence: i64, action: &str, metadata: &Value) -> StoredEvent {
    serde_json::from_value(json!({
        "epoch": 1, "xact_id": 700 + sequence, "sequence": sequence, "id": Uuid::from_u128(sequence.unsigned_abs().into()),
        "recorded_at": "2026-01-31T12:00:00Z", "timestamp": "2026-01-31T12:00:00Z",
        "event_type": "audit", "user_id": null, "role": null, "resource": "things",
        "action": action, "result": "success", "ip_address": null, "metadata": metadata,
        "correlation_id": null, "request_id": null, "trace_id": null, "service_version": "0.1.0"
    }))
    .unwrap()
}

fn seal_after(previous: Head, events: Vec<StoredEvent>) -> SealWithEvents {
    let now: DateTime<Utc> = "2026-01-31T12:00:01Z".parse().unwrap();
    let horizon = Horizon { epoch: 1, xact_id: i64::MAX, same_cluster: true, now };
    let (first, last) = (events[0].position(), events[events.len() - 1].position());
    (seal(previous, horizon, first, last, &events), events)
}

fn head((seal, _): &SealWithEvents) -> Head {
    Head { number: seal.number, hash: seal.computed_hash() }
}

/// Returns a log of three seals over two events each, and of a fourth seal over the event `last`.
fn log_with(last: StoredEvent) -> Vec<SealWithEvents> {
    let mut log = Vec::new();
    let mut previous = Head::NONE;
    for first in [1, 3, 5] {
        let events = [first, first + 1].map(|sequence| event(sequence, "create", &json!({})));
        log.push(seal_after(previous, events.into()));
        previous = head(&log[log.len() - 1]);
    }
    log.push(seal_after(previous, vec![last]));
    log
}

fn log() -> Vec<SealWithEvents> {
    log_with(event(7, "create", &json!({})))
}

fn check(log: &[SealWithEvents], heads: KnownHeads, exports: &Exports, restores: &Restores) -> Verdict {
    let mut chain = Chain::after(Head::NONE, heads);
    for (seal, events) in log {
        chain.seal(seal);
        assert_eq!(chain.head_number(), seal.number);
        for event in events {
            chain.event(event);
        }
    }
    let events = chain.events();
    let verdict = chain.finish(exports, restores);
    assert_eq!(verdict.events, events);
    verdict
}

/// Returns the first violation of a log, or an empty text.
fn violation(log: &[SealWithEvents], exports: &Exports) -> String {
    let verdict = check(log, KnownHeads::new(), exports, &Restores::default());
    verdict.violation.map(|violation| violation.to_string()).unwrap_or_default()
}

fn changed(change: impl FnOnce(&mut Vec<SealWithEvents>)) -> String {
    let mut log = log();
    change(&mut log);
    violation(&log, &Exports::default())
}

/// Writes the hash that belongs to the content of a seal, as a forger would.
fn rehash(seal: &mut Seal) {
    seal.hash = seal.computed_hash().to_vec();
}

#[test]
fn an_unchanged_log_verifies() {
    let log = log();
    let verdict = check(&log, KnownHeads::new(), &Exports::default(), &Restores::default());
    assert_eq!(verdict.violation, None);
    assert_eq!((verdict.events, verdict.exported, verdict.logged_beyond), (7, 0, None));
    assert_eq!(
        (verdict.head, verdict.end),
        (head(&log[3]), EventPosition { epoch: 1, xact_id: 707, sequence: 7 })
    );
}

#[test]
fn a_changed_seal_is_named() {
    let content = "content and hash do not match";
    assert_eq!(changed(|log| drop(log.remove(1))), "seal 2: missing");
    assert_eq!(changed(|log| log.swap(1, 2)), "seal 2: missing");
    assert_eq!(changed(|log| log[1].0.event_count = 1), format!("seal 2: {content}"));
    assert_eq!(changed(|log| log[1].0.hash[0] ^= 1), format!("seal 2: {content}"));
    let relinked = changed(|log| {
        log[1].0.previous_hash[0] ^= 1;
        rehash(&mut log[1].0);
    });
    assert_eq!(relinked, "seal 2: previous_hash is not the hash of the previous seal");
    let first_of_two = changed(|log| {
        log[1].0.event_count = 1;
        log[2].0.event_count = 1;
    });
    assert_eq!(first_of_two, format!("seal 2: {content}"));
}

#[test]
fn the_ranges_of_seals_ascend() {
    let rule = "seal 2: the range of its events does not follow the range of the previous seal";
    let ranged = |first: i64, last: i64| {
        changed(|log| {
            let seal = &mut log[1].0;
            (seal.first_xact_id, seal.first_sequence) = (700 + first, first);
            (seal.last_xact_id, seal.last_sequence) = (700 + last, last);
            rehash(seal);
        })
    };
    assert_eq!(ranged(2, 4), rule);
    assert_eq!(ranged(1, 4), rule);
    assert_eq!(ranged(4, 3), rule);
    assert_ne!(ranged(3, 3), rule);
    assert_ne!(ranged(4, 4), rule);
}

#[test]
fn a_changed_or_missing_event_is_named() {
    let id = Uuid::from_u128(3);
    let not_as_sealed = format!("seal 2, event {id}: not as sealed: changed, moved or inserted");
    assert_eq!(changed(|log| log[1].1[0].action = "delete".to_owned()), not_as_sealed);
    assert_eq!(changed(|log| log[1].1.swap(0, 1)), not_as_sealed);
    let extra = event(99, "create", &json!({}));
    let inserted = format!("seal 2, event {}: not as sealed: changed, moved or inserted", extra.id);
    assert_eq!(changed(|log| log[1].1.insert(1, extra.clone())), inserted);
    assert_eq!(changed(|log| log[1].1.push(extra.clone())), inserted);
    let missing = |index| format!("seal 2, event {index} of 2: missing, and in no export");
    assert_eq!(changed(|log| drop(log[1].1.remove(0))), missing(1));
    assert_eq!(changed(|log| drop(log[1].1.remove(1))), missing(2));
    assert_eq!(changed(|log| log[1].1.clear()), missing(1));
    let later_violation = changed(|log| {
        log[1].1.clear();
        log[2].0.event_count = 1;
    });
    assert_eq!(later_violation, missing(1));
    let earlier_violation = changed(|log| {
        log[1].0.event_count = 1;
        log[2].1.clear();
    });
    assert_eq!(earlier_violation, "seal 2: content and hash do not match");
}

/// Returns the event and the record of an export of these seals.
fn export_of(first_seal: i64, last_seal: i64) -> (StoredEvent, ExportRecord) {
    let metadata = json!({ "first_seal": first_seal, "last_seal": last_seal, "file_sha256": HASH_OF_FILE });
    let event = event(7, "export", &metadata);
    let record = ExportRecord::from_event(&event).unwrap();
    (event, record)
}

#[test]
fn events_are_missing_only_in_a_recorded_and_given_export() {
    let (exported, record) = export_of(2, 3);
    let given = || BTreeSet::from([HASH_OF_FILE.to_owned()]);
    let both = Exports { recorded: vec![record.clone()], in_files: Vec::new(), given: given() };
    let without = |seals: &[usize]| {
        let mut log = log_with(exported.clone());
        for seal in seals {
            log[*seal].1.clear();
        }
        log
    };
    let verdict = check(&without(&[1, 2]), KnownHeads::new(), &both, &Restores::default());
    assert_eq!((verdict.violation, verdict.events, verdict.exported), (None, 3, 4));
    assert_eq!((&verdict.exports, &verdict.export_events), (&vec![record.clone()], &vec![record.clone()]));
    assert_eq!(violation(&without(&[0]), &both), "seal 1, event 1 of 2: missing, and in no export");
    let partly = {
        let mut log = without(&[]);
        log[1].1.remove(0);
        log
    };
    let verdict = check(&partly, KnownHeads::new(), &both, &Restores::default());
    assert_eq!((verdict.violation, verdict.exported), (None, 1));

    let not_given = Exports { given: BTreeSet::new(), recorded: vec![record.clone()], in_files: Vec::new() };
    let rule = format!(
        "seal 2, event 1 of 2: missing, and in an export that was not given (SHA-256 {HASH_OF_FILE})"
    );
    assert_eq!(violation(&without(&[1]), &not_given), rule);
    let not_recorded = Exports { given: given(), ..Exports::default() };
    assert_eq!(violation(&without(&[1]), &not_recorded), "seal 2, event 1 of 2: missing, and in no export");
    let without_event = {
        let mut log = log();
        log[1].1.clear();
        log
    };
    assert_eq!(violation(&without_event, &both), "seal 2, event 1 of 2: missing, and in no export");
    let in_file = Exports { in_files: vec![record], ..both };
    assert_eq!(violation(&without_event, &in_file), "");
}

#[test]
fn only_a_successful_export_is_the_event_of_one() {
    let (exported, _) = export_of(1, 2);
    for change in [
        |event: &mut StoredEvent| event.event_type = "data_change".to_owned(),
        |event: &mut StoredEvent| event.action = "verify".to_owned(),
        |event: &mut StoredEvent| event.result = "failure".to_owned(),
        |event: &mut StoredEvent| event.metadata = json!({ "first_seal": 1, "last_seal": 2 }),
    ] {
        let mut other = exported.clone();
        change(&mut other);
        assert_eq!(ExportRecord::from_event(&other), None);
    }
}

#[test]
fn a_logged_head_must_be_in_the_chain() {
    let log = log();
    let heads = |known: &[(i64, &[u8])]| {
        let mut heads = KnownHeads::new();
        for (number, hash) in known {
            add_head(&mut heads, *number, hash);
        }
        let verdict = check(&log, heads, &Exports::default(), &Restores::default());
        (verdict.violation.map(|violation| violation.to_string()).unwrap_or_default(), verdict.logged_beyond)
    };
    let (second, last) = (log[1].0.hash.as_slice(), log[3].0.hash.as_slice());
    assert_eq!(heads(&[(2, second), (4, last)]), (String::new(), None));
    assert_eq!(heads(&[(2, last)]), ("seal 2: the hash differs from the logged one".to_owned(), None));
    assert_eq!(heads(&[(2, second), (2, last)]), ("seal 2: it was logged with two hashes".to_owned(), None));
    assert_eq!(heads(&[(2, second), (5, last), (6, last)]), (String::new(), Some(5)));
    assert_eq!(heads(&[(0, second)]), (String::new(), None));
}

#[test]
fn a_restore_excuses_the_heads_that_it_has_lost() {
    let lost = |hash: u8| vec![hash; 32];
    let record =
        RestoreRecord { event_id: Uuid::from_u128(7), lost_heads: [(2, lost(1)), (5, lost(2))].into() };
    let metadata = |digest: &str| json!({ "reason": "disk", "lost_heads_sha256": digest });
    let digest = record.digest();
    let restores = Restores { recorded: vec![record], in_files: Vec::new() };
    let verdict = |event: StoredEvent, known: &[(i64, Vec<u8>)]| {
        let mut heads = KnownHeads::new();
        for (number, hash) in known {
            add_head(&mut heads, *number, hash);
        }
        let verdict = check(&log_with(event), heads, &Exports::default(), &restores);
        let lost: Vec<_> = verdict.restores.iter().map(|restore| restore.lost).collect();
        (verdict.violation.is_none(), verdict.logged_beyond, lost)
    };
    let restore_event = || event(7, "restore", &metadata(&digest));
    let acknowledged = vec![Some((2, 5))];
    assert_eq!(verdict(restore_event(), &[(2, lost(1)), (5, lost(2))]), (true, None, acknowledged.clone()));
    assert_eq!(verdict(restore_event(), &[(2, lost(3))]), (false, None, acknowledged.clone()));
    assert_eq!(verdict(restore_event(), &[(2, lost(1)), (2, lost(3))]), (false, None, acknowledged.clone()));
    assert_eq!(verdict(restore_event(), &[(6, lost(2))]), (true, Some(6), acknowledged));
    for other in [
        event(7, "restore", &metadata("other")),
        event(8, "restore", &metadata(&digest)),
        event(7, "verify", &metadata(&digest)),
    ] {
        assert_eq!(verdict(other, &[(2, lost(1)), (5, lost(2))]), (false, Some(5), Vec::new()));
    }

    let mut heads = KnownHeads::new();
    for (number, hash) in [(2, lost(1)), (2, lost(3)), (5, lost(2)), (6, lost(2))] {
        add_head(&mut heads, number, &hash);
    }
    let kept: Vec<_> = restores.without_lost(&heads).into_iter().collect();
    assert_eq!(kept, [(2, BTreeSet::from([lost(3)])), (6, BTreeSet::from([lost(2)]))]);
}

#[test]
fn a_reason_is_one_line_of_at_most_500_characters() {
    assert_eq!(parse_reason(" The disk was full. ").unwrap(), "The disk was full.");
    assert!(parse_reason(&"\u{e4}".repeat(500)).is_ok());
    for rejected in ["", "  ", "two\nlines", "a\u{0}", &"a".repeat(501)] {
        assert!(parse_reason(rejected).is_err(), "{rejected:?}");
    }
}

#[test]
fn an_export_outside_of_the_database_is_a_hash_or_a_file() {
    let is_hash = |text: &str| match text.parse::<ExternalExport>().unwrap() {
        ExternalExport::Sha256(hash) => hash == text.to_lowercase(),
        ExternalExport::File(path) => {
            assert_eq!(path.as_os_str(), text);
            false
        }
    };
    assert!(is_hash(&"5E1f".repeat(16)));
    for file in ["", "5e1f", &"a".repeat(63), &"a".repeat(65), &"g".repeat(64), "audit.gz"] {
        assert!(!is_hash(file), "{file}");
    }
}
