//! Tests of child processes, and of their end after the end of the parent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, in its helpers too"
)]
use std::{path::Path, time::Duration};

use dev::{
    postgres,
    process::{Child, Launch, Signal, WaitError},
};
use tokio::time::{Instant, sleep};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

fn shell(script: &str) -> Child {
    Launch::new("sh").args(["-c", script]).start().unwrap()
}

/// Returns whether a process is running. A zombie does not count: it has ended, but its parent has not reaped it.
async fn is_running(pid: &str) -> bool {
    let ps = Launch::new("ps").args(["-o", "stat=", "-p", pid]).start().unwrap();
    ps.wait(WAIT_TIMEOUT).await.unwrap();
    ps.lines().first().is_some_and(|line| !line.text.trim().starts_with('Z'))
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !condition().await {
        assert!(Instant::now() < deadline, "timed out after {WAIT_TIMEOUT:?}, waiting for: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn lines_are_captured_from_both_streams() {
    let child = shell("echo out; echo err >&2; printf unfinished");
    let status = child.wait(WAIT_TIMEOUT).await.unwrap();
    assert!(status.success());
    let mut lines: Vec<String> = child.lines().into_iter().map(|line| line.text).collect();
    lines.sort();
    assert_eq!(lines, ["err", "out", "unfinished"]);
    assert_eq!(child.tail(1).len(), 1);
}

#[tokio::test]
async fn a_full_log_drops_its_oldest_lines_first() {
    const MAX_OUTPUT_BYTES: u64 = 64 * 1024 * 1024;
    let directory = std::env::temp_dir().join(format!("dev-log-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (log, older) = (directory.join("child.log"), directory.join("child.log.1"));
    let lines = "yes $(head -c 9999 /dev/zero | tr '\\0' x) | head -n 7000";
    let child = Launch::new("sh").args(["-c", lines]).log_to(&log).start().unwrap();
    assert!(child.wait(WAIT_TIMEOUT).await.unwrap().success());
    let size = |file: &Path| std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    wait_until("all output is written", async || size(&log) + size(&older) == 70_000_000).await;
    assert!((MAX_OUTPUT_BYTES..MAX_OUTPUT_BYTES + 10_000).contains(&size(&older)), "{} bytes", size(&older));
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_line_can_be_waited_for() {
    let child = shell("echo one; sleep 0.2; echo two; sleep 60");
    let line = child.follow().find(WAIT_TIMEOUT, |line| line.starts_with("tw")).await.unwrap();
    assert_eq!(line.text, "two");
    let never = child.follow_from_now().find(Duration::from_millis(50), |_| true).await;
    assert_eq!(never, None);
}

#[tokio::test]
async fn waiting_for_a_line_ends_with_the_child() {
    let child = shell("echo one");
    assert_eq!(child.follow().find(WAIT_TIMEOUT, |line| line == "two").await, None);
}

#[tokio::test]
async fn a_child_has_only_the_given_environment() {
    let child = Launch::new("env").env("GIVEN", "yes").start().unwrap();
    child.wait(WAIT_TIMEOUT).await.unwrap();
    let names: Vec<String> =
        child.lines().iter().filter_map(|line| Some(line.text.split_once('=')?.0.to_owned())).collect();
    assert!(names.contains(&"GIVEN".to_owned()));
    assert!(names.contains(&"PATH".to_owned()));
    // Cargo sets these variables for the test itself.
    assert!(!names.iter().any(|name| name.starts_with("CARGO")), "{names:?}");
}

#[tokio::test]
async fn a_child_is_terminated_and_then_killed() {
    use std::os::unix::process::ExitStatusExt as _;
    let graceful = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    graceful.follow().find(WAIT_TIMEOUT, |line| line == "ready").await.unwrap();
    assert_eq!(graceful.stop(WAIT_TIMEOUT).await.unwrap().code(), Some(7));

    let stubborn = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    stubborn.follow().find(WAIT_TIMEOUT, |line| line == "ready").await.unwrap();
    let status = stubborn.stop(Duration::from_millis(200)).await.unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
}

#[tokio::test]
async fn waiting_has_a_deadline_and_ended_children_get_no_signal() {
    let child = shell("exec sleep 60");
    let waited = child.wait(Duration::from_millis(20)).await;
    assert!(matches!(waited, Err(WaitError::StillRunning { .. })), "{waited:?}");
    child.signal(Signal::SIGKILL).unwrap();
    child.wait(WAIT_TIMEOUT).await.unwrap();
    let error = child.signal(Signal::SIGTERM).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_dropped_child_ends_with_its_own_children() {
    let child = shell("sleep 60 & echo $!; wait");
    let grandchild = child.follow().next().await.unwrap().text;
    assert!(is_running(&grandchild).await);
    drop(child);
    wait_until("the grandchild ends", async || !is_running(&grandchild).await).await;
}

/// Runs one of the ignored tests below as a separate process.
fn helper(name: &str) -> Child {
    Launch::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", name])
        .start()
        .unwrap()
}

#[tokio::test]
async fn after_kill_9_of_the_parent_no_process_is_left() {
    let parent = helper("a_parent_with_children_and_a_database");
    let mut lines = parent.follow();
    let found = lines
        .find(WAIT_TIMEOUT * 2, |line| line.contains("left behind: "))
        .await
        .expect("the helper did not become ready");
    let names: Vec<&str> = found.text.split("left behind: ").last().unwrap().split(' ').collect();
    let [child, stopped, postgres, directory] = names.as_slice() else { panic!("{names:?}") };
    for pid in [child, stopped, postgres] {
        assert!(is_running(pid).await, "{pid}");
    }

    parent.signal(Signal::SIGKILL).unwrap();

    for pid in [child, stopped, postgres] {
        wait_until("the child ends", async || !is_running(pid).await).await;
    }
    wait_until("the data is removed", async || !Path::new(directory).exists()).await;
}

#[tokio::test]
#[ignore = "run by another test, which kills it"]
async fn a_parent_with_children_and_a_database() {
    let child = shell("sleep 600");
    let stopped = shell("sleep 600");
    stopped.signal(Signal::SIGSTOP).unwrap();
    let server = postgres::for_tests().await.unwrap();
    let Some(log) = server.log() else { panic!("the test needs its own server: unset DEV_DATABASE_URL") };
    let directory = log.parent().unwrap();
    let postmaster = std::fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
    let postmaster = postmaster.lines().next().unwrap();
    println!("left behind: {} {} {postmaster} {}", child.pid(), stopped.pid(), directory.display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_exit_of_a_parent_ends_its_children() {
    let parent = helper("a_parent_that_exits");
    let line = parent.follow().find(WAIT_TIMEOUT, |line| line.contains("left behind: ")).await.unwrap();
    let child = line.text.split("left behind: ").last().unwrap().to_owned();
    // The output ends once no process holds the pipe. So the watchdog must not hold the pipe.
    let mut rest = parent.follow();
    tokio::time::timeout(WAIT_TIMEOUT, async { while rest.next().await.is_some() {} })
        .await
        .expect("the output did not end");
    wait_until("the child ends", async || !is_running(&child).await).await;
}

#[test]
#[ignore = "run by another test"]
fn a_parent_that_exits() {
    let child = shell("trap '' HUP; sleep 600");
    println!("left behind: {}", child.pid());
    // `exit` runs no destructor, so only the watchdog can stop the child.
    std::process::exit(0);
}
