//! Tampering with the audit log by an attacker who bypasses privileges and triggers. Verification finds each change,
//! but it finds a regenerated chain only with the heads (the last seals) that the service has logged. Also the reading
//! of heads from the service's log, and the Python verifier of docs/audit.md.
use std::{
    io::Write,
    path::{Path, PathBuf},
};

use dev::harness::Service;
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use super::seals::{cause_three_events, sealing_service, verify, wait_until_everything_is_sealed};
use crate::builder;

/// A directory for the files of a test. Dropping the value deletes the directory.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("audit-{}", Uuid::now_v7()));
        std::fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Runs statements as the owner of the database, while the triggers of `audit_events` and `audit_seals` are disabled.
pub async fn tamper(service: &Service, statements: &str) {
    service
        .database()
        .execute(format!(
            "alter table audit_events disable trigger user;
             alter table audit_seals disable trigger user;
             {statements};
             alter table audit_events enable trigger user;
             alter table audit_seals enable trigger user"
        ))
        .await;
}

/// Runs statements and deletes the whole chain, so that the sealer regenerates a consistent chain.
pub async fn unseal(service: &Service, statements: &str) {
    let forget = "delete from audit_seals;
        update audit_seal_head set number = 0, hash = decode(repeat('00', 32), 'hex')";
    tamper(service, &format!("{statements}; {forget}")).await;
}

/// Returns the log lines of the current process: one JSON object in each line, like the export of a log store.
pub fn log_lines(service: &Service) -> String {
    service.logs().iter().map(Value::to_string).collect::<Vec<_>>().join("\n") + "\n"
}

/// Returns a stopped service with at least three seals.
async fn sealed_service() -> Service {
    let service = sealing_service().await;
    for _ in 0..3 {
        cause_three_events(&service).await;
        wait_until_everything_is_sealed(&service).await;
    }
    // The service logs a head (the last seal) only after the commit of the seal, so the log may briefly lack the last
    // head.
    let head = service.database().number("select number from audit_seal_head").await;
    service.wait_for_log("the last head is logged", |line| line["seal_number"] == head).await;
    service.terminate().await;
    service
}

/// Query for the id of each event, and its position in the order in which the events are sealed.
const EVENTS_IN_ORDER: &str =
    "select id, row_number() over (order by epoch, xact_id, sequence) as position from audit_events";

async fn event_at(service: &Service, position: i64) -> String {
    let rows = service
        .database()
        .rows(format!("select id from ({EVENTS_IN_ORDER}) as events where position = {position}"))
        .await;
    rows[0]["id"].as_str().unwrap().to_owned()
}

/// Returns the number of the seal that contains an event, and the event's position within the seal.
async fn position_in_seal(service: &Service, position: i64) -> (i64, i64) {
    let query = format!(
        "select number, {position} - (until - event_count) as position
         from (select number, event_count, sum(event_count) over (order by number) as until from audit_seals) as seals
         where until >= {position} order by number limit 1"
    );
    let rows = service.database().rows(query).await;
    (rows[0]["number"].as_i64().unwrap(), rows[0]["position"].as_i64().unwrap())
}

