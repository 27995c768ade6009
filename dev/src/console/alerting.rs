//! A real Prometheus and a real Alertmanager, if both programs are installed on this machine.
//!
//! Prometheus uses the project's own rules, and Alertmanager the project's own routes. Alertmanager sends its
//! notifications to the console's alert inbox.
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{
    metrics::Labels,
    rules::{Rule, RuleState},
};
use crate::{
    http, ports,
    process::{Child, Launch},
    project,
};

const TIMEOUT: Duration = Duration::from_secs(3);

/// A running Prometheus and a running Alertmanager. Dropping the value stops both.
pub(super) struct AlertingStack {
    pub(super) prometheus: Url,
    pub(super) alertmanager: Url,
    client: reqwest::Client,
    _processes: [Child; 2],
}

/// The reason why the programs were not started or did not respond.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Files(#[from] io::Error),
    #[error(transparent)]
    Client(#[from] reqwest::Error),
    #[error(transparent)]
    Url(#[from] url::ParseError),
    #[error(transparent)]
    Configuration(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct RulesResponse {
    data: Groups,
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<RuleResult>,
}

/// The state of a rule, as reported by Prometheus.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleResult {
    name: String,
    state: String,
    labels: Labels,
    alerts: Vec<ActiveAlert>,
    #[serde(default)]
    last_error: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ActiveAlert {
    annotations: Labels,
    active_at: DateTime<Utc>,
}

impl AlertingStack {
    /// Starts both programs. Prometheus scrapes `target` and both programs, and Alertmanager notifies the inbox at the
    /// address `inbox`. Returns `None` if one of the programs is not installed.
    pub(super) fn start(directory: &Path, target: &Url, inbox: &str) -> Result<Option<Self>, Error> {
        let (Some(prometheus), Some(alertmanager)) = (program("prometheus"), program("alertmanager")) else {
            return Ok(None);
        };
        let (address, alertmanager_address) = (free_address()?, free_address()?);
        let path = |name: &str| directory.join(name);
        fs::create_dir_all(directory)?;
        let root = project::root().join("prometheus");
        let routes = fs::read_to_string(root.join("alertmanager.yml"))?;
        let routes = routes.replace("http://alerts:8025", &format!("http://{inbox}"));
        fs::write(path("alertmanager.yml"), routes)?;
        let job = |name: &str, target: &str| json!({ "job_name": name, "static_configs": [{ "targets": [target] }] });
        let configuration = json!({
            "global": { "scrape_interval": "5s", "evaluation_interval": "5s" },
            "rule_files": [root.join("rules/*.yml")],
            "alerting": { "alertmanagers": [{ "static_configs": [{ "targets": [alertmanager_address] }] }] },
            "scrape_configs": [
                job(project::name(), target.authority()),
                job("prometheus", &address),
                job("alertmanager", &alertmanager_address),
            ],
        });
        // JSON is valid YAML.
        fs::write(path("prometheus.yml"), serde_json::to_string_pretty(&configuration)?)?;
        let prometheus = Launch::new(prometheus)
            .args([
                format!("--config.file={}", path("prometheus.yml").display()),
                format!("--storage.tsdb.path={}", path("prometheus").display()),
                "--storage.tsdb.retention.time=4d".to_owned(),
                format!("--web.listen-address={address}"),
            ])
            .log_to(&path("prometheus.log"))
            .uncaptured()
            .start()?;
        let alertmanager = Launch::new(alertmanager)
            .args([
                format!("--config.file={}", path("alertmanager.yml").display()),
                format!("--storage.path={}", path("alertmanager").display()),
                format!("--web.listen-address={alertmanager_address}"),
                // There is no other replica to gossip with.
                "--cluster.listen-address=".to_owned(),
            ])
            .log_to(&path("alertmanager.log"))
            .uncaptured()
            .start()?;
        Ok(Some(Self {
            prometheus: Url::parse(&format!("http://{address}/"))?,
            alertmanager: Url::parse(&format!("http://{alertmanager_address}/"))?,
            client: http::client(TIMEOUT)?,
            _processes: [prometheus, alertmanager],
        }))
    }

    /// Replaces the states of the rules with the states that Prometheus reports. A rule that Prometheus does not report
    /// keeps its state.
    pub(super) async fn apply_to(&self, rules: &mut [Rule]) -> Result<(), Error> {
        let url = self.prometheus.join("api/v1/rules?type=alert")?;
        let response: RulesResponse = self.client.get(url).send().await?.error_for_status()?.json().await?;
        let mut evaluated: Vec<_> = response.data.groups.into_iter().flat_map(|group| group.rules).collect();
        for RuleResult { name, labels, .. } in &mut evaluated {
            if let (Some(long), Some(short)) = (labels.get("long"), labels.get("short")) {
                *name = format!("{name} {long}/{short}");
            }
        }
        for rule in rules {
            let Some(found) = evaluated.iter().find(|evaluated| evaluated.name == rule.name) else {
                continue;
            };
            let descriptions =
                found.alerts.iter().filter_map(|alert| alert.annotations.get("description").cloned());
            let error = Some(&found.last_error).filter(|error| !error.is_empty()).cloned();
            rule.evaluation = RuleState {
                state: found.state.clone(),
                since: found.alerts.iter().map(|alert| alert.active_at).min(),
                notes: descriptions.chain(error).collect(),
                ..std::mem::take(&mut rule.evaluation)
            };
        }
        Ok(())
    }
}

/// Returns the path of a program in `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Returns a free address. The console selects the port, because Prometheus and Alertmanager do not report a port that
/// the system selects.
fn free_address() -> io::Result<String> {
    Ok(ports::listen()?.local_addr()?.to_string())
}
