//! The controls, tests, alerts, metrics and files that the documents name, compared with the repository.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use super::assert_complete;

/// Directories whose files the documents name.
const DIRECTORIES: [&str; 11] = [
    ".ci/",
    ".github/",
    "bench/",
    "deploy/",
    "dev/src/",
    "docs/",
    "grafana/",
    "migrations/",
    "platform/",
    "src/",
    "tests/",
];

pub(crate) fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the text of a document and its parts. Slices (the domain modules in `src/slices`) add the parts. Examples
/// are `docs/compliance.md` with every `docs/compliance-*.md`, and `.env.example` with every `.env.*.example`.
pub(crate) fn with_parts(path: &str) -> String {
    let (stem, extension) = path.rsplit_once('.').unwrap();
    let (directory, stem) = stem.rsplit_once('/').unwrap_or((".", stem));
    let separator = if stem.starts_with('.') { '.' } else { '-' };
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| {
        let rest = name.strip_suffix(extension).and_then(|name| name.strip_suffix('.')?.strip_prefix(stem));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
    });
    names.sort_unstable();
    assert!(names.iter().any(|name| path.ends_with(name.as_str())), "{path} is not among {names:?}");
    names.iter().map(|name| file(&format!("{directory}/{name}")) + "\n").collect()
}

/// Returns the rows of every table in `docs` with this header row. Tables with the same header row form one list, so
/// the document of a slice can add rows to the list of another document.
pub(crate) fn rows(heading: &str) -> Vec<String> {
    let mut found = Vec::new();
    documents(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"), &mut found);
    found.sort();
    let mut rows = Vec::new();
    for document in found {
        let text = fs::read_to_string(document).unwrap();
        let mut lines = text.lines();
        while lines.by_ref().any(|line| line == heading) {
            let table = lines.by_ref().take_while(|line| line.starts_with('|'));
            rows.extend(table.skip(1).map(str::to_owned));
        }
    }
    assert!(!rows.is_empty(), "no table in docs has the heading {heading}");
    rows
}

/// Returns the texts between backticks in a document, outside of its code blocks.
pub(crate) fn quoted(document: &str) -> Vec<&str> {
    document.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

/// Returns whether a test has this name, such as `orders::an_order_is_placed`. As in the filters of `cargo test`, outer
/// modules may be omitted.
pub(crate) fn test_exists(name: &str) -> bool {
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

/// Returns every Rust file below a directory, and its text.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
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
fn every_control_names_existing_tests() {
    let document = file("docs/compliance.md");
    let mut controls = BTreeSet::new();
    for section in document.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').unwrap();
        let Some(control) = title.split(' ').next().filter(|word| word.contains('-')) else { continue };
        controls.insert(control.to_owned());
        let mut tests = 0;
        for name in quoted(text).into_iter().filter(|name| name.contains("::")) {
            assert!(test_exists(name), "{control}: there is no test {name}");
            tests += 1;
        }
        assert!(tests > 0, "{control} names no test");
        for part in ["Requires:", "Code:", "Tests:", "Monitoring:", "Alerts:", "Operator:"] {
            assert!(text.contains(&format!("**{part}**")), "{control} has no text under {part}");
        }
    }
    let expected =
        (2..=12).map(|number| format!("AU-{number}")).chain(["AC-7", "SI-4", "SI-11"].map(str::to_owned));
    assert_complete("docs/compliance.md", &controls, "the required controls", &expected.collect());

    let parts = with_parts("docs/compliance.md");
    for row in parts.lines().filter(|line| line.starts_with("| ") && line.contains("::")) {
        let control = row.split('|').nth(1).unwrap().trim();
        assert!(controls.contains(control), "{control} is no control of docs/compliance.md");
        for name in quoted(row) {
            assert!(test_exists(name), "{control}: there is no test {name}");
        }
    }
}

#[test]
fn every_control_names_alerts_or_says_why_it_has_none() {
    let rules: String = ["monitoring", "security", "service", "telemetry", "audit"]
        .iter()
        .map(|name| file(&format!("prometheus/rules/{name}.yml")))
        .collect();
    let document = file("docs/compliance.md");
    let mut checked = 0;
    for section in document.split("\n## ").filter(|section| section.contains("**Alerts:**")) {
        let alerts = section.split("**Alerts:**").nth(1).unwrap().split("\n\n").next().unwrap();
        assert!(!quoted(alerts).is_empty() || alerts.trim_start().starts_with("none: "), "{section}");
        for alert in quoted(alerts) {
            let exists = rules.lines().any(|line| line.trim() == format!("- alert: {alert}"));
            assert!(exists, "there is no alert {alert}");
            assert!(file(&format!("docs/runbooks/{alert}.md")).starts_with(&format!("# {alert}\n")));
            checked += 1;
        }
    }
    assert!(checked > 10, "too few alerts were checked: {checked}");
}

#[test]
fn metrics_and_files_named_in_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code: String = ["src", "platform/src"]
        .iter()
        .flat_map(|directory| sources(&root.join(directory)))
        .map(|(_, text)| text)
        .collect();
    let mut checked = 0;
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
            checked += 1;
        }
    }
    assert!(checked > 20, "too few names were checked: {checked}");
}

/// Adds every Markdown file in a directory and its subdirectories to `found`.
fn documents(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Returns README.md, CONTRIBUTING.md, SECURITY.md, and every Markdown file in `docs` and `deploy`.
fn all_documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found: Vec<_> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root.join(name)).into();
    for directory in ["docs", "deploy"] {
        documents(&root.join(directory), &mut found);
    }
    found
}

#[test]
fn every_file_that_a_document_names_or_links_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    for document in all_documents() {
        let text = fs::read_to_string(&document).unwrap();
        let prose: String = text.split("```").step_by(2).collect();
        let links = prose.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let links = links.filter(|link| !link.is_empty() && !link.contains("://"));
        let linked = links.map(|link| document.parent().unwrap().join(link));
        let names = quoted(&text).into_iter().filter(|name| {
            // A generated project may lack a directory whose files its documents name. Such names are not checked.
            let in_repository = DIRECTORIES
                .iter()
                .any(|directory| name.starts_with(directory) && root.join(directory).exists());
            in_repository
                && !["*", " ", "SLICE", "FILE", "NAME", "NNNN"].iter().any(|part| name.contains(part))
        });
        for path in linked.chain(names.map(|name| root.join(name))) {
            assert!(path.exists(), "{} names {}, which does not exist", document.display(), path.display());
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} names and links were checked");
}