#[tokio::test]
async fn every_change_of_the_audit_log_is_found_and_named() {
    let service = sealed_service().await;
    verify(&service, &[]).await.succeeded();
    let count = service.database().number("select sum(event_count)::bigint from audit_seals").await;
    let (second, third, last) =
        (event_at(&service, 2).await, event_at(&service, 3).await, event_at(&service, count).await);
    let (seal, position) = position_in_seal(&service, 2).await;
    let (last_seal, last_position) = position_in_seal(&service, count).await;
    service
        .database()
        .execute(
            "create table kept_events as table audit_events; create table kept_seals as table audit_seals",
        )
        .await;

    for (change, statements, finding) in [
        (
            "a field is changed",
            format!("update audit_events set metadata = metadata || '{{\"x\":1}}' where id = '{second}'"),
            format!("seal {seal}, event {second}:"),
        ),
        (
            "a time is moved by a microsecond",
            format!("update audit_events set \"timestamp\" = \"timestamp\" + interval '1 microsecond' where id = '{second}'"),
            format!("seal {seal}, event {second}:"),
        ),
        (
            "the last event is deleted",
            format!("delete from audit_events where id = '{last}'"),
            format!("seal {last_seal}, event {last_position} of {last_position}: missing"),
        ),
        (
            "the second event is deleted",
            format!("delete from audit_events where id = '{second}'"),
            format!("seal {seal}, event {position} of"),
        ),
        (
            "two events are swapped",
            format!(
                "with places as (select id, xact_id, sequence from audit_events where id in ('{second}', '{third}'))
                 update audit_events set xact_id = other.xact_id, sequence = other.sequence
                 from places as other
                 where audit_events.id in ('{second}', '{third}') and other.id in ('{second}', '{third}')
                   and other.id <> audit_events.id"
            ),
            format!("seal {seal}, event {third}:"),
        ),
        (
            "an event with an earlier position is inserted",
            format!(
                "insert into audit_events
                 select (jsonb_populate_record(audit_events, jsonb_build_object('id', gen_random_uuid(), 'sequence', 0))).*
                 from audit_events where id = '{third}'"
            ),
            "not as sealed: changed, moved or inserted".to_owned(),
        ),
        (
            "the last seal is deleted",
            format!("delete from audit_seals where number = {last_seal}"),
            format!("seal {last_seal}: not the end of the chain, although the database stores it as the head"),
        ),
        (
            "an inner seal is deleted",
            "delete from audit_seals where number = 2".to_owned(),
            "seal 2: missing".to_owned(),
        ),
        (
            "the digests of a seal are replaced with zeros",
            "update audit_seals set digests = decode(repeat('00', octet_length(digests)), 'hex') where number = 2".to_owned(),
            "seal 2: content and hash do not match".to_owned(),
        ),
        (
            "the time of creation of a seal is changed",
            "update audit_seals set sealed_at = sealed_at - interval '1 day' where number = 1".to_owned(),
            "seal 1: content and hash do not match".to_owned(),
        ),
    ] {
        tamper(&service, &statements).await;
        let verified = verify(&service, &[]).await;
        assert_eq!(verified.code(), Some(1), "{change}: {}{}", verified.stdout, verified.stderr);
        assert!(verified.stderr.contains(&finding), "{change}: {}", verified.stderr);
        tamper(
            &service,
            "delete from audit_events; insert into audit_events select * from kept_events;
             delete from audit_seals;
             alter table audit_seals disable trigger all;
             insert into audit_seals select * from kept_seals;
             alter table audit_seals enable trigger all",
        )
        .await;
    }
    verify(&service, &[]).await.succeeded();
}

#[tokio::test]
async fn only_the_logged_heads_reveal_a_regenerated_chain() {
    let mut service = sealed_service().await;
    let scratch = Scratch::new();
    let heads = scratch.write("heads.jsonl", &log_lines(&service));
    verify(&service, &["--heads", &heads]).await.succeeded();

    let second = event_at(&service, 2).await;
    unseal(&service, &format!("delete from audit_events where id = '{second}'")).await;
    // The sealer itself creates the new chain, as an attacker would.
    service.restart().await;
    wait_until_everything_is_sealed(&service).await;
    verify(&service, &[]).await.succeeded();

    let found = verify(&service, &["--heads", &heads]).await;
    assert_eq!(found.code(), Some(1), "{}", found.stdout);
    assert!(found.stderr.contains("seal 1: the hash differs from the logged one"), "{}", found.stderr);
    let both =
        scratch.write("both.jsonl", &(std::fs::read_to_string(&heads).unwrap() + &log_lines(&service)));
    let found = verify(&service, &["--heads", &both]).await;
    assert!(found.stderr.contains("it was logged with two hashes"), "{}", found.stderr);
    let beyond = scratch
        .write("beyond.jsonl", &format!("{{\"seal_number\":999,\"seal_hash\":\"{}\"}}", "00".repeat(32)));
    let found = verify(&service, &["--heads", &beyond]).await;
    assert!(found.stderr.contains("seal 999: missing, although it was logged"), "{}", found.stderr);
    let none = scratch.write("none.jsonl", "{}\n");
    assert_eq!(
        verify(&service, &["--heads", &none]).await.code(),
        Some(1),
        "a file without heads must be rejected"
    );
}

