//! The workflows of `.github`: pinned actions, minimal permissions, and the checks of a change and of a release. Also
//! the Dockerfile, `.gitattributes`, and the versions of tools.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use serde::Deserialize;
use serde_json::Value;

use super::{repository, run, tool};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Workflow {
    name: String,
    on: Value,
    permissions: BTreeMap<String, String>,
    concurrency: Value,
    #[serde(default)]
    env: BTreeMap<String, String>,
    jobs: BTreeMap<String, Job>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Job {
    runs_on: Option<String>,
    timeout_minutes: Option<u32>,
    permissions: BTreeMap<String, String>,
    #[serde(default)]
    needs: Value,
    #[serde(default)]
    strategy: Value,
    uses: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    outputs: BTreeMap<String, String>,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    id: Option<String>,
    name: Option<String>,
    uses: Option<String>,
    run: Option<String>,
    #[serde(default)]
    with: BTreeMap<String, Value>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// Returns the file name, the text and the parsed content of each workflow.
fn workflows() -> Vec<(String, String, Workflow)> {
    let entries = fs::read_dir(repository().join(".github/workflows")).unwrap();
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let workflow = yaml_serde::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, text, workflow)
    };
    let workflows: Vec<_> = entries.map(read).collect();
    assert!(workflows.len() >= 3);
    workflows
}

#[test]
fn every_workflow_has_a_name_a_trigger_and_a_timeout() {
    for (file, _, workflow) in workflows() {
        assert_eq!(format!("{}.yml", workflow.name), file);
        assert!(!workflow.on.is_null() && !workflow.concurrency.is_null(), "{file}");
        for (name, job) in workflow.jobs {
            let ends = job.timeout_minutes.is_some() || job.uses.is_some();
            assert!(ends, "{file}: {name} has no timeout, so it may run for six hours");
            let runner = job.runs_on.unwrap_or_default();
            assert!(!runner.ends_with("latest"), "{file}: {name} does not pin its runner");
        }
    }
}

#[test]
fn workflows_have_permissions_by_job_only() {
    for (file, _, workflow) in workflows() {
        assert!(workflow.permissions.is_empty(), "{file}: a permission at the top applies to every job");
        for (name, job) in workflow.jobs {
            assert!(!job.permissions.is_empty(), "{file}: {name} has no permissions");
            let writes = job.permissions.values().any(|access| access == "write");
            assert!(
                !writes || file == "release.yml",
                "{file}: {name} has a write permission, and is no release"
            );
        }
    }
}

#[test]
fn every_action_is_pinned_to_a_commit_with_its_version() {
    let mut pins: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text, workflow) in workflows() {
        let steps = workflow.jobs.values().flat_map(|job| &job.steps).filter_map(|step| step.uses.as_ref());
        let used = steps.chain(workflow.jobs.values().filter_map(|job| job.uses.as_ref()));
        for action in used.filter(|action| !action.starts_with("./")) {
            let (name, commit) = action.split_once('@').unwrap_or_else(|| panic!("{file}: {action}"));
            let is_a_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_a_commit, "{file}: {action}");
            let line = text.lines().find(|line| line.contains(action.as_str())).unwrap();
            let version = line.split_once(" # v").unwrap_or_else(|| panic!("{file}: {line}")).1;
            assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{file}: {line}");
            pins.entry(name.to_owned()).or_default().insert(format!("{commit} # v{version}"));
        }
    }
    assert!(pins.len() > 5, "{pins:?}");
    for (name, commits) in pins {
        assert_eq!(commits.len(), 1, "{name} must be used in only one version: {commits:?}");
    }
}

#[test]
fn workflows_inject_no_foreign_text_and_keep_no_credentials() {
    for (file, _, workflow) in workflows() {
        let environment =
            workflow.env.values().chain(workflow.jobs.values().flat_map(|job| job.env.values()));
        assert!(
            !environment.clone().any(|value| value.contains("secrets.")),
            "{file}: every step could read this secret"
        );
        for step in workflow.jobs.into_values().flat_map(|job| job.steps) {
            let script = step.run.clone().unwrap_or_default();
            assert!(!script.contains("${{"), "{file}: {script}: pass the expression in `env` of the step");
            assert!(step.run.is_some() != step.uses.is_some(), "{file}: {:?} {:?}", step.name, step.id);
            if step.uses.is_some_and(|action| action.starts_with("actions/checkout@")) {
                assert_eq!(step.with.get("persist-credentials"), Some(&Value::Bool(false)), "{file}");
            }
            assert!(step.env.values().all(|value| value.starts_with("${{")), "{file}");
        }
    }
}

#[test]
fn a_change_runs_all_checks_with_the_minimum_compiler() {
    let (_, _, ci) = workflows().into_iter().find(|(file, ..)| file == "ci.yml").unwrap();
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("rust-version = \"{}\"", ci.env["RUST"])));
    let image = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    assert!(image.contains(&format!("ARG RUST_IMAGE=rust:{}.", ci.env["RUST"])));
    let runs =
        |job: &str, script: &str| ci.jobs[job].steps.iter().any(|step| step.run.as_deref() == Some(script));
    assert!(runs("linux", ".ci/run") && runs("macos", "cargo test --locked"));
}

