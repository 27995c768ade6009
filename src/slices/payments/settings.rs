//! The settings of payments.
use std::time::Duration;

use platform::{
    http,
    settings::{
        Reader,
        values::{http_url, milliseconds, seconds, secret},
    },
};
use secrecy::SecretString;
use url::Url;

platform::groups! {
    /// The payment gateway, and how its unknown outcomes are recovered.
    payments: Settings {
        /// The gateway's base URL.
        "GATEWAY_URL" gateway_url: Url = http_url, required;
        /// What the service shows the gateway.
        "GATEWAY_API_KEY" gateway_api_key: SecretString = secret, required, secret;
        /// What the gateway signs its webhooks with: `whsec_` and base64 (Standard Webhooks).
        "GATEWAY_WEBHOOK_SECRET" webhook_secret: SecretString = webhook_secret, required, secret;
        /// All attempts of one request together, in milliseconds; below `REQUEST_TIMEOUT_MS`.
        "GATEWAY_TIMEOUT_MS" gateway_timeout: Duration = milliseconds, default("3000");
        /// How often unknown outcomes are asked for again, in seconds; a lease lasts three times that.
        "PAYMENT_RECOVERY_INTERVAL_SECONDS" recovery_interval: Duration = seconds, default("5");
        /// When a payment that stays unknown is parked with an alert (never guessed), in seconds.
        "PAYMENT_PARK_AFTER_SECONDS" park_after: Duration = seconds, default("82800");
    }
}

impl Settings {
    /// How long one replica has a payment of unknown outcome to itself.
    pub fn lease(&self) -> Duration {
        self.recovery_interval * 3
    }

    /// The rules between these settings and others.
    pub fn check(&self, http: &http::Settings, reader: &mut Reader) {
        if self.gateway_timeout >= http.request_timeout {
            reader.mistake("GATEWAY_TIMEOUT_MS", "must be below REQUEST_TIMEOUT_MS");
        }
        if self.gateway_timeout >= self.lease() {
            let rule = "must be below three times PAYMENT_RECOVERY_INTERVAL_SECONDS: attempts end before their lease does";
            reader.mistake("GATEWAY_TIMEOUT_MS", rule);
        }
    }
}

/// As Standard Webhooks write secrets down.
fn webhook_secret(text: &str) -> Result<SecretString, String> {
    let known = text.starts_with("whsec_") && standardwebhooks::Webhook::new(text).is_ok();
    if known { secret(text) } else { Err("must be whsec_ and the secret in base64".into()) }
}
