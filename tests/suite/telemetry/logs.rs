//! Log lines: correlation ids of workers, slow statements, forged input, log files, the log filter, and lines of
//! libraries.
use std::path::{Path, PathBuf};

use dev::harness::{LIST_STATEMENT, Service, TABLE, WAIT_TIMEOUT, eventually, within};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{builder, service};

/// Returns an empty directory for this test.
fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _may_be_missing = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Returns the lines of those files in a directory whose names start with `name`.
fn lines_in(directory: &Path, name: &str) -> Vec<Value> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with(name) {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
    }
    lines
}

#[tokio::test]
async fn a_run_of_a_worker_has_a_correlation_id_of_its_own() {
    let service = builder().setting("AUDIT_SEAL_INTERVAL_SECONDS", "1").start().await;
    service.database().execute("alter table audit_seals rename to hidden").await;
    // This registration records an event that the worker must seal.
    service.customer().await;
    let failed = |line: &Value| line["worker"] == "audit_sealing" && line["level"] != "INFO";
    let runs = eventually("two runs fail", async || {
        let runs: Vec<_> = service.logs().into_iter().filter(failed).collect();
        (runs.len() >= 2).then_some(runs)
    })
    .await;
    assert!(runs.iter().all(|run| run["correlation_id"].is_string()), "{runs:#?}");
    assert_ne!(runs[0]["correlation_id"], runs[1]["correlation_id"]);
}

#[tokio::test]
async fn a_slow_statement_is_named() {
    let service = service().await;
    let customer = service.customer().await;
    let held = service.database().lock(TABLE).await;
    let request = customer.lists().header("x-correlation-id", "slow").in_background();
    eventually("the statement is slow enough for the log", async || {
        let waiting = "select count(*) from pg_locks join pg_database on pg_database.oid = pg_locks.database
             where datname = current_database() and not granted and waitstart < now() - interval '0.6 s'";
        (service.database().number(waiting).await > 0).then_some(())
    })
    .await;
    held.release().await;
    let _listed = request.response().await.assert_status(200);
    let line = service.wait_for_log("the slow statement", |line| line["message"] == "slow statement").await;
    assert_eq!((&line["query"], &line["correlation_id"]), (&json!(LIST_STATEMENT), &json!("slow")));
    assert!(line["duration_ms"].as_u64().is_some_and(|duration| duration >= 500), "{line:#}");
}