#[test]
fn a_release_runs_after_the_tests_with_its_notes() {
    let (_, _, release) = workflows().into_iter().find(|(file, ..)| file == "release.yml").unwrap();
    assert_eq!(release.jobs["ci"].uses.as_deref(), Some("./.github/workflows/ci.yml"));
    for (job, needed) in
        [("image", ["notes", "ci"]), ("manifest", ["notes", "image"]), ("release", ["notes", "manifest"])]
    {
        assert_eq!(release.jobs[job].needs, serde_json::json!(needed));
    }
    assert!(!release.jobs["notes"].outputs.is_empty());
    let notes =
        |version: &str| Command::new(repository().join(".ci/changelog")).arg(version).output().unwrap();
    let output = notes(env!("CARGO_PKG_VERSION"));
    assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("### Added"));
    assert!(!notes("99.0.0").status.success(), "a version without notes must not be released");
}

/// Returns the index of the first step whose script contains `script`, or whose input `outputs` contains `output`. An
/// empty text matches no step.
fn step_index(job: &Job, script: &str, output: &str) -> usize {
    let is_wanted = |step: &Step| {
        step.run.as_ref().is_some_and(|run| !script.is_empty() && run.contains(script))
            || step
                .with
                .get("outputs")
                .and_then(Value::as_str)
                .is_some_and(|outputs| !output.is_empty() && outputs.contains(output))
    };
    job.steps.iter().position(is_wanted).unwrap_or_else(|| panic!("no step with {script:?} {output:?}"))
}

#[test]
fn a_release_is_scanned_before_it_is_pushed() {
    let (_, _, release) = workflows().into_iter().find(|(file, ..)| file == "release.yml").unwrap();
    let image = &release.jobs["image"];
    let platforms: Vec<_> = image.strategy["matrix"]["include"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["platform"].as_str().unwrap())
        .collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    let epoch = step_index(image, "SOURCE_DATE_EPOCH", "");
    let build = step_index(image, "", "type=docker");
    let scan = step_index(image, "bin/grype", "");
    let push = step_index(image, "", "push=true");
    assert!(epoch < build && build < scan && scan < push);
    for step in [build, push] {
        assert!(image.steps[step].with["outputs"].as_str().unwrap().contains("rewrite-timestamp=true"));
    }
}

#[test]
fn advisories_are_checked_every_night() {
    let (_, _, nightly) = workflows().into_iter().find(|(file, ..)| file == "nightly.yml").unwrap();
    assert!(nightly.on["schedule"].is_array());
    let actions = nightly.jobs["dependencies"].steps.iter().filter_map(|step| step.uses.as_ref());
    assert!(actions.into_iter().any(|action| action.starts_with("EmbarkStudios/cargo-deny-action@")));
}

#[test]
fn executables_of_the_image_list_their_crates() {
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let builds: Vec<_> = dockerfile.lines().filter(|line| line.contains(" build --release")).collect();
    assert_eq!(builds.len(), 2);
    assert!(builds.iter().all(|line| line.contains("cargo auditable build")), "{builds:?}");
}

#[test]
fn a_container_is_unhealthy_only_if_its_process_is() {
    // While the database is down, the service is not ready, but a restart of its container would not help.
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let check = dockerfile.split("HEALTHCHECK").nth(1).unwrap();
    assert!(check.contains("/healthz\"]") && !check.contains("/readyz"), "{check}");
}

/// A checkout with other line endings would change the checksums of the migrations.
#[test]
fn a_checkout_has_the_same_bytes_on_every_system() {
    let attributes = fs::read_to_string(repository().join(".gitattributes")).unwrap();
    assert!(attributes.lines().any(|line| line == "* text=auto eol=lf"), "{attributes}");
    let migrations = fs::read_dir(repository().join("migrations")).unwrap();
    for migration in migrations.map(|entry| entry.unwrap().path()) {
        assert!(!fs::read(&migration).unwrap().contains(&b'\r'), "{}", migration.display());
    }
}

#[test]
fn actionlint_finds_nothing() {
    let Some(actionlint) = tool("actionlint") else { return };
    // Each file is an argument, because the linter would otherwise search for a Git repository, and a new project may
    // have none.
    let files: Vec<_> =
        workflows().into_iter().map(|(file, ..)| format!(".github/workflows/{file}")).collect();
    let arguments =
        ["-no-color", "-shellcheck=", "-pyflakes="].into_iter().chain(files.iter().map(String::as_str));
    assert_eq!(run(&actionlint, ".", &arguments.collect::<Vec<_>>()), "");
}

/// Renovate updates a version in `.ci/tools` when the Go module in the comment after the version has a new release.
#[test]
fn tool_versions_match_the_go_modules() {
    let text = fs::read_to_string(repository().join(".github/renovate.json")).unwrap();
    let renovate: Value = serde_json::from_str(&text).unwrap();
    let expression = &renovate["customManagers"][0]["matchStrings"][0];
    assert_eq!(expression, r"\w+=(?<currentValue>[0-9.]+) # (?<depName>\S+)");
    let tools = fs::read_to_string(repository().join(".ci/tools")).unwrap();
    let mut checked = 0;
    for (name, rest) in tools.lines().filter_map(|line| line.split_once('=')) {
        let Some((version, module)) = rest.split_once(" # ") else { continue };
        assert!(version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{name}: {version}");
        assert!(tools.contains(&format!("\nbuild {module} \"${name}\" ")), "{module} is not built");
        checked += 1;
    }
    assert!(checked >= 5, "too few versions were checked: {checked}");
}
