//! Start of the service: its requirements, and the messages about requirements that are not met. Also the commands
//! `migrate`, `config` and `probe`, and exit codes.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use dev::{
    harness::{CommandOutput, Database, REQUIRED, TcpProxy, WAIT_TIMEOUT, eventually, run},
    process::Launch,
};
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::{EXECUTABLE, builder, service};

/// Runs a command of the executable with only these settings.
pub async fn command(arguments: &[&str], settings: &[(&str, &str)]) -> CommandOutput {
    run(Path::new(EXECUTABLE), arguments, settings).await
}

/// Returns the minimum settings of `serve`. None of the addresses is reachable.
pub fn minimum_settings() -> Vec<(&'static str, &'static str)> {
    let own =
        [("APP_ENV", "test"), ("DATABASE_URL", "postgres://app_service:a-password@127.0.0.1:1/service")];
    [&own[..], &REQUIRED].concat()
}

#[tokio::test]
async fn a_missing_database_url_is_explained() {
    let stopped = command(&["serve"], &[]).await;
    assert_eq!(stopped.code(), Some(1));
    assert!(stopped.stderr.contains("DATABASE_URL is not set"), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("cargo dev"), "{}", stopped.stderr);
}

#[tokio::test]
async fn every_invalid_setting_is_reported_without_values() {
    let invalid = [
        ("API_ADDRESS", "8080"),
        ("MIGRATE_ON_START", "perhaps"),
        ("SESSION_TTL_SECONDS", "-1"),
        ("TRUSTED_PROXIES", "everybody"),
        ("FORWARDED_HEADER", "x-real-ip"),
        ("CORS_ALLOWED_ORIGINS", "https://shop.example/"),
        ("LOG_FORMAT", "xml"),
        ("OPS_TOKEN", "too-short"),
        ("ARGON2_MEMORY_KIB", "0"),
    ];
    let stopped = command(&["serve"], &invalid).await;
    assert_eq!(stopped.code(), Some(1));
    let missing = ["DATABASE_URL"].into_iter().chain(REQUIRED.map(|(name, _)| name));
    // The length of `OPS_TOKEN` is checked only if all settings can be parsed, so this message does not name
    // `OPS_TOKEN`.
    let independent = invalid.iter().map(|(name, _)| *name).filter(|name| *name != "OPS_TOKEN");
    for name in independent.chain(missing) {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
    assert!(!stopped.stderr.contains("too-short"), "{}", stopped.stderr);

    let together = [&minimum_settings()[..], &[("OPS_TOKEN", "too-short")]].concat();
    let stopped = command(&["serve"], &together).await;
    assert_eq!(stopped.code(), Some(1));
    assert!(stopped.stderr.contains("\n  OPS_TOKEN "), "{}", stopped.stderr);
}

#[tokio::test]
async fn an_unreachable_database_is_named_without_its_password() {
    let settings = [&minimum_settings()[..], &[("DATABASE_STARTUP_WAIT_SECONDS", "1")]].concat();
    for arguments in [["serve"], ["migrate"]] {
        let stopped = command(&arguments, &settings).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(
            stopped.stderr.contains("failed to connect to the database at 127.0.0.1:1 within"),
            "{}",
            stopped.stderr
        );
        assert!(!stopped.stderr.contains("a-password") && !stopped.stdout.contains("a-password"));
    }
}

#[tokio::test]
async fn an_ipv6_address_of_the_database_is_supported() {
    let url = "postgres://app_service@[::1]:1/service";
    let settings =
        [&minimum_settings()[..], &[("DATABASE_URL", url), ("DATABASE_STARTUP_WAIT_SECONDS", "1")]].concat();
    let stopped = command(&["migrate"], &settings).await;
    assert!(
        stopped.stderr.contains("failed to connect to the database at [::1]:1 within"),
        "{}",
        stopped.stderr
    );
    // The cause of the failed connection depends on the machine, which may lack IPv6. It is never a failed DNS lookup,
    // because the address is literal.
    assert!(!stopped.stderr.contains("lookup"), "{}", stopped.stderr);
}

#[tokio::test]
async fn an_unsupported_database_url_parameter_is_rejected() {
    for parameter in ["target_session_attrs=any", "channel_binding=require", "keepalives=1"] {
        let url = format!("postgres://app_service:a-password@a,b/service?{parameter}");
        let settings = [&minimum_settings()[..], &[("DATABASE_URL", &url)]].concat();
        for arguments in [["serve"], ["migrate"]] {
            let stopped = command(&arguments, &settings).await;
            let name = parameter.split('=').next().unwrap();
            assert_eq!(stopped.code(), Some(1));
            assert!(stopped.stderr.contains("\n  DATABASE_URL "), "{}", stopped.stderr);
            assert!(
                stopped.stderr.contains(name) && !stopped.stderr.contains("a-password"),
                "{}",
                stopped.stderr
            );
        }
    }
}

#[tokio::test]
async fn contradictory_settings_are_rejected() {
    let remote = "postgres://app_service:a-password@db.internal/service?sslmode=disable";
    for (settings, rejected) in [
        (&[("APP_ENV", "production"), ("SHUTDOWN_DEADLINE_SECONDS", "5")][..], "SHUTDOWN_DEADLINE_SECONDS"),
        (&[("SHUTDOWN_GRACE_SECONDS", "24"), ("SHUTDOWN_DEADLINE_SECONDS", "25")], "SHUTDOWN_GRACE_SECONDS"),
        (&[("MAX_REQUESTS_IN_FLIGHT", "0")], "MAX_REQUESTS_IN_FLIGHT"),
        (&[("MAX_CONNECTIONS", "0")], "MAX_CONNECTIONS"),
        (&[("REQUEST_BODY_LIMIT_BYTES", "0")], "REQUEST_BODY_LIMIT_BYTES"),
        (&[("SESSION_TTL_SECONDS", "0")], "SESSION_TTL_SECONDS"),
        (&[("LOCKOUT_SECONDS", "0")], "LOCKOUT_SECONDS"),
        (&[("RATE_LIMIT_CALLER_PER_SECOND", "4294967295")], "RATE_LIMIT_CALLER_PER_SECOND"),
        (&[("AUDIT_RETENTION_DAYS", "4294967295")], "AUDIT_RETENTION_DAYS"),
        (&[("DATABASE_MAX_CONNECTIONS", "4294967295")], "DATABASE_MAX_CONNECTIONS"),
        (&[("ARGON2_PARALLELISM", "100000")], "ARGON2_MEMORY_KIB"),
        (&[("APP_ENV", "production"), ("DATABASE_URL", remote)], "DATABASE_URL"),
        (&[("APP_ENV", "production"), ("DATABASE_MIGRATION_URL", remote)], "DATABASE_MIGRATION_URL"),
    ] {
        let stopped = command(&["config"], &[&minimum_settings()[..], settings].concat()).await;
        assert_eq!(stopped.code(), Some(1), "{settings:?}");
        assert!(
            stopped.stderr.contains(&format!("\n  {rejected} must ")),
            "{settings:?}: {}",
            stopped.stderr
        );
    }
    for settings in [
        &[("APP_ENV", "production")][..],
        &[("APP_ENV", "staging"), ("DATABASE_URL", remote)],
        &[
            ("APP_ENV", "production"),
            ("DATABASE_URL", "postgres://app_service@127.0.0.1/service?sslmode=disable"),
        ],
    ] {
        command(&["config"], &[&minimum_settings()[..], settings].concat()).await.succeeded();
    }
}

/// A pooler in transaction mode rejects start-up parameters that it does not track.
#[tokio::test]
async fn a_connection_begins_with_no_parameter_that_a_pooler_rejects() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://app_service@{}/service?sslmode=disable", listener.local_addr().unwrap());
    let settings =
        [&minimum_settings()[..], &[("DATABASE_URL", &url), ("DATABASE_STARTUP_WAIT_SECONDS", "1")]].concat();
    let first_message = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let length = connection.read_u32().await.unwrap();
        let mut message = vec![0; usize::try_from(length).unwrap() - 4];
        connection.read_exact(&mut message).await.unwrap();
        drop((connection, listener));
        message
    };
    let (message, _stopped) = tokio::join!(first_message, command(&["serve"], &settings));
    // The message has the protocol version, and then zero-terminated names and values.
    let texts: Vec<_> = message[4..].split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let names: Vec<_> = texts.chunks(2).map(|pair| &*pair[0]).filter(|name| !name.is_empty()).collect();
    // PgBouncer requires `user`, and accepts `database`. It always tracks the other four parameters.
    let tracked = ["user", "database", "client_encoding", "DateStyle", "TimeZone", "application_name"];
    assert!(names.contains(&"user"), "{names:?}");
    assert!(names.iter().all(|name| tracked.contains(name)), "{names:?}");
}

