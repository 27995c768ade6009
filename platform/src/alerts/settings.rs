//! Settings of the alerts that the service itself sends.
use std::{collections::BTreeMap, time::Duration};

use url::Url;

use crate::settings::values::{http_url, labels, seconds};

crate::groups! {
    /// The service's own alerts, about events that must not wait for a scrape.
    alerts: Settings {
        /// URL that receives alerts as `{severity, title, description, timestamp, metadata}`.
        "ALERT_WEBHOOK_URL" webhook_url: Url = http_url, optional, secret;
        /// URL of an Alertmanager (v2 API).
        "ALERTMANAGER_URL" alertmanager_url: Url = http_url, optional;
        /// URL prefix of runbooks. The name of the alert is appended.
        "RUNBOOKS_URL" runbooks_url: Url = http_url, optional;
        /// Additional labels of the alerts for Alertmanager, as `name=value,name=value`, such as those that Prometheus adds to the service's series.
        "ALERT_LABELS" labels: BTreeMap<String, String> = labels, default("");
        /// Minimum time between two sends of the same alert, in seconds.
        "ALERT_REPEAT_INTERVAL_SECONDS" repeat_interval: Duration = seconds, default("300");
    }
}
