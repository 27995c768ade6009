//! Starting the service: what it needs, what it refuses, and what it says then.
use std::path::Path;

use dev::harness::{Database, Finished, run};
use serde_json::json;

use crate::{EXECUTABLE, builder, service};

/// A command of the executable with these settings and nothing else.
async fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
    run(Path::new(EXECUTABLE), arguments, settings).await
}

/// What `serve` needs at least; nothing of it is reached.
const SUFFICIENT: [(&str, &str); 5] = [
    ("APP_ENV", "test"),
    ("DATABASE_URL", "postgres://somebody:a-password@127.0.0.1:1/orders"),
    ("GATEWAY_URL", "http://127.0.0.1:1"),
    ("GATEWAY_API_KEY", "an-api-key"),
    ("GATEWAY_WEBHOOK_SECRET", "whsec_YSB3ZWJob29rIHNlY3JldA=="),
];

#[tokio::test]
async fn a_service_without_a_database_says_what_to_set_and_what_does_it_for_you() {
    let stopped = command(&["serve"], &[]).await;
    assert_eq!(stopped.code(), Some(1));
    assert!(stopped.stderr.contains("DATABASE_URL is not set"), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("cargo dev"), "{}", stopped.stderr);
}

#[tokio::test]
async fn every_mistake_in_the_settings_is_reported_at_once_and_no_value() {
    let mistakes = [
        ("API_ADDRESS", "8080"),
        ("MIGRATE_ON_START", "perhaps"),
        ("SESSION_TTL_SECONDS", "-1"),
        ("TRUSTED_PROXIES", "everybody"),
        ("GATEWAY_WEBHOOK_SECRET", "not-a-webhook-secret"),
        ("CORS_ALLOWED_ORIGINS", "https://shop.example/"),
        ("LOG_FORMAT", "xml"),
        ("OPS_TOKEN", "too-short"),
        ("GATEWAY_TIMEOUT_MS", "99999"),
        ("ARGON2_MEMORY_KIB", "0"),
    ];
    let stopped = command(&["serve"], &mistakes).await;
    assert_eq!(stopped.code(), Some(1));
    let missing = ["DATABASE_URL", "GATEWAY_URL", "GATEWAY_API_KEY"];
    // What is only wrong together with others is seen once each is right by itself.
    let alone = mistakes
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"].contains(name));
    for name in alone.chain(missing) {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
    assert!(!stopped.stderr.contains("not-a-webhook-secret"), "{}", stopped.stderr);

    let together = [&SUFFICIENT[..], &[("OPS_TOKEN", "too-short"), ("GATEWAY_TIMEOUT_MS", "99999")]].concat();
    let stopped = command(&["serve"], &together).await;
    assert_eq!(stopped.code(), Some(1));
    for name in ["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"] {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_waited_for_and_then_named_without_its_password() {
    let settings = [&SUFFICIENT[..], &[("DATABASE_STARTUP_WAIT_SECONDS", "1")]].concat();
    for arguments in [["serve"], ["migrate"]] {
        let stopped = command(&arguments, &settings).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains("127.0.0.1:1 could not be reached"), "{}", stopped.stderr);
        assert!(!stopped.stderr.contains("a-password") && !stopped.stdout.contains("a-password"));
    }
}

#[tokio::test]
async fn a_service_does_not_start_on_a_database_without_its_schema() {
    let database = Database::create_empty().await;
    let urls = database.settings();
    let mut settings = SUFFICIENT.to_vec();
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
async fn a_service_that_is_told_so_makes_its_schema_itself() {
    let service = builder().without_schema().setting("MIGRATE_ON_START", "true").start().await;
    let customer = service.customer().await;
    assert_eq!(customer.get("/v1/orders").await.is(200).json()["data"], json!([]));
}

#[tokio::test]
async fn in_production_the_service_refuses_to_run_as_somebody_who_could_rewrite_the_trail() {
    let service = service().await;
    let owner = service.database().owner_url().to_string();
    for environment in ["staging", "production"] {
        let as_owner = [("APP_ENV", environment), ("DATABASE_URL", owner.as_str())];
        let stopped = service.command(&["serve"], &as_owner).await;
        assert_eq!(stopped.code(), Some(1));
        assert!(stopped.stderr.contains("audit trail"), "{}", stopped.stderr);
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
    let told = command(&["config"], &SUFFICIENT).await.succeeded();
    for line in ["DATABASE_URL=<redacted>", "GATEWAY_API_KEY=<redacted>", "GATEWAY_WEBHOOK_SECRET=<redacted>"]
    {
        assert!(told.lines().any(|known| known == line), "{line} in {told}");
    }
    for line in [
        "GATEWAY_URL=http://127.0.0.1:1",
        "API_ADDRESS=127.0.0.1:8080",
        "APP_ENV=test",
        "# OPS_TOKEN is not set",
    ] {
        assert!(told.lines().any(|known| known == line), "{line} in {told}");
    }
    for secret in ["a-password", "an-api-key", "YSB3ZWJob29rIHNlY3JldA"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn a_flag_goes_before_the_environment() {
    let settings = [&SUFFICIENT[..], &[("REQUEST_TIMEOUT_MS", "7000")]].concat();
    let told = command(&["config", "--request-timeout-ms", "8000"], &settings).await.succeeded();
    assert!(told.contains("\nREQUEST_TIMEOUT_MS=8000\n"), "{told}");
}

#[tokio::test]
async fn wrong_usage_is_told_from_failure_by_its_exit_code() {
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
async fn a_probe_tells_a_service_that_is_ready_from_one_that_is_not_there() {
    let service = crate::service().await;
    let url = service.ops_url().join("readyz").unwrap();
    service.command(&["probe", url.as_str()], &[]).await.succeeded();
    let refused = service.command(&["probe", service.ops_url().join("nowhere").unwrap().as_str()], &[]).await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    service.terminate().await;
    let away = service.command(&["probe", url.as_str()], &[]).await;
    assert_eq!(away.code(), Some(1), "{}", away.stderr);
}