/// Checks that a command failed with one line on stderr, and printed no secret. Returns the line.
fn assert_failed_in_one_sentence(stopped: &CommandOutput) -> &str {
    let sentence = stopped.stderr.trim_end();
    assert_eq!(stopped.code(), Some(1), "{sentence}");
    assert_eq!(sentence.lines().count(), 1, "{sentence}");
    assert!(sentence.starts_with(concat!(env!("CARGO_PKG_NAME"), ": ")), "{sentence}");
    for secret in ["a-password", "another-password", "for-tests-only"] {
        assert!(!sentence.contains(secret) && !stopped.stdout.contains(secret), "{sentence}");
    }
    sentence
}

#[tokio::test]
async fn a_rejected_login_is_not_retried() {
    let database = Database::create_empty().await;
    let mut wrong_password = database.service_url().clone();
    wrong_password.set_password(Some("another-password")).unwrap();
    let mut nowhere = database.service_url().clone();
    nowhere.set_path("/nowhere");
    for url in [wrong_password, nowhere] {
        let settings = [&minimum_settings()[..], &[("DATABASE_URL", url.as_str())]].concat();
        for arguments in [["serve"], ["migrate"]] {
            let started = Instant::now();
            let stopped = command(&arguments, &settings).await;
            let sentence = assert_failed_in_one_sentence(&stopped);
            assert!(sentence.contains("rejected the connection"), "{sentence}");
            assert!(started.elapsed() < Duration::from_secs(20), "the service waited for the database");
        }
    }
}

