//! A running service, from start to exit.
use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    str::FromStr,
    sync::Arc,
};

use reqwest::Method;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::{
    Builder, CommandOutput, Database, ExchangeCheck, PASSWORD, TcpProxy, User, WAIT_TIMEOUT,
    client::{Api, Client},
    command, eventually,
    schema::{Schema, assert_documented},
};
use crate::{
    example::{
        Addresses,
        harness::{ExternalServices, FIRST_RUN_GAUGES},
    },
    process::{Child, Follower, Signal, Stream},
};

/// A process of the executable that runs `serve`.
#[derive(Debug)]
struct Process {
    child: Child,
    api: Url,
    ops: Url,
}

impl Process {
    async fn start(executable: &Path, settings: &[(String, String)]) -> Self {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let child = command::start(executable, &["serve"], &settings);
        let mut output = child.follow();
        let startup_line = output.find(WAIT_TIMEOUT, |line| line.contains("\"api_address\"")).await;
        let Some(startup_line) = startup_line else {
            panic!("the service did not start:\n{:#?}", child.tail(20));
        };
        let startup_line: Value =
            serde_json::from_str(&startup_line.text).expect("the startup line is not JSON");
        let url = |name: &str| {
            let address =
                startup_line[name].as_str().unwrap_or_else(|| panic!("no {name} in {startup_line}"));
            Url::parse(&format!("http://{address}/")).expect("the address is not valid in a URL")
        };
        Self { api: url("api_address"), ops: url("ops_address"), child }
    }
}

impl Drop for Process {
    /// Prints the last output of the service if the test failed. Otherwise fails the test if a log line has an
    /// undocumented field.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last log lines of the service at {}:", self.api);
            for line in self.child.tail(40) {
                eprintln!("{}", line.text);
            }
            return;
        }
        let lines = self.child.lines().into_iter().filter(|line| line.stream == Stream::Stdout);
        let parsed = lines.filter_map(|line| serde_json::from_str(&line.text).ok());
        assert_documented(&parsed.flat_map(|line| Schema::documented().unknown_in_line(&line)).collect());
    }
}

/// A service with its own database and simulated dependencies. Dropping the value ends the process. The external
/// services end with the last replica. The database is deleted once all replicas and all [`User`]s are dropped.
pub struct Service {
    executable: PathBuf,
    settings: Vec<(String, String)>,
    process: Process,
    api: Arc<Api>,
    pub(crate) dependencies: Dependencies,
}

/// The dependencies of a service, shared by its replicas.
#[derive(Clone)]
pub(crate) struct Dependencies {
    pub(crate) external_services: Arc<ExternalServices>,
    pub(super) database: Arc<Database>,
    pub(super) database_proxy: Option<Arc<TcpProxy>>,
}

impl Service {
    /// Returns a builder for a service of this executable, with the settings of tests.
    pub fn builder(executable: impl Into<PathBuf>) -> Builder {
        Builder::new(executable.into())
    }

    /// Starts a service of this executable, with the settings of tests.
    pub async fn start(executable: impl Into<PathBuf>) -> Self {
        Self::builder(executable).start().await
    }

    /// Starts a service with these dependencies, and waits until it is ready.
    pub(super) async fn launch(
        executable: PathBuf,
        settings: Vec<(String, String)>,
        exchange_check: Option<ExchangeCheck>,
        dependencies: Dependencies,
    ) -> Self {
        let process = Process::start(&executable, &settings).await;
        let api = Arc::new(Api::new(process.api.clone(), exchange_check));
        let service = Self { executable, settings, process, api, dependencies };
        service.set_service_address();
        service.wait_until_ready().await;
        service
    }

    fn set_service_address(&self) {
        self.dependencies.external_services.set_service_address(&self.process.api);
    }

    async fn wait_until_ready(&self) {
        eventually("the service is ready", async || (self.ops("/readyz").await.0 == 200).then_some(())).await;
    }

    // Lifecycle.

    /// Kills the process with SIGKILL, and waits for its exit.
    pub async fn kill_9(&self) {
        self.signal(Signal::SIGKILL);
        self.wait_for_exit().await;
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        self.process.child.signal(signal).expect("failed to signal the service");
    }