#[tokio::test]
async fn heads_are_read_from_the_service_log() {
    let scratch = Scratch::new();
    let directory = scratch.path("log");
    let mut service = builder()
        .setting("AUDIT_SEAL_INTERVAL_SECONDS", "1")
        .setting("LOG_DIRECTORY", &directory)
        .start()
        .await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    service.terminate().await;
    let mut logs: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .collect();
    logs.sort();
    let with_logs = [vec!["--log"], logs.iter().map(String::as_str).collect()].concat();
    verify(&service, &with_logs).await.succeeded();
    // Verification ignores a truncated last line, lines of other programs, and lines of other log targets.
    let audit_log = logs.iter().find(|path| path.contains("audit")).unwrap();
    let others = b"not ours\n\xff\xfe\n{\"target\":\"access\",\"seal_number\":1,\"seal_hash\":\"00\"}\n";
    let lines =
        [others.as_slice(), &std::fs::read(audit_log).unwrap(), b"{\"target\":\"audit\",\"seal_nu"].concat();
    let cut_off = scratch.path("cut.log");
    std::fs::write(&cut_off, lines).unwrap();
    verify(&service, &["--log", &cut_off]).await.succeeded();

    let second = event_at(&service, 2).await;
    unseal(&service, &format!("delete from audit_events where id = '{second}'")).await;
    let before = scratch.write("before.log", &std::fs::read_to_string(audit_log).unwrap());
    service.restart().await;
    wait_until_everything_is_sealed(&service).await;
    let found = verify(&service, &["--log", &before]).await;
    assert_eq!(found.code(), Some(1), "{}", found.stdout);
    assert!(found.stderr.contains("seal 1: the hash differs from the logged one"), "{}", found.stderr);
    let missing = verify(&service, &["--log", &scratch.path("nowhere.log")]).await;
    assert_eq!(missing.code(), Some(1));
    assert!(missing.stderr.contains("nowhere.log"), "{}", missing.stderr);
    let empty = scratch.write("empty.log", "");
    assert_eq!(
        verify(&service, &["--log", &empty]).await.code(),
        Some(1),
        "a log without heads must be rejected"
    );
}

#[tokio::test]
async fn a_rewritten_chain_stops_sealing_and_raises_an_alert() {
    let service = sealing_service().await;
    service.customer().await;
    wait_until_everything_is_sealed(&service).await;
    tamper(&service, "delete from audit_seals where number = (select max(number) from audit_seals)").await;
    let before = service.database().number("select count(*) from audit_seals").await;
    service
        .wait_for_log("an alert is raised", |line| line.to_string().contains("Audit log tampered with"))
        .await;
    assert_eq!(
        service.database().number("select count(*) from audit_seals").await,
        before,
        "the service must not repair the chain"
    );
}

/// Returns the Python verifier in docs/audit.md, and the JSON blocks of the document. The first block is an event, and
/// the second block is its seal.
fn documented() -> (String, Vec<Value>) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md")).unwrap();
    let block = |text: &str| text.split_once("\n```").unwrap().0.to_owned();
    let vectors = text.split("```json\n").skip(1).map(|rest| serde_json::from_str(&block(rest)).unwrap());
    (block(text.split("```python\n").nth(1).unwrap()), vectors.collect())
}

