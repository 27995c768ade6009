//! Tests of `cargo dev`: its output, its processes, its data, and its reports of problems.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, in its helpers too"
)]
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use dev::{
    example::environment::{ANY_PORTS, LAST_LINE, LAST_RESPONSE},
    process::{Child, Launch, Signal},
};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

/// Deadline of a start. The first start builds the service.
const BUILD_DEADLINE: Duration = Duration::from_mins(20);
const WAIT_TIMEOUT: Duration = Duration::from_mins(1);

/// A data directory for an environment, separate from the checkout's own.
struct Data(PathBuf);

impl Data {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("dev-{name}-{}", std::process::id())))
    }

    fn cargo_dev(&self, more: &[&str]) -> Child {
        let data = self.0.to_str().unwrap();
        Launch::new(env!("CARGO_BIN_EXE_dev"))
            // `cargo dev` runs cargo, which needs the user's environment.
            .envs(std::env::vars_os())
            .args(["--data", data, "--api-port", "0", "--ops-port", "0", "--console-port", "0"])
            .args(ANY_PORTS)
            .args(more)
            .start()
            .unwrap()
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

async fn wait_until_up(environment: &Child) {
    let last =
        environment.follow().find(BUILD_DEADLINE, |line| line.starts_with("Ctrl-C stops everything")).await;
    assert!(last.is_some(), "{}", text(environment));
}

fn text(child: &Child) -> String {
    child.lines().into_iter().map(|line| line.text + "\n").collect()
}

/// Returns the ids of a process's child processes.
async fn children_of(parent: u32) -> Vec<String> {
    let ps = Launch::new("ps").args(["-A", "-o", "pid=,ppid="]).start().unwrap();
    ps.wait(WAIT_TIMEOUT).await.unwrap();
    let children = ps.lines().into_iter().filter_map(|line| {
        let fields: Vec<String> = line.text.split_whitespace().map(ToOwned::to_owned).collect();
        (fields[1] == parent.to_string()).then(|| fields[0].clone())
    });
    children.collect()
}

async fn is_running(pid: &str) -> bool {
    let ps = Launch::new("ps").args(["-o", "stat=", "-p", pid]).start().unwrap();
    ps.wait(WAIT_TIMEOUT).await.unwrap();
    ps.lines().first().is_some_and(|line| !line.text.trim().starts_with('Z'))
}

#[tokio::test]
async fn the_environment_starts_prints_commands_and_stops() {
    let data = Data::new("lifecycle");
    let environment = data.cargo_dev(&["--rate", "10"]);
    wait_until_up(&environment).await;

    let screen = text(&environment);
    let examples: Vec<&str> = screen.lines().skip_while(|line| !line.starts_with("TOKEN=")).take(3).collect();
    let pasted = Launch::new("sh").args(["-c", &examples.join("\n")]).start().unwrap();
    pasted.wait(WAIT_TIMEOUT).await.unwrap();
    assert!(text(&pasted).contains(LAST_RESPONSE), "{}", text(&pasted));

    let second = data.cargo_dev(&[]);
    assert_eq!(second.wait(BUILD_DEADLINE).await.unwrap().code(), Some(1));
    let output = text(&second);
    assert!(
        output.contains(&format!("pid {}", environment.pid())) && output.contains("API http://"),
        "{output}"
    );

    environment.signal(Signal::SIGINT).unwrap();
    let status = environment.wait(WAIT_TIMEOUT).await.unwrap();
    let output = text(&environment);
    assert!(output.contains(LAST_LINE) && output.contains("traffic: "), "{output}");
    assert!(status.success(), "{output}");

    // The next start finds the database of the first start.
    let environment = data.cargo_dev(&["--no-traffic"]);
    wait_until_up(&environment).await;
    assert!(!text(&environment).contains("creating the database"));
    environment.signal(Signal::SIGTERM).unwrap();
    assert!(environment.wait(WAIT_TIMEOUT).await.unwrap().success(), "{}", text(&environment));
}

#[tokio::test]
async fn after_kill_9_no_process_is_left() {
    let data = Data::new("killed");
    let environment = data.cargo_dev(&["--no-traffic"]);
    wait_until_up(&environment).await;
    let children = children_of(environment.pid()).await;
    assert!(children.len() >= 2, "the service or the watchdog is missing: {children:?}");

    environment.signal(Signal::SIGKILL).unwrap();

    let deadline = Instant::now() + WAIT_TIMEOUT;
    for pid in children {
        while is_running(&pid).await {
            assert!(Instant::now() < deadline, "process {pid} is still running");
            sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(!Path::new(&data.0.join("postgres/data/postmaster.pid")).exists());
}

#[tokio::test]
async fn a_database_of_other_migrations_is_reported() {
    let data = Data::new("earlier");
    let environment = data.cargo_dev(&["--no-traffic"]);
    wait_until_up(&environment).await;
    let screen = text(&environment);
    let url =
        screen.lines().find_map(|line| line.trim().strip_prefix("database")?.split('\'').nth(1)).unwrap();
    let mut connection = PgConnection::connect(url).await.unwrap();
    let edited = "update _sqlx_migrations set checksum = sha384('another text') where version = 1";
    sqlx::raw_sql(edited).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    environment.signal(Signal::SIGTERM).unwrap();
    assert!(environment.wait(WAIT_TIMEOUT).await.unwrap().success(), "{}", text(&environment));

    let rejected = data.cargo_dev(&["--no-traffic"]);
    assert_eq!(rejected.wait(BUILD_DEADLINE).await.unwrap().code(), Some(1));
    let output = text(&rejected);
    assert!(output.contains("migration 1 was previously applied but has been modified"), "{output}");
    assert!(output.contains("--fresh deletes the database and creates a new one"), "{output}");

    let environment = data.cargo_dev(&["--no-traffic", "--fresh"]);
    wait_until_up(&environment).await;
    environment.signal(Signal::SIGTERM).unwrap();
    assert!(environment.wait(WAIT_TIMEOUT).await.unwrap().success(), "{}", text(&environment));
}

#[tokio::test]
async fn a_port_in_use_is_reported_with_its_flag() {
    let data = Data::new("port");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let environment = Launch::new(env!("CARGO_BIN_EXE_dev"))
        .args(["--data", data.0.to_str().unwrap(), "--api-port", "0", "--ops-port", &port])
        .start()
        .unwrap();
    assert_eq!(environment.wait(WAIT_TIMEOUT).await.unwrap().code(), Some(1));
    let output = text(&environment);
    assert!(output.contains(&format!("port {port}, for the operations listener, is in use")), "{output}");
    assert!(output.contains("--ops-port"), "{output}");
}

#[tokio::test]
async fn the_doctor_names_missing_programs() {
    let doctor =
        Launch::new(env!("CARGO_BIN_EXE_dev")).env("PATH", "/nonexistent").args(["doctor"]).start().unwrap();
    assert_eq!(doctor.wait(WAIT_TIMEOUT).await.unwrap().code(), Some(1), "{}", text(&doctor));
    for (command, tool) in [("cargo dev", "a C compiler"), (".ci/run", "Go"), ("docker compose up", "Docker")]
    {
        let named =
            |line: &str| line.starts_with(command) && line.contains(tool) && line.contains(" install ");
        assert!(doctor.lines().iter().any(|line| named(&line.text)), "{command}, {tool}: {}", text(&doctor));
    }
}