#[tokio::test]
async fn nothing_that_a_client_sends_forges_a_line_or_a_header() {
    let service = service().await;
    let address = format!("{}:{}", service.api_url().host_str().unwrap(), service.api_url().port().unwrap());
    let forged = "x\\n{\"level\":\"ERROR\",\"message\":\"forged\"}";
    let send = async |head: String| {
        let mut connection = TcpStream::connect(&address).await.unwrap();
        let request = format!("{head}\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        connection.read_to_end(&mut response).await.unwrap();
        let response = String::from_utf8(response).unwrap();
        let (head, _body) = response.split_once("\r\n\r\n").unwrap();
        assert!(!head.contains("forged"), "{head}");
        head.to_owned()
    };
    for head in [
        format!(
            "GET /problems%0a%0d%1b%7B%22level%22%3A%22ERROR%22%7D?token=tea HTTP/1.1\r\nuser-agent: {forged}\r\n\
             x-correlation-id: {forged}"
        ),
        // HTTP allows bytes above ASCII in header values, but `HeaderValue::to_str` rejects them.
        "GET /problems HTTP/1.1\r\nuser-agent: \u{85}\u{2028}forged\r\nx-correlation-id: a\r\n\
         x-correlation-id: forged"
            .to_owned(),
        format!("GET /problems HTTP/1.1\r\ntraceparent: {forged}\r\nbaggage: {forged}"),
        format!("GET /problems HTTP/1.1\r\nx-forwarded-for: {forged}\r\nforwarded: for=\"{forged}\""),
    ] {
        send(head).await;
    }
    for control in ["\u{1b}[2K", "\u{0}", "a\rb"] {
        let rejected = send(format!("GET /problems HTTP/1.1\r\nx-correlation-id: {control}")).await;
        assert!(rejected.starts_with("HTTP/1.1 400"), "{rejected}");
    }
    let lines = eventually("four access lines", async || {
        let mut lines = service.logs();
        lines.retain(|line| line["target"] == "access");
        (lines.len() >= 4).then_some(lines)
    })
    .await;
    // The harness has checked that every line is valid JSON.
    assert_eq!(lines.len(), 4, "each accepted request must have exactly one line: {lines:#?}");
    for line in &lines {
        assert_eq!((&line["level"], &line["message"]), (&json!("INFO"), &json!("request")), "{line:#}");
        assert!(!line.to_string().contains("token"), "the line must have no query string: {line:#}");
        assert!(
            uuid::Uuid::parse_str(line["correlation_id"].as_str().unwrap()).is_ok()
                || line["correlation_id"] == "a"
        );
    }
}

#[tokio::test]
async fn log_files_separate_the_audit_log_and_are_rotated() {
    let directory = directory("log-files");
    for name in [env!("CARGO_PKG_NAME"), "audit"] {
        for day in 1..=5 {
            std::fs::write(directory.join(format!("{name}.2026-01-0{day}.log")), "").unwrap();
        }
    }
    let service = builder()
        .setting("LOG_DIRECTORY", directory.to_str().unwrap())
        .setting("LOG_FILES_KEPT", "3")
        .start()
        .await;
    let request = service.customer().await.creates();
    let _created = request.header("x-correlation-id", "filed").await.assert_status(201);
    assert!(service.terminate().await.success());

    let of_request = |name: &str| {
        let mut lines = lines_in(&directory, name);
        lines.retain(|line| line["correlation_id"] == "filed");
        lines.into_iter().map(|line| line["target"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(of_request("audit"), ["audit"]);
    assert_eq!(of_request(env!("CARGO_PKG_NAME")), ["access"]);
    let last = lines_in(&directory, env!("CARGO_PKG_NAME")).pop().unwrap();
    assert_eq!(last["message"], "the service stopped", "the last lines must be written too");
    for name in [env!("CARGO_PKG_NAME"), "audit"] {
        let files = std::fs::read_dir(&directory).unwrap();
        let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|found| found.starts_with(name)).count(), 4, "{name}");
    }
}

#[tokio::test]
async fn a_restart_keeps_the_current_log_file() {
    let directory = directory("restarted-log-files");
    let mut service = builder()
        .setting("LOG_DIRECTORY", directory.to_str().unwrap())
        .setting("LOG_FILES_KEPT", "1")
        .start()
        .await;
    let request = service.customer().await.creates();
    let _created = request.header("x-correlation-id", "before").await.assert_status(201);
    assert!(service.terminate().await.success());
    service.restart().await;
    assert!(service.terminate().await.success());
    assert!(lines_in(&directory, "audit").iter().any(|line| line["correlation_id"] == "before"));
}

#[tokio::test]
async fn the_log_level_cannot_silence_the_audit_log() {
    let service = service().await;
    let customer = service.customer().await;
    let change = json!({ "filter": "off" }).to_string();
    let (status, body) = service.request_ops(Method::PUT, "/log-level", &change).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let _created = customer.creates().header("x-correlation-id", "silent").await.assert_status(201);
    let mirrored = |line: &Value| line["correlation_id"] == "silent" && line["target"] == "audit";
    let _mirrored = service.wait_for_log("the audit log line", mirrored).await;
    assert!(
        !service.logs().iter().any(|line| line["correlation_id"] == "silent" && line["target"] == "access")
    );
}

#[tokio::test]
async fn level_checks_of_libraries_suppress_no_lines() {
    const CHANGES: usize = 40;
    let service = service().await;
    let customer = service.customer().await;
    // The service logs at debug level, and sqlx does not. After each statement, sqlx checks whether its level is
    // enabled. Such a check must not suppress the next line of the service on the same thread.
    let change = json!({ "filter": "app=debug", "ttl_seconds": 600 }).to_string();
    for _ in 0..CHANGES {
        let _served = customer.lists().await.assert_status(200);
        assert_eq!(service.request_ops(Method::PUT, "/log-level", &change).await.unwrap().0, 200);
    }
    let short_change = json!({ "filter": "app=debug", "ttl_seconds": 1 }).to_string();
    assert_eq!(service.request_ops(Method::PUT, "/log-level", &short_change).await.unwrap().0, 200);
    let restored = |line: &Value| line["message"] == "restored the default log filter";
    service.wait_for_log("the expiry of the filter is logged", restored).await;
    let changed = service.logs().iter().filter(|line| line["message"] == "changed the log filter").count();
    assert_eq!(changed, CHANGES + 1, "every change must be logged");
}

#[tokio::test]
async fn library_logs_are_filtered_and_have_the_same_format() {
    let service = builder().setting("RUST_LOG", "debug").start().await;
    let _served = service.customer().await.lists().await.assert_status(200);
    let foreign = |line: &Value| {
        !["app", "access", "audit"].iter().any(|target| line["target"].as_str().unwrap().starts_with(target))
    };
    let line = service.wait_for_log("a library's line", foreign).await;
    assert!(line["message"].is_string() && line["service"].is_string(), "{line:#}");
    assert_libraries_quiet(&builder().setting("APP_ENV", "development").start().await).await;
}

#[tokio::test]
async fn libraries_cannot_log_payloads() {
    let service = builder().setting("RUST_LOG", "trace").start().await;
    let _created = service.customer().await.creates().await.assert_status(201);
    let is_of_service = |line: &Value| {
        ["app", "access", "audit"].iter().any(|target| line["target"].as_str().unwrap().starts_with(target))
    };
    let _library_line = service
        .wait_for_log("a debug line of a library", |line| line["level"] == "DEBUG" && !is_of_service(line))
        .await;
    let payload_line =
        service.logs().into_iter().find(|line| line["level"] == "TRACE" && !is_of_service(line));
    assert_eq!(payload_line, None);
}

async fn assert_libraries_quiet(service: &Service) {
    let _served =
        service.anonymous().get("/problems").header("x-correlation-id", "quiet").await.assert_status(200);
    let _ops = within(WAIT_TIMEOUT, "a debug line of the service", async || {
        service.logs().into_iter().find(|line| line["level"] == "DEBUG" && line["target"] == "access")
    })
    .await;
    let is_library_debug = |line: &&Value| {
        let target = line["target"].as_str().unwrap();
        line["level"] == "DEBUG" && ["hyper", "sqlx", "h2"].iter().any(|library| target.starts_with(library))
    };
    assert_eq!(service.logs().iter().find(is_library_debug), None);
}