    /// Waits for the exit, and returns the exit status.
    pub async fn wait_for_exit(&self) -> ExitStatus {
        self.process.child.wait(WAIT_TIMEOUT).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Requests a graceful stop, waits for the exit, and returns the exit status.
    pub async fn terminate(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit().await
    }

    /// Starts a new process with the same database and dependencies, on other ports. Then kills the previous process if
    /// it is still running. Sessions stay valid.
    pub async fn restart(&mut self) {
        self.process = Process::start(&self.executable, &self.settings).await;
        self.api.set_url(self.process.api.clone());
        self.set_service_address();
        self.wait_until_ready().await;
    }

    /// Restarts the service with another executable, such as one of another release.
    pub async fn restart_as(&mut self, executable: &Path) {
        executable.clone_into(&mut self.executable);
        self.restart().await;
    }

    /// Restarts the service without one of its settings.
    pub async fn restart_without(&mut self, setting: &str) {
        self.settings.retain(|(name, _)| name != setting);
        self.restart().await;
    }

    /// Restarts the service with a changed setting.
    pub async fn restart_with(&mut self, setting: &str, value: &str) {
        self.settings.retain(|(name, _)| name != setting);
        self.settings.push((setting.to_owned(), value.to_owned()));
        self.restart().await;
    }

    /// Starts another replica: a further process with the same settings, database and dependencies.
    pub async fn replica(&self) -> Self {
        self.replica_with(&[]).await
    }

    /// Starts another replica with some settings changed.
    pub async fn replica_with(&self, changed_settings: &[(&str, &str)]) -> Self {
        let mut settings = self.settings.clone();
        for (name, value) in changed_settings {
            settings.retain(|(existing, _)| existing != name);
            settings.push(((*name).to_owned(), (*value).to_owned()));
        }
        let process = Process::start(&self.executable, &settings).await;
        let replica = Self {
            executable: self.executable.clone(),
            settings,
            api: Arc::new(self.api.for_replica(process.api.clone())),
            process,
            dependencies: self.dependencies.clone(),
        };
        replica.wait_until_ready().await;
        replica
    }

    /// Runs another command of the executable with the service's settings.
    pub async fn command(&self, arguments: &[&str], more_settings: &[(&str, &str)]) -> CommandOutput {
        let mut settings: Vec<_> =
            self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        settings.extend(more_settings);
        command::run(&self.executable, arguments, &settings).await
    }

    // Users.

    /// Returns a client without a session.
    pub fn anonymous(&self) -> Client {
        Client::new(Arc::clone(&self.api))
    }

    /// Registers and logs in a new customer.
    pub async fn customer(&self) -> User {
        let email = format!("customer-{}@example.com", Uuid::now_v7().simple());
        let registration = json!({ "email": email, "password": PASSWORD, "name": "Ada Lovelace" });
        let _registered = self.anonymous().post("/v1/users").json(&registration).await.assert_status(201);
        self.log_in(&email).await
    }

    /// Creates and logs in a new support user.
    pub async fn support(&self) -> User {
        self.staff("support").await
    }

    /// Creates and logs in a new admin.
    pub async fn admin(&self) -> User {
        self.staff("admin").await
    }

    /// Creates and logs in a new auditor.
    pub async fn auditor(&self) -> User {
        self.staff("auditor").await
    }

    async fn staff(&self, role: &str) -> User {
        let email = format!("{role}-{}@example.com", Uuid::now_v7().simple());
        let arguments = ["user", "create", "--email", &email, "--role", role];
        self.command(&arguments, &[("USER_PASSWORD", PASSWORD)]).await.succeeded();
        self.log_in(&email).await
    }

    /// Logs in a user who has the common password of all test users.
    pub async fn log_in(&self, email: &str) -> User {
        User::log_in(&self.anonymous(), &self.dependencies.database, email).await
    }

    /// Returns a user with the same session, whose requests go to this replica.
    pub fn user_through(&self, user: &User) -> User {
        user.at(&self.api)
    }

    pub(super) fn api(&self) -> Arc<Api> {
        Arc::clone(&self.api)
    }

    // Dependencies.

    /// Returns the addresses of the external services.
    pub fn external_services(&self) -> Addresses {
        self.dependencies.external_services.addresses()
    }

    /// Returns the database, which tests access as its owner.
    pub fn database(&self) -> &Database {
        &self.dependencies.database
    }

    /// Returns the TCP proxy to the database, for a service built with a proxy.
    pub fn database_proxy(&self) -> Arc<TcpProxy> {
        Arc::clone(
            self.dependencies.database_proxy.as_ref().expect("the service was built without a TCP proxy"),
        )
    }

    /// Returns the audit events that match a condition, oldest first.
    pub async fn audit_events(&self, condition: &str) -> Vec<Value> {
        let query = format!("select * from audit_events where {condition} order by sequence");
        self.database().rows(query).await
    }

    // Operations.

    /// Returns the URL of the API.
    pub fn api_url(&self) -> &Url {
        &self.process.api
    }

    /// Returns the URL of the operations listener.
    pub fn ops_url(&self) -> &Url {
        &self.process.ops
    }

    /// Sends a request to the operations listener. Returns `None` without a response.
    pub async fn request_ops(&self, method: Method, path: &str, body: &str) -> Option<(u16, String)> {
        let url = self.process.ops.join(path).expect("the path is not valid in a URL");
        let client = crate::http::client(WAIT_TIMEOUT).expect("failed to create an HTTP client");
        let request = client.request(method, url).header("content-type", "application/json");
        let response = request.body(body.to_owned()).send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    /// Requests a path of the operations listener. Returns the status and the body; status 0 without a response.
    pub async fn ops(&self, path: &str) -> (u16, String) {
        self.request_ops(Method::GET, path, "").await.unwrap_or_default()
    }

    /// Returns all metrics in Prometheus' text format.
    pub async fn metrics(&self) -> String {
        let (status, text) = self.ops("/metrics").await;
        assert_eq!(status, 200, "{text}");
        text
    }

    /// Returns the value of a counter, such as `panics_total`.
    pub async fn metric(&self, series: &str) -> i64 {
        self.value(series).await
    }

    /// Returns the value of a gauge, such as `worker_last_success_timestamp_seconds{worker="sweep"}`.
    pub async fn gauge(&self, series: &str) -> f64 {
        self.value(series).await
    }

    /// Waits until every worker has completed its first run. A worker with several units of work reports success after
    /// one unit. So [`FIRST_RUN_GAUGES`] contains a gauge for each unit, which is positive once the unit has run.
    pub async fn wait_for_first_work(&self) {
        eventually("every worker has completed its first run", async || {
            let (_, health) = self.ops("/health").await;
            let health: Value = serde_json::from_str(&health).ok()?;
            let mut complete =
                health["workers"].as_array()?.iter().all(|worker| worker["last_success"].is_string());
            for gauge in FIRST_RUN_GAUGES {
                complete &= self.gauge(gauge).await > 0.0;
            }
            complete.then_some(())
        })
        .await;
    }

    async fn value<T: FromStr>(&self, series: &str) -> T {
        let text = self.metrics().await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("there is no series {series}"))
    }

    /// Stops reading the service's standard output, while the pipe stays open.
    pub fn stall_output(&self) {
        self.process.child.stall_stdout();
    }

    /// Resumes reading the service's standard output, including all lines still in the pipe.
    pub fn resume_output(&self) {
        self.process.child.resume_stdout();
    }

    /// Closes the reading end of the service's standard output.
    pub fn close_output(&self) {
        self.process.child.close_stdout();
    }

    /// Returns the resident memory of the process, in bytes.
    pub fn memory(&self) -> u64 {
        self.memory_field("VmRSS:")
    }

    /// Returns the peak resident memory of the process, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory_field("VmHWM:")
    }

    fn memory_field(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.child.pid()));
        let status = status.expect("failed to read the memory of the process");
        let size = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        size.and_then(|size| size.trim().parse::<u64>().ok())
            .expect("the memory of the process is not reported")
            * 1024
    }

    /// Returns a reader of the current process's output, which starts at the oldest line in memory.
    pub fn follow(&self) -> Follower {
        self.process.child.follow()
    }

    /// Returns the log lines of the current process.
    pub fn logs(&self) -> Vec<Value> {
        let lines = self.process.child.lines().into_iter().filter(|line| line.stream == Stream::Stdout);
        lines
            .map(|line| {
                serde_json::from_str(&line.text)
                    .unwrap_or_else(|error| panic!("a log line is not JSON ({error}): {}", line.text))
            })
            .collect()
    }

    /// Returns the standard error of the current process.
    pub fn stderr(&self) -> Vec<String> {
        let lines = self.process.child.lines().into_iter().filter(|line| line.stream == Stream::Stderr);
        lines.map(|line| line.text).collect()
    }

    /// Waits for a log line of the current process that matches.
    pub async fn wait_for_log(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || self.logs().into_iter().find(&matches)).await
    }
}
