//! Tests of `cargo dev --standby`: the console changes the primary of a running environment by a failover or a restore.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, in its helpers too"
)]
use std::{env, path::PathBuf, time::Duration};

use dev::{
    example::environment::{ANY_PORTS, LAST_LINE},
    harness::Browser,
    http,
    process::{Child, Launch, Signal},
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Deadline of a start. The first start builds the service.
const BUILD_DEADLINE: Duration = Duration::from_mins(20);
const WAIT_TIMEOUT: Duration = Duration::from_mins(2);

/// A running environment with its own data directory.
struct Environment {
    child: Child,
    data: PathBuf,
    client: reqwest::Client,
    console: String,
    api: String,
}

impl Environment {
    async fn start(name: &str, more: &[&str]) -> Self {
        let data = env::temp_dir().join(format!("dev-{name}-{}", std::process::id()));
        let child = Launch::new(env!("CARGO_BIN_EXE_dev"))
            // `cargo dev` runs cargo, which needs the user's environment.
            .envs(env::vars_os())
            .args([
                "--data",
                data.to_str().unwrap(),
                "--api-port",
                "0",
                "--ops-port",
                "0",
                "--console-port",
                "0",
            ])
            .args(ANY_PORTS)
            .args(more)
            .start()
            .unwrap();
        let last =
            child.follow().find(BUILD_DEADLINE, |line| line.starts_with("Ctrl-C stops everything")).await;
        assert!(last.is_some(), "{}", text(&child));
        let screen = text(&child);
        let address = |name: &str| {
            let line =
                screen.lines().find_map(|line| line.trim().strip_prefix(name)?.split_whitespace().next());
            line.unwrap_or_else(|| panic!("no {name} in {screen}")).trim_end_matches('/').to_owned()
        };
        let (console, api) = (address("console "), address("API "));
        Self { child, data, client: http::client(WAIT_TIMEOUT).unwrap(), console, api }
    }

    async fn post(&self, url: String, body: Value) -> (StatusCode, Value) {
        let response = self.client.post(url).json(&body).send().await.unwrap();
        (response.status(), response.json().await.unwrap_or_default())
    }

    /// Returns the console's state of the database: the nodes and the changes. Returns null without `--standby`.
    async fn database(&self) -> Value {
        let response = self.client.get(format!("{}/api/database", self.console)).send().await.unwrap();
        response.json().await.unwrap()
    }

    /// Requests a change of the primary: `failover` or `restore`.
    async fn request(&self, change: &str) -> StatusCode {
        self.post(format!("{}/api/database/{change}", self.console), json!({})).await.0
    }

    /// Waits until this number of changes has ended. Asserts that the last change succeeded, and that the primary has a
    /// synchronous standby. Returns the text of the last change.
    async fn wait_for_changes(&self, count: usize) -> String {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let database = self.database().await;
            let changes = database["changes"].as_array().unwrap();
            if changes.len() == count && changes.iter().all(|change| !change["ended"].is_null()) {
                let last = changes.last().cloned().unwrap_or_default();
                assert_ne!(last["failed"], true, "{database:#}");
                let nodes = database["nodes"].as_array().unwrap();
                let primary = nodes.iter().find(|node| node["role"] == "primary").unwrap();
                assert!(nodes.iter().any(|node| node["role"] == "standby"), "{database:#}");
                assert_eq!(primary["standby"]["sync_state"], "sync", "{database:#}");
                return last["text"].as_str().unwrap_or_default().to_owned();
            }
            assert!(Instant::now() < deadline, "{database:#}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Registers a user. Returns the user's email address.
    async fn register(&self, name: &str) -> String {
        let email = format!("{name}@example.com");
        let user = json!({ "email": email, "password": PASSWORD, "name": name });
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let (status, body) = self.post(format!("{}/v1/users", self.api), user.clone()).await;
            if status == StatusCode::CREATED {
                return email;
            }
            assert!(is_temporary(status) && Instant::now() < deadline, "{status}: {body}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the token of a new session, or `None` if the user does not exist.
    async fn log_in(&self, email: &str) -> Option<String> {
        let login = json!({ "email": email, "password": PASSWORD });
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let (status, body) = self.post(format!("{}/v1/sessions", self.api), login.clone()).await;
            match status {
                StatusCode::CREATED => return Some(body["token"].as_str().unwrap().to_owned()),
                StatusCode::UNAUTHORIZED => return None,
                _ => assert!(is_temporary(status) && Instant::now() < deadline, "{status}: {body}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the status of a request with a session.
    async fn me(&self, token: &str) -> StatusCode {
        let request = self.client.get(format!("{}/v1/me", self.api)).bearer_auth(token);
        request.send().await.unwrap().status()
    }

    /// Stops the environment. Returns its output.
    async fn stop(&self) -> String {
        self.child.signal(Signal::SIGINT).unwrap();
        let status = self.child.wait(WAIT_TIMEOUT).await.unwrap();
        let output = text(&self.child);
        assert!(status.success() && output.contains(LAST_LINE), "{output}");
        output
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.data).ok();
    }
}

const PASSWORD: &str = "correct horse battery staple";

fn text(child: &Child) -> String {
    child.lines().into_iter().map(|line| line.text + "\n").collect()
}

fn is_temporary(status: StatusCode) -> bool {
    [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}

/// Returns the path of a program in `PATH`. A missing program fails the test if `REQUIRE_TOOLS` is set.
fn tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        env::split_paths(&path).map(|directory: PathBuf| directory.join(name)).find(|file| file.is_file());
    assert!(found.is_some() || env::var_os("REQUIRE_TOOLS").is_none(), "{name} is not installed");
    found
}

#[tokio::test]
async fn a_failover_loses_no_confirmed_change() {
    let environment = Environment::start("failover", &["--standby", "--rate", "10"]).await;
    assert!(environment.wait_for_changes(0).await.is_empty());
    for round in 1..=3 {
        let email = environment.register(&format!("before-{round}")).await;
        let token = environment.log_in(&email).await.unwrap();
        assert_eq!(environment.request("failover").await, StatusCode::ACCEPTED);
        assert_eq!(
            environment.request("restore").await,
            StatusCode::CONFLICT,
            "a second change was accepted"
        );
        let meanwhile = environment.register(&format!("during-{round}")).await;
        let result = environment.wait_for_changes(round).await;
        assert!(result.contains("the standby was promoted"), "{result}");
        assert_eq!(environment.me(&token).await, StatusCode::OK);
        assert!(environment.log_in(&meanwhile).await.is_some());
    }
    let output = environment.stop().await;
    assert!(output.contains(" 0 unexpected"), "{output}");
}

#[tokio::test]
async fn a_restore_ends_sessions_and_keeps_the_audit_log_verified() {
    let environment = Environment::start("restore", &["--standby", "--rate", "10"]).await;
    for round in 1..=2 {
        let kept = environment.register(&format!("kept-{round}")).await;
        let token = environment.log_in(&kept).await.unwrap();
        // A failover discards the earlier base backups, so the restore below cannot go back to before this failover.
        assert_eq!(environment.request("failover").await, StatusCode::ACCEPTED);
        environment.wait_for_changes(2 * round - 1).await;
        let lost = environment.register(&format!("lost-{round}")).await;
        assert_eq!(environment.request("restore").await, StatusCode::ACCEPTED);
        let result = environment.wait_for_changes(2 * round).await;
        assert!(result.contains(&format!("epoch {} of the audit log has begun", round + 1)), "{result}");
        assert_eq!(environment.me(&token).await, StatusCode::UNAUTHORIZED);
        assert!(environment.log_in(&kept).await.is_some());
        assert!(environment.log_in(&lost).await.is_none());
        let verification = format!("{}/api/audit/verification", environment.console);
        let (_, verified) = environment.post(verification, json!({})).await;
        assert_eq!(verified["is_intact"], true, "{verified:#}");
    }
    environment.stop().await;
}

#[tokio::test]
async fn the_console_has_buttons_only_with_a_standby() {
    let with = Environment::start("with-standby", &["--standby", "--no-traffic"]).await;
    let without = Environment::start("without-standby", &["--no-traffic"]).await;
    assert_eq!(without.database().await, Value::Null);
    assert_eq!(without.request("failover").await, StatusCode::CONFLICT);
    if let (Some(program), Some(driver)) = (tool("chromium"), tool("chromedriver")) {
        let open = async |environment: &Environment| {
            Browser::open(&program, &driver, &environment.console, "/faults").await
        };
        let browser = open(&without).await;
        browser.wait_until_shown(".switches", "Slow database").await;
        browser.wait_until_absent("#database").await;
        browser.assert_no_errors().await;
        let browser = open(&with).await;
        browser.wait_until_shown("#database [data-role=primary]", "streaming · sync").await;
        browser.wait_until_shown("#database [data-role=standby]", "").await;
        for (button, count) in [("failover", 1), ("restore", 2)] {
            browser.click(&format!("#{button}")).await;
            browser.wait_until_shown("#change", "in progress").await;
            with.wait_for_changes(count).await;
            browser.wait_until_shown("#change", "done").await;
            browser.wait_until_shown("#database [data-role=primary]", "streaming · sync").await;
        }
        browser.wait_until_shown(".history", "Failover").await;
        browser.assert_no_errors().await;
    }
    with.stop().await;
    without.stop().await;
}
