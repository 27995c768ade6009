//! The settings of payments.
use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use platform::{
    http, outbound,
    settings::{
        Environment, Reader,
        values::{flag, http_url, milliseconds, seconds, secret},
    },
};
use secrecy::{ExposeSecret, SecretString};
use standardwebhooks::{Webhook, WebhookError};
use url::Url;

/// Minimum length of a webhook secret in bytes, as Standard Webhooks requires.
const MIN_WEBHOOK_SECRET_BYTES: usize = 24;

/// Minimum length of the API key in characters. The gateway defines the format of the key. The minimum only detects a
/// truncated key or a placeholder.
const MIN_API_KEY_CHARACTERS: usize = 8;

/// Minimum time by which a lease exceeds the sum of the statement timeout and the gateway timeout.
const LEASE_MARGIN: Duration = Duration::from_millis(500);

platform::groups! {
    /// The payment gateway, and how its unknown outcomes are recovered.
    payments: Settings {
        /// Base URL of the gateway.
        "GATEWAY_URL" gateway_url: Url = http_url, required;
        /// Accept a `GATEWAY_URL` without TLS in staging and production, for a simulator or a mesh that encrypts. Loopback is always accepted.
        "GATEWAY_ALLOW_PLAINTEXT" allow_plaintext: bool = flag, default("false");
        /// API key sent to the gateway as a bearer token: at least 8 visible ASCII characters.
        "GATEWAY_API_KEY" gateway_api_key: SecretString = api_key, required, secret;
        /// Secret of the gateway's webhooks: `whsec_` and the base64 of at least 24 bytes (Standard Webhooks). During a rotation, the old and the new secret separated by a space.
        "GATEWAY_WEBHOOK_SECRET" webhook_secrets: Vec<SecretString> = webhook_secrets, required, secret;
        /// Timeout of one call to the gateway including its retries, in milliseconds. Must be below `REQUEST_TIMEOUT_MS`.
        "GATEWAY_TIMEOUT_MS" gateway_timeout: Duration = milliseconds, default("3000");
        /// Interval at which recovery polls the gateway for unknown outcomes, in seconds. A replica's lease on a payment or refund lasts three intervals, or as long as a statement and a gateway call if that is longer.
        "PAYMENT_RECOVERY_INTERVAL_SECONDS" recovery_interval: Duration = seconds, default("5");
        /// Interval at which the gateway's newest charges and refunds are compared with the payments, in seconds. The last 48 hours are compared every hour.
        "PAYMENT_RECONCILIATION_INTERVAL_SECONDS" reconciliation_interval: Duration = seconds, default("15");
        /// Age at which a payment or refund of unknown outcome needs review and raises an alert, in seconds. The outcome is never guessed.
        "PAYMENT_PARK_AFTER_SECONDS" park_after: Duration = seconds, default("82800");
    }
}

impl Settings {
    /// Returns the time for which one replica exclusively processes a payment or refund without an outcome.
    ///
    /// A lease starts within a statement, and lasts longer than the rest of that statement and the gateway calls after
    /// the statement. Recovery therefore never takes over a payment while the client's request is still sending the
    /// charge.
    pub fn lease(&self, statement_timeout: Duration) -> Duration {
        self.recovery_lease().max(self.max_send_time(statement_timeout))
    }

    /// Returns the maximum time after the creation of a payment or refund during which the client's request may still
    /// call the gateway.
    pub fn max_send_time(&self, statement_timeout: Duration) -> Duration {
        statement_timeout + self.gateway_timeout + LEASE_MARGIN
    }

    /// Returns one webhook verifier for each configured secret. There are several secrets during a rotation.
    pub fn webhooks(&self) -> Result<Vec<Webhook>, WebhookError> {
        self.webhook_secrets.iter().map(|secret| Webhook::new(secret.expose_secret())).collect()
    }

    fn recovery_lease(&self) -> Duration {
        self.recovery_interval * 3
    }

    /// Checks the rules between these settings, the environment and the settings of the listeners.
    pub fn check(&self, environment: Environment, http: &http::Settings, reader: &mut Reader) {
        // Each call to the gateway has the API key, which must not be sent without TLS.
        if environment.is_production_like()
            && !self.allow_plaintext
            && outbound::is_plaintext(&self.gateway_url)
        {
            let rule = "must be https for a host other than loopback in staging and production, unless GATEWAY_ALLOW_PLAINTEXT is set";
            reader.mistake("GATEWAY_URL", rule);
        }
        if self.gateway_timeout >= http.request_timeout {
            reader.mistake("GATEWAY_TIMEOUT_MS", "must be below REQUEST_TIMEOUT_MS");
        }
        if self.gateway_timeout >= self.recovery_lease() {
            let rule = "must be below three times PAYMENT_RECOVERY_INTERVAL_SECONDS, so that attempts end before their lease";
            reader.mistake("GATEWAY_TIMEOUT_MS", rule);
        }
    }
}

/// Parses one secret or, during a rotation, several. Each secret must have at least 24 bytes, because an attacker who
/// guesses a short secret could sign an event that marks an order as paid.
fn webhook_secrets(text: &str) -> Result<Vec<SecretString>, String> {
    let is_long_enough = |secret: &str| {
        let key = secret.strip_prefix("whsec_").and_then(|key| BASE64_STANDARD.decode(key).ok());
        key.is_some_and(|key| key.len() >= MIN_WEBHOOK_SECRET_BYTES)
    };
    if text.split_whitespace().all(is_long_enough) {
        Ok(text.split_whitespace().map(SecretString::from).collect())
    } else {
        Err("must be whsec_ and the base64 of at least 24 bytes, or several of these separated by a space"
            .into())
    }
}

