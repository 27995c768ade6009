//! What the documents say about controls, permissions and metrics is what there is.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use super::is_complete;

pub(crate) fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between backticks in a document, outside of its blocks of code.
pub(crate) fn quoted(document: &str) -> Vec<&str> {
    document.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

/// Whether there is a test of this name, such as `orders::an_order_is_placed`. As in the filters of `cargo test`, the
/// modules above may be left out, and so may those in between.
pub(crate) fn stands(name: &str) -> bool {
    static TESTS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite");
        let module = |path: &Path| {
            let path = path.strip_prefix(&root).unwrap().with_extension("").display().to_string();
            format!("::{}::", path.replace('/', "::"))
        };
        sources(&root).into_iter().map(|(path, text)| (module(&path), text)).collect()
    });
    let (module, function) = name.rsplit_once("::").unwrap();
    let declared = [format!("]\nasync fn {function}() {{"), format!("]\nfn {function}() {{")];
    TESTS.iter().any(|(path, code)| {
        path.contains(&format!("::{module}::")) && declared.iter().any(|test| code.contains(test))
    })
}

/// Every source file below a folder, and its text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
    files
}

#[test]
fn every_control_names_tests_that_there_are() {
    let document = file("docs/compliance.md");
    let mut controls = BTreeSet::new();
    for section in document.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').unwrap();
        let Some(control) = title.split(' ').next().filter(|word| word.contains('-')) else { continue };
        controls.insert(control.to_owned());
        let mut tests = 0;
        for name in quoted(text).into_iter().filter(|name| name.contains("::")) {
            assert!(stands(name), "{control}: there is no test {name}");
            tests += 1;
        }
        assert!(tests > 0, "{control} names no test");
        for part in ["Asks:", "Code:", "Tests:", "Watched by:", "Alerts:", "Operator:"] {
            assert!(text.contains(&format!("**{part}**")), "{control} says nothing under {part}");
        }
    }
    let expected =
        (2..=12).map(|number| format!("AU-{number}")).chain(["AC-7", "SI-4", "SI-11"].map(str::to_owned));
    is_complete("docs/compliance.md", &controls, "the controls that are claimed", &expected.collect());
}

#[test]
fn every_control_names_alerts_that_there_are_with_their_runbooks_or_says_why_there_is_none() {
    let rules: String = ["security", "service", "telemetry", "trail"]
        .iter()
        .map(|name| file(&format!("prometheus/rules/{name}.yml")))
        .collect();
    let document = file("docs/compliance.md");
    let mut looked_at = 0;
    for section in document.split("\n## ").filter(|section| section.contains("**Alerts:**")) {
        let alerts = section.split("**Alerts:**").nth(1).unwrap().split("\n\n").next().unwrap();
        assert!(!quoted(alerts).is_empty() || alerts.trim_start().starts_with("none: "), "{section}");
        for alert in quoted(alerts) {
            let stands = rules.lines().any(|line| line.trim() == format!("- alert: {alert}"));
            assert!(stands, "there is no alert {alert}");
            assert!(file(&format!("docs/runbooks/{alert}.md")).starts_with(&format!("# {alert}\n")));
            looked_at += 1;
        }
    }
    assert!(looked_at > 10, "something was looked at: {looked_at}");
}

#[test]
fn the_metrics_and_files_that_the_documents_name_are_there() {
    let code: String = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    let mut looked_at = 0;
    for document in ["docs/compliance.md", "docs/logs.md", "docs/audit.md"] {
        for name in quoted(&file(document)) {
            if name.starts_with("src/") || name.starts_with("docs/") || name.starts_with("migrations/") {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
                assert!(path.exists(), "{document}: {name}");
            } else if name.ends_with("_total") || name.ends_with("_seconds") {
                assert!(code.contains(&format!("\"{name}\"")), "{document}: there is no metric {name}");
            } else {
                continue;
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 20, "something was looked at: {looked_at}");
}