/// Runs a Python script. Returns whether the script succeeded, and its output. If Python cannot be started, returns
/// `None`, or panics if `REQUIRE_TOOLS` is set.
pub fn run_python(script: &str, arguments: &[&str]) -> Option<(bool, String)> {
    let scratch = Scratch::new();
    let script = scratch.write("verifier.py", script);
    match std::process::Command::new("python3").arg(script).args(arguments).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8(text).unwrap()))
        }
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_TOOLS").is_none(), "python3: {error}");
            println!("skipped: python3");
            None
        }
    }
}

pub fn documented_verifier() -> String {
    documented().0
}

#[test]
fn the_documents_verifier_computes_the_documents_test_vector() {
    let (script, vectors) = documented();
    let check = format!(
        "{}\nevent, seal = json.loads(sys.argv[1]), json.loads(sys.argv[2])\n\
         print(digest_of(event).hex() == seal['digests'], hash_of(seal) == seal['hash'])",
        script.split("if __name__").next().unwrap()
    );
    let Some((_, output)) = run_python(&check, &[&vectors[0].to_string(), &vectors[1].to_string()]) else {
        return;
    };
    assert_eq!(output.trim(), "True True");
}

#[tokio::test]
async fn a_forged_export_record_does_not_excuse_missing_events() {
    let mut service = sealed_service().await;
    let scratch = Scratch::new();
    let heads = scratch.write("heads.jsonl", &log_lines(&service));
    // The service's role can insert an event that resembles the event of `audit export`.
    let forged = "00".repeat(32);
    let forged_event = format!(
        "select record_audit_event(jsonb_build_object(
           'id', gen_random_uuid(), 'timestamp', now(), 'event_type', 'audit', 'resource', 'audit_events',
           'action', 'export', 'result', 'success', 'service_version', 'test',
           'metadata', jsonb_build_object('first_seal', 1, 'last_seal', 1, 'event_count', 3, 'file_sha256', '{forged}')
         ))"
    );
    let mut connection = PgConnection::connect(service.database().service_url().as_str()).await.unwrap();
    connection.execute(AssertSqlSafe(forged_event)).await.unwrap();
    service.restart().await;
    wait_until_everything_is_sealed(&service).await;
    service.terminate().await;
    verify(&service, &["--heads", &heads]).await.succeeded();

    // The owner of the database deletes the events of the first seal.
    tamper(
        &service,
        "delete from audit_events using audit_seals
         where number = 1 and (audit_events.xact_id, sequence) <= (last_xact_id::text::xid8, last_sequence)",
    )
    .await;
    for arguments in [vec!["--heads", &heads], vec!["--heads", &heads, "--exported", &forged]] {
        let found = verify(&service, &arguments).await;
        assert_eq!(found.code(), Some(1), "{arguments:?}: {}", found.stdout);
        assert!(found.stderr.contains("missing, and in no export"), "{}", found.stderr);
    }
    // The owner of the database can also record the forged event as an export, but has no file with the deleted events.
    service
        .database()
        .execute(format!(
            "insert into audit_exports (event_id, first_seal, last_seal, file_sha256)
             select id, 1, 1, '{forged}' from audit_events where action = 'export'"
        ))
        .await;
    let found = verify(&service, &["--heads", &heads]).await;
    assert!(found.stderr.contains("in an export that was not given"), "{}", found.stderr);
}

#[tokio::test]
async fn a_finding_is_audited_whatever_text_it_repeats() {
    let service = sealed_service().await;
    let scratch = Scratch::new();
    let file = scratch.path("forged.jsonl.gz");
    let mut gzip = GzEncoder::new(std::fs::File::create(&file).unwrap(), Compression::fast());
    gzip.write_all(b"{\"begin\\u0000\":{}}\n").unwrap();
    gzip.finish().unwrap();
    let found = verify(&service, &["--exported", &file]).await;
    assert_eq!(found.code(), Some(1), "{}", found.stdout);
    assert!(found.stderr.contains("failed to read a line of the export"), "{}", found.stderr);
    let audited = service.audit_events("action = 'verify' and result = 'failure'").await;
    let finding = audited[0]["metadata"]["finding"].as_str().unwrap();
    assert!(finding.contains("`begin\u{fffd}`"), "{finding}");
}