fn api_key(text: &str) -> Result<SecretString, String> {
    if text.len() >= MIN_API_KEY_CHARACTERS && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        secret(text)
    } else {
        Err("must have at least 8 visible ASCII characters".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Values<'a> = &'a [(&'static str, &'static str)];

    /// Returns a reader of these values, and of a valid API key and webhook secret.
    fn reader(values: Values) -> Reader {
        let values = values.to_vec();
        let secret = format!("whsec_{}", BASE64_STANDARD.encode([7; 24]));
        Reader::new(move |name| match name {
            "GATEWAY_API_KEY" => Some("sk_12345".to_owned()),
            "GATEWAY_WEBHOOK_SECRET" => Some(secret.clone()),
            _ => values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        })
    }

    /// Returns the mistakes in these values.
    fn mistakes(environment: Environment, values: Values) -> String {
        let checked = reader(values).finish(|reader| {
            let (settings, http) = (Settings::read(reader)?, http::Settings::read(reader)?);
            settings.check(environment, &http, reader);
            Some(())
        });
        checked.map_or_else(|mistakes| mistakes.to_string(), |()| String::new())
    }

    #[test]
    fn a_gateway_call_ends_before_its_request_and_its_lease() {
        for (request, gateway, rule) in [
            ("10000", "9999", ""),
            ("10000", "10000", "must be below REQUEST_TIMEOUT_MS"),
            ("10000", "10001", "must be below REQUEST_TIMEOUT_MS"),
            ("60000", "14999", ""),
            ("60000", "15000", "must be below three times PAYMENT_RECOVERY_INTERVAL_SECONDS"),
            ("60000", "15001", "must be below three times PAYMENT_RECOVERY_INTERVAL_SECONDS"),
        ] {
            let values = [
                ("GATEWAY_URL", "https://gateway.example"),
                ("REQUEST_TIMEOUT_MS", request),
                ("GATEWAY_TIMEOUT_MS", gateway),
            ];
            let found = mistakes(Environment::Production, &values);
            assert_eq!(found.is_empty(), rule.is_empty(), "{gateway}: {found}");
            assert!(found.contains(rule), "{gateway}: {found}");
        }
    }

    #[test]
    fn the_api_key_is_sent_without_tls_only_where_that_is_safe() {
        use Environment::{Development, Production, Staging};
        let remote: Values = &[("GATEWAY_URL", "http://gateway.example")];
        let allowed: Values =
            &[("GATEWAY_URL", "http://gateway.example"), ("GATEWAY_ALLOW_PLAINTEXT", "true")];
        let loopback: Values = &[("GATEWAY_URL", "http://127.0.0.1:1")];
        let encrypted: Values = &[("GATEWAY_URL", "https://gateway.example")];
        for environment in [Staging, Production] {
            assert!(mistakes(environment, remote).contains("GATEWAY_URL must be https"));
            for values in [allowed, loopback, encrypted] {
                assert_eq!(mistakes(environment, values), "");
            }
        }
        assert_eq!(mistakes(Development, remote), "");
    }

    #[test]
    fn a_lease_exceeds_a_statement_and_the_calls_after_it() {
        let settings = |values: Values| Settings::read(&mut reader(values)).unwrap();
        let often = settings(&[
            ("GATEWAY_URL", "https://gateway.example"),
            ("PAYMENT_RECOVERY_INTERVAL_SECONDS", "1"),
        ]);
        let seldom = settings(&[("GATEWAY_URL", "https://gateway.example")]);
        let slow = settings(&[("GATEWAY_URL", "https://gateway.example"), ("GATEWAY_TIMEOUT_MS", "14000")]);
        let statement = Duration::from_secs(5);
        assert_eq!(often.max_send_time(statement), Duration::from_millis(8500));
        assert_eq!(often.lease(statement), Duration::from_millis(8500));
        assert_eq!(seldom.lease(statement), Duration::from_secs(15));
        // With a shorter lease, recovery could send the charge while the client's request is still sending it.
        assert!(slow.lease(Duration::from_mins(1)) > Duration::from_secs(74));
        assert_eq!(seldom.webhooks().unwrap().len(), 1);
    }

    #[test]
    fn every_webhook_secret_has_at_least_24_bytes() {
        let secret = |bytes: usize| format!("whsec_{}", BASE64_STANDARD.encode(vec![7; bytes]));
        assert_eq!(webhook_secrets(&secret(24)).map_or(0, |secrets| secrets.len()), 1);
        let rotated = format!("{} {}", secret(32), secret(24));
        assert_eq!(webhook_secrets(&rotated).map_or(0, |secrets| secrets.len()), 2);
        for rejected in [
            "whsec_".to_owned(),
            secret(23),
            format!("{} {}", secret(32), secret(16)),
            format!("{} whsec_", secret(32)),
            secret(32).replace("whsec_", ""),
            format!("{},{}", secret(32), secret(32)),
            "whsec_not base64".to_owned(),
        ] {
            assert!(webhook_secrets(&rejected).is_err(), "{rejected}");
        }
    }

    #[test]
    fn an_api_key_is_neither_short_nor_unprintable() {
        assert!(api_key("sk_12345").is_ok());
        for rejected in ["x", "sk_1234", "sk 1234567", "sk_1234\u{e4}5"] {
            assert!(api_key(rejected).is_err(), "{rejected}");
        }
    }
}
