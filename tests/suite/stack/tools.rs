//! Programs that tests run, such as promtool, and servers of Prometheus and Alertmanager.
//!
//! A test whose program is not installed is skipped, or fails if `REQUIRE_TOOLS` is set. The servers have the
//! configuration of the stack, with other addresses and shorter intervals.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use dev::{
    harness::{Service, WAIT_TIMEOUT, eventually},
    http,
    process::{Child, Launch},
};
use reqwest::Url;
use serde_json::Value;
use uuid::Uuid;

use super::files::repository;

/// Finds a program in the `PATH`. Returns `None` if the program is missing, and the caller then skips its test. Panics
/// instead if `REQUIRE_TOOLS` is set.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(env::var_os("REQUIRE_TOOLS").is_none(), "{name} is not installed: .ci/run installs it");
        println!("skipped: {name}");
    }
    found
}

/// Runs a program in a directory of the repository. Returns its output.
pub(crate) fn run(program: &Path, directory: &str, arguments: &[&str]) -> String {
    let directory = repository().join(directory);
    let Output { status, stdout, stderr } =
        Command::new(program).current_dir(directory).args(arguments).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{} {arguments:?}: {text}", program.display());
    text
}

/// Returns the text of a file of the repository with these replacements.
pub(crate) fn file_with(path: &str, words: &[(&str, &str)]) -> String {
    let text = fs::read_to_string(repository().join(path)).unwrap();
    words.iter().fold(text, |text, (word, other)| {
        assert!(text.contains(word), "{path} has no {word:?}");
        text.replace(word, other)
    })
}

/// A running Prometheus or Alertmanager. Dropping it stops the program and deletes its data.
pub(crate) struct Server {
    pub(crate) url: Url,
    client: reqwest::Client,
    /// Dropping it ends the process.
    process: Child,
    _directory: Directory,
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // If the deletion fails, the data stays in the directory of temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Server {
    /// Starts a Prometheus that scrapes a service every second, and sends alerts to the address `alertmanager`.
    /// Prometheus evaluates the rule files `rules` every second. Each rule file is a pair of its name and its text.
    pub(crate) async fn prometheus(
        program: &Path,
        service: &Service,
        alertmanager: &str,
        rules: Vec<(String, String)>,
    ) -> Self {
        let target = service.ops_url().authority().to_owned();
        let configuration = file_with(
            "prometheus/prometheus.yml",
            &[
                ("15s", "1s"),
                ("10s", "1s"),
                ("\"service:9000\"", &format!("\"{target}\"")),
                ("\"alertmanager:9093\"", &format!("\"{alertmanager}\"")),
            ],
        );
        let mut written = vec![("prometheus.yml".to_owned(), configuration)];
        written.extend(rules.into_iter().map(|(name, text)| {
            let text = text.replace("interval: 5m", "interval: 1s").replace("interval: 1m", "interval: 1s");
            (format!("rules/{name}"), text)
        }));
        Self::start(program, written, |directory, address| {
            let path = |name: &str| directory.join(name).display().to_string();
            // Prometheus also scrapes itself, so its configuration contains its own address.
            let configuration = fs::read_to_string(path("prometheus.yml")).unwrap();
            fs::write(path("prometheus.yml"), configuration.replace("localhost:9090", address)).unwrap();
            vec![
                format!("--config.file={}", path("prometheus.yml")),
                format!("--storage.tsdb.path={}", path("data")),
                format!("--web.listen-address={address}"),
                "--enable-feature=exemplar-storage".to_owned(),
            ]
        })
        .await
    }

    /// Starts an Alertmanager that sends the notifications of all receivers to the address `receivers`. Its values of
    /// `group_wait` and `group_interval` are at most one second.
    pub(crate) async fn alertmanager(program: &Path, receivers: &str) -> Self {
        let configuration = file_with(
            "prometheus/alertmanager.yml",
            &[
                ("http://alerts:8025", &format!("http://{receivers}")),
                ("group_wait: 10s", "group_wait: 1s"),
                ("group_wait: 2m", "group_wait: 1s"),
                ("group_wait: 4m", "group_wait: 1s"),
                ("group_wait: 5m", "group_wait: 1s"),
                ("group_interval: 1m", "group_interval: 1s"),
            ],
        );
        Self::start(program, vec![("alertmanager.yml".to_owned(), configuration)], |directory, address| {
            let path = |name: &str| directory.join(name).display().to_string();
            vec![
                format!("--config.file={}", path("alertmanager.yml")),
                format!("--storage.path={}", path("data")),
                format!("--web.listen-address={address}"),
                // An empty address disables clustering. With clustering, the Alertmanagers of concurrent tests would
                // all listen on port 9094, and all but one would fail.
                "--cluster.listen-address=".to_owned(),
            ]
        })
        .await
    }

    async fn start(
        program: &Path,
        files: Vec<(String, String)>,
        arguments: impl Fn(&Path, &str) -> Vec<String>,
    ) -> Self {
        // Another process may take the address before the program listens. The program then ends, and the next attempt
        // uses another address.
        for _ in 0..3 {
            let directory = Directory(env::temp_dir().join(format!("stack-{}", Uuid::now_v7().simple())));
            for (name, text) in &files {
                let path = directory.0.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let address = free_address();
            let process = Launch::new(program).args(arguments(&directory.0, &address)).start().unwrap();
            let url = Url::parse(&format!("http://{address}/")).unwrap();
            let client = http::client(WAIT_TIMEOUT).unwrap();
            let server = Self { url, client, process, _directory: directory };
            let is_ready = eventually("the program is ready or has ended", async || {
                if server.process.exited().is_some() {
                    return Some(false);
                }
                let ready = server.client.get(server.url.join("-/ready").unwrap()).send().await.ok()?;
                ready.status().is_success().then_some(true)
            })
            .await;
            if is_ready {
                return server;
            }
            let lines = server.process.tail(10);
            let is_taken = lines.iter().any(|line| line.text.contains("address already in use"));
            assert!(is_taken, "{}: {:?}: {lines:#?}", program.display(), server.process.exited());
        }
        panic!("{} found no free address", program.display());
    }

    /// Returns the response of the program's HTTP API.
    pub(crate) async fn query(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = Url::parse_with_params(self.url.join(path).unwrap().as_str(), parameters).unwrap();
        let response = self.client.get(url).send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert!(status.is_success(), "{path} {parameters:?}: {status} {body}");
        body
    }

    /// Sends a request to the program's HTTP API.
    pub(crate) async fn post(&self, path: &str, body: &Value) {
        let response = self.client.post(self.url.join(path).unwrap()).json(body).send().await.unwrap();
        assert!(response.status().is_success(), "{path}: {}", response.status());
    }
}

/// Returns an address of this machine with a free port. The test selects the port, because a configuration must contain
/// the address before the program starts.
pub(super) fn free_address() -> String {
    dev::ports::listen().unwrap().local_addr().unwrap().to_string()
}

/// Timeout of a test that waits for Prometheus: until a query finds data, or until an alert with a short `for` arrives.
pub(crate) const RULE_TIMEOUT: Duration = Duration::from_mins(2);