#[tokio::test]
async fn an_unresponsive_database_is_retried_and_then_named() {
    let database = Database::create_empty().await;
    let proxy = TcpProxy::to(database.service_url()).await.unwrap();
    proxy.freeze();
    let url = proxy.url_through(database.service_url());
    let settings = [("DATABASE_URL", url.as_str()), ("DATABASE_STARTUP_WAIT_SECONDS", "2")];
    let stopped = command(&["serve"], &[&minimum_settings()[..], &settings].concat()).await;
    let sentence = assert_failed_in_one_sentence(&stopped);
    assert!(
        sentence.starts_with(concat!(env!("CARGO_PKG_NAME"), ": failed to connect to the database at "))
            && sentence.contains(" within 2s: "),
        "{sentence}"
    );
}

#[tokio::test]
async fn the_service_waits_for_a_late_database_and_logs_it() {
    let mut service = builder().with_database_proxy().start().await;
    service.terminate().await;
    service.database_proxy().cut();
    let proxy = service.database_proxy();
    let start_database_later = async {
        eventually("the service has made two attempts", async || (proxy.rejected() >= 2).then_some(())).await;
        proxy.resume();
    };
    tokio::join!(service.restart(), start_database_later);
    assert!(service.logs().iter().any(|line| line["message"] == "waiting for the database"));
    let _created = service.customer().await.creates().await.assert_status(201);
}

