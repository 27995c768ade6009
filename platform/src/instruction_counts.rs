//! Instruction counts of hot functions. Unlike time, the number of instructions does not depend on the machine's
//! load.
//!
//! Callgrind counts the instructions during a unit test that calls the function, so private functions can be counted,
//! too. The counts are those of the unoptimized test build, because compiling a release build would take longer than
//! all the tests. The counts still detect an additional pass, allocation or formatting, which makes a function more
//! expensive in both builds.
// Other targets and optimized builds have other counts.
#![cfg(all(debug_assertions, target_arch = "x86_64", target_os = "linux"))]

use std::{
    env, fs,
    io::ErrorKind,
    path::Path,
    process::{self, Command},
};

/// The hot functions, each with the unit test that calls it and the number of instructions per call.
///
/// To update a number, copy it from the message of the failed test, in the commit that changes the cost.
const HOT_FUNCTIONS: [(&str, &str, u64); 7] = [
    (
        "platform::telemetry::logs::json::write",
        "telemetry::logs::json::tests::a_line_contains_the_context_of_its_task",
        126_449,
    ),
    (
        "platform::telemetry::metrics::render",
        "telemetry::metrics::tests::the_first_scrape_contains_the_build",
        1_003_467,
    ),
    (
        "platform::telemetry::metrics::openmetrics::encode",
        "telemetry::metrics::openmetrics::tests::families_follow_the_specification",
        135_490,
    ),
    (
        "platform::telemetry::correlation::CorrelationId::parse",
        "telemetry::correlation::tests::correlation_ids_are_short_and_need_no_escaping",
        2_150,
    ),
    (
        "platform::http::idempotency::Fingerprint::of",
        "http::idempotency::tests::a_fingerprint_ignores_the_formatting_of_the_body",
        63_997,
    ),
    (
        "platform::http::pagination::decode_cursor",
        "http::pagination::tests::a_page_starts_after_the_last_row_of_the_previous_page",
        5_443,
    ),
    (
        "platform::audit::canonical::StoredEvent::digest",
        "audit::canonical::tests::computed_hashes_match_the_documented_test_vector",
        124_943,
    ),
];

/// Maximum deviation from the expected number, in percent. Different compilers cause smaller deviations. The maximum
/// applies in both directions. Otherwise a function that became cheaper could become expensive again unnoticed.
const TOLERANCE_PERCENT: u64 = 15;

#[test]
fn hot_functions_keep_their_instruction_counts() {
    match Command::new("valgrind").arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(env::var_os("REQUIRE_TOOLS").is_none(), "valgrind is not installed: .ci/run installs it");
            println!("skipped: valgrind is not installed");
            return;
        }
        version => assert!(version.unwrap().status.success()),
    }
    let mut deviations = Vec::new();
    for (function, test, expected) in HOT_FUNCTIONS {
        let counted = instructions(function, test);
        if counted.abs_diff(expected) * 100 > expected * TOLERANCE_PERCENT {
            deviations.push(format!("{function}: {counted} instructions instead of {expected}"));
        }
    }
    assert!(deviations.is_empty(), "{deviations:#?}");
}

/// Returns the mean number of instructions per call of a function in a test of this executable.
fn instructions(function: &str, test: &str) -> u64 {
    let profile =
        env::temp_dir().join(format!("{}-{}.callgrind", process::id(), function.replace("::", "-")));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads=1"])
        .output()
        .unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && output.contains("1 passed"), "{test}: {output}");
    let (calls, instructions) = calls_of(function, &profile);
    fs::remove_file(profile).unwrap();
    assert!(calls > 0, "{test} does not call {function}");
    instructions / calls
}

/// Returns the number of calls of a function, and the total number of their instructions, including nested calls.
///
/// In Callgrind's format a call is three lines. They are `cfn=` with the function's name, `calls=` with the number of
/// calls, and a source line number followed by the number of instructions.
fn calls_of(function: &str, profile: &Path) -> (u64, u64) {
    let profile = fs::read_to_string(profile).unwrap();
    let (mut calls, mut instructions) = (0, 0);
    let mut lines = profile.lines();
    while let Some(line) = lines.next() {
        if line.strip_prefix("cfn=") != Some(function) {
            continue;
        }
        let number =
            |text: &str| text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap();
        calls += number(lines.next().unwrap().strip_prefix("calls=").unwrap());
        instructions += number(lines.next().unwrap().split_once(' ').unwrap().1);
    }
    (calls, instructions)
}
