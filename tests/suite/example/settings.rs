//! The settings of the payment gateway. A call to the gateway requires a trusted certificate, and ignores the proxies
//! that environment variables name.
use dev::harness::eventually;

use crate::{
    builder,
    operations::{
        outbound::CountingProxy,
        startup::{command, minimum_settings},
    },
    tls::{Preamble, TlsProxy},
};

#[tokio::test]
async fn every_invalid_payment_setting_is_reported_without_values() {
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
    // The rules for `OPS_TOKEN` and `GATEWAY_TIMEOUT_MS` are checked only if all settings can be parsed, so this output
    // does not name these settings.
    let alone = mistakes
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"].contains(name));
    for name in alone.chain(missing) {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
    assert!(!stopped.stderr.contains("not-a-webhook-secret"), "{}", stopped.stderr);

    let together =
        [&minimum_settings()[..], &[("OPS_TOKEN", "too-short"), ("GATEWAY_TIMEOUT_MS", "99999")]].concat();
    let stopped = command(&["serve"], &together).await;
    assert_eq!(stopped.code(), Some(1));
    for name in ["OPS_TOKEN", "GATEWAY_TIMEOUT_MS"] {
        assert!(stopped.stderr.contains(&format!("\n  {name} ")), "{name}: {}", stopped.stderr);
    }
}

#[tokio::test]
async fn a_short_or_empty_webhook_secret_is_rejected() {
    let long = "whsec_YSB3ZWJob29rIHNlY3JldCBvZiAyNCBieXRlcw==";
    for secret in ["whsec_", "whsec_YSB3ZWJob29rIHNlY3JldA==", &format!("{long} whsec_")] {
        let settings = [&minimum_settings()[..], &[("GATEWAY_WEBHOOK_SECRET", secret)]].concat();
        let stopped = command(&["config"], &settings).await;
        assert_eq!(stopped.code(), Some(1), "{secret}");
        assert!(
            stopped.stderr.contains("\n  GATEWAY_WEBHOOK_SECRET must be whsec_ and"),
            "{}",
            stopped.stderr
        );
    }
    let rotated = format!("{long} {long}");
    let settings = [&minimum_settings()[..], &[("GATEWAY_WEBHOOK_SECRET", rotated.as_str())]].concat();
    command(&["config"], &settings).await.succeeded();
}

#[tokio::test]
async fn the_settings_of_payments_are_shown_without_secrets() {
    let output = command(&["config"], &minimum_settings()).await.succeeded();
    for line in ["DATABASE_URL=<redacted>", "GATEWAY_API_KEY=<redacted>", "GATEWAY_WEBHOOK_SECRET=<redacted>"]
    {
        assert!(output.lines().any(|known| known == line), "{line} in {output}");
    }
    for line in [
        "GATEWAY_URL=http://127.0.0.1:1",
        "API_ADDRESS=127.0.0.1:8080",
        "APP_ENV=test",
        "# OPS_TOKEN is not set",
    ] {
        assert!(output.lines().any(|known| known == line), "{line} in {output}");
    }
    for secret in ["a-password", "an-api-key", "YSB3ZWJob29rIHNlY3JldCBvZiAyNCBieXRlcw"] {
        assert!(!output.contains(secret), "{output}");
    }
}

#[tokio::test]
async fn staging_and_production_reject_a_gateway_without_tls() {
    let config = async |environment, url, more: &[(&'static str, &'static str)]| {
        let settings = [("APP_ENV", environment), ("GATEWAY_URL", url)];
        command(&["config"], &[&minimum_settings()[..], &settings, more].concat()).await
    };
    for environment in ["staging", "production"] {
        for url in ["http://gateway.example", "http://10.0.0.1:9090"] {
            let stopped = config(environment, url, &[]).await;
            assert_eq!(stopped.code(), Some(1), "{environment} {url}");
            assert!(stopped.stderr.contains("\n  GATEWAY_URL must be https"), "{}", stopped.stderr);
            config(environment, url, &[("GATEWAY_ALLOW_PLAINTEXT", "true")]).await.succeeded();
        }
        for url in ["https://gateway.example", "http://127.0.0.1:9090", "http://[::1]:9090"] {
            config(environment, url, &[]).await.succeeded();
        }
    }
    config("development", "http://gateway.example", &[]).await.succeeded();
}

#[tokio::test]
async fn the_gateway_call_needs_a_trusted_certificate_and_no_proxy() {
    let proxy = CountingProxy::start().await;
    let service = proxy.set_in_environment(builder()).start().await;
    let tls = TlsProxy::to(&service.gateway().url(), Preamble::Nothing).await;
    let replica = [("GATEWAY_URL", &*tls.url()), ("SSL_CERT_FILE", tls.authority())];
    let replica = service.replica_with(&replica).await;
    // On a busy machine, a handshake may take longer than the gateway timeout, so the test accepts any status.
    let _paid = replica.customer().await.places_an_order().await.pay("pm_card_ok").await;
    eventually("the gateway is called", async || (tls.handshakes() > 0).then_some(())).await;
    assert!(replica.terminate().await.success());
    let handshakes = tls.handshakes();

    let other = service.replica_with(&[("GATEWAY_URL", &*tls.url())]).await;
    let _unknown = other.customer().await.places_an_order().await.pay("pm_card_ok").await.assert_status(202);
    assert_eq!((tls.handshakes(), proxy.clients()), (handshakes, 0));
}