#[tokio::test]
async fn a_database_that_goes_down_during_the_start_is_retried() {
    let service = builder().with_database_proxy().start().await;
    service.terminate().await;
    let proxy = service.database_proxy();
    let owner = proxy.url_through(service.database().owner_url());
    for migrates in ["false", "true"] {
        // The service connects once, and then waits for this lock during its start.
        let held = service.database().lock("_sqlx_migrations").await;
        let interrupt_database = async {
            service.database().wait_for_blocked_statements(1).await;
            let rejected = proxy.rejected();
            proxy.cut();
            eventually("the service retries", async || (proxy.rejected() > rejected).then_some(())).await;
            held.release().await;
            proxy.resume();
        };
        let settings = [("MIGRATE_ON_START", migrates), ("DATABASE_MIGRATION_URL", owner.as_str())];
        let (started, ()) = tokio::join!(service.replica_with(&settings), interrupt_database);
        let _created = started.customer().await.creates().await.assert_status(201);
        started.terminate().await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_or_written_is_named() {
    let folder = std::env::temp_dir().join(format!("{}-{}", env!("CARGO_PKG_NAME"), std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("a-file");
    std::fs::write(&file, "").unwrap();
    let settings = [&minimum_settings()[..], &[("LOG_DIRECTORY", file.to_str().unwrap())]].concat();
    let stopped = command(&["serve"], &settings).await;
    let sentence = assert_failed_in_one_sentence(&stopped);
    assert!(sentence.contains("a-file"), "{sentence}");

    std::fs::write(folder.join(".env"), "DATABASE_URL=\"postgres://app_service:a-password@nowhere\n")
        .unwrap();
    let started = Launch::new(EXECUTABLE).args(["serve"]).directory(&folder).start().unwrap();
    assert_eq!(started.wait(WAIT_TIMEOUT).await.unwrap().code(), Some(1));
    let output: String = started.lines().into_iter().map(|line| line.text).collect();
    assert!(output.contains(".env") && !output.contains("a-password"), "{output}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_failed_migration_is_rolled_back() {
    let database = Database::create_empty().await;
    database.execute("create table sessions (in_the_way integer)").await;
    let urls = database.settings();
    let settings: Vec<_> = urls.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let stopped = command(&["migrate"], &settings).await;
    assert!(assert_failed_in_one_sentence(&stopped).contains("sessions"), "{}", stopped.stderr);
    let unfinished = "select count(*) from _sqlx_migrations where not success";
    assert_eq!(database.number(unfinished).await, 0);
    let users = "select count(*) from pg_class where relname = 'users'";
    assert_eq!(database.number(users).await, 0, "the first statements of the migration must be rolled back");

    database.execute("drop table sessions").await;
    command(&["migrate"], &settings).await.succeeded();
}

#[tokio::test]
async fn a_service_does_not_start_on_a_database_without_its_schema() {
    let database = Database::create_empty().await;
    let urls = database.settings();
    let mut settings = minimum_settings();
    settings.extend(urls.iter().map(|(name, value)| (*name, value.as_str())));
    let stopped = command(&["serve"], &settings).await;
    assert_eq!(stopped.code(), Some(1));
    assert!(
        stopped.stderr.contains("migrate") && stopped.stderr.contains("MIGRATE_ON_START"),
        "{}",
        stopped.stderr
    );
}

#[tokio::test]
async fn migrate_on_start_applies_the_migrations() {
    let service = builder().without_schema().setting("MIGRATE_ON_START", "true").start().await;
    let customer = service.customer().await;
    assert_eq!(customer.lists().await.assert_status(200).json()["data"], json!([]));
}

#[tokio::test]
async fn production_rejects_a_role_that_can_rewrite_the_audit_log() {
    let service = service().await;
    let owner = service.database().owner_url().to_string();
    for environment in ["staging", "production"] {
        let as_owner = [("APP_ENV", environment), ("DATABASE_URL", owner.as_str())];
        let stopped = service.command(&["serve"], &as_owner).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains("can rewrite the audit log"), "{}", stopped.stderr);
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_setting() {
    let service = service().await;
    for setting in ["API_ADDRESS", "OPS_ADDRESS"] {
        let taken = service.ops_url().socket_addrs(|| None).unwrap()[0].to_string();
        let stopped = service.command(&["serve"], &[(setting, taken.as_str())]).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains(setting) && stopped.stderr.contains(&taken), "{}", stopped.stderr);
    }
}

#[tokio::test]
async fn the_settings_are_shown_without_secrets() {
    let urls = [
        ("ALERT_WEBHOOK_URL", "https://hooks.example/services/a-password"),
        ("ALERTMANAGER_URL", "http://app_service:a-password@alerts.internal:9093/?token=a-password"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a-password@collector.internal"),
    ];
    let output = command(&["config"], &[&minimum_settings()[..], &urls].concat()).await.succeeded();
    for line in [
        "DATABASE_URL=<redacted>",
        "ALERT_WEBHOOK_URL=<redacted>",
        "ALERTMANAGER_URL=http://REDACTED:REDACTED@alerts.internal:9093/?REDACTED",
        "OTEL_EXPORTER_OTLP_ENDPOINT=https://REDACTED:REDACTED@collector.internal/",
        "API_ADDRESS=127.0.0.1:8080",
        "APP_ENV=test",
        "# OPS_TOKEN is not set",
    ] {
        assert!(output.lines().any(|known| known == line), "{line} in {output}");
    }
    assert!(!output.contains("a-password"), "{output}");
}

#[tokio::test]
async fn flags_take_precedence_over_the_environment() {
    let settings = [&minimum_settings()[..], &[("REQUEST_TIMEOUT_MS", "7000")]].concat();
    let output = command(&["config", "--request-timeout-ms", "8000"], &settings).await.succeeded();
    assert!(output.contains("\nREQUEST_TIMEOUT_MS=8000\n"), "{output}");
}

#[tokio::test]
async fn wrong_usage_and_failure_have_different_exit_codes() {
    for arguments in
        [&[][..], &["fly"], &["serve", "--no-such-flag"], &["user"], &["serve", "--database-url", "x"]]
    {
        assert_eq!(command(arguments, &[]).await.code(), Some(2), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"], &["openapi"]] {
        assert_eq!(command(arguments, &[]).await.code(), Some(0), "{arguments:?}");
    }
}

#[tokio::test]
async fn probe_distinguishes_ready_from_unreachable() {
    let service = crate::service().await;
    let url = service.ops_url().join("readyz").unwrap();
    service.command(&["probe", url.as_str()], &[]).await.succeeded();
    let rejected =
        service.command(&["probe", service.ops_url().join("nowhere").unwrap().as_str()], &[]).await;
    assert_eq!(rejected.code(), Some(1), "{}", rejected.stderr);
    service.terminate().await;
    let unreachable = service.command(&["probe", url.as_str()], &[]).await;
    assert_eq!(unreachable.code(), Some(1), "{}", unreachable.stderr);
}
