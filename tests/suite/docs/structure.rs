//! The rules of the house that a look at the sources can check; docs/architecture.md says why they are there.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The slices: whatever has routes of its own and is not the platform.
fn slices() -> Vec<String> {
    let directories = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let slices =
        directories.map(|entry| entry.unwrap().path()).filter(|path| path.join("routes.rs").exists());
    slices.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Every source file of the service but those of tests: its path below `src`, and its text without the tests in it.
fn sources() -> Vec<(String, String)> {
    fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
        (path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), code)
    };
    files.into_iter().map(read).collect()
}

/// Where `wanted` stands in code, and not in a comment.
fn lines_with(wanted: impl Fn(&str) -> bool, within: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (path, code) in sources().into_iter().filter(|(path, _)| within(path)) {
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        found.extend(lines.filter(|line| wanted(line)).map(|line| format!("src/{path}: {}", line.trim())));
    }
    found
}

#[test]
fn the_platform_names_no_slice() {
    let slices = slices();
    assert!(slices.len() >= 2, "{slices:?}");
    let names_a_slice = |line: &str| {
        slices
            .iter()
            .any(|slice| line.contains(&format!("{slice}::")) || line.contains(&format!("crate::{slice}")))
    };
    assert_eq!(lines_with(names_a_slice, |path| path.starts_with("platform/")), [""; 0]);
    assert!(!lines_with(names_a_slice, |path| path == "service.rs").is_empty(), "the rule sees something");
}

#[test]
fn nothing_uses_the_wiring() {
    let uses_the_wiring = |line: &str| line.contains("service::serve") || line.contains("cli::");
    let outside = |path: &str| !["main.rs", "lib.rs", "cli.rs", "service.rs"].contains(&path);
    assert_eq!(lines_with(uses_the_wiring, outside), [""; 0]);
    assert!(!lines_with(uses_the_wiring, |path| path == "cli.rs").is_empty(), "the rule sees something");
}

#[test]
fn rules_do_no_input_or_output() {
    let does_io = |line: &str| {
        ["sqlx::", "tokio::", "reqwest::", "async fn", "Utc::now"].iter().any(|io| line.contains(io))
    };
    let has_rules = |path: &str| path.ends_with("/model.rs") || path.contains("/model/");
    assert_eq!(lines_with(does_io, has_rules), [""; 0]);
    assert!(!lines_with(does_io, |path| path.ends_with("/store.rs")).is_empty(), "the rule sees something");
}

#[test]
fn sql_is_checked_when_it_is_compiled() {
    let unchecked = |line: &str| {
        ["sqlx::query(", "sqlx::query_as(", "sqlx::query_scalar(", "QueryBuilder"]
            .iter()
            .any(|call| line.contains(call))
    };
    // What runs before the schema is there has nothing to be checked against.
    let where_checked =
        |path: &str| path != "platform/database/migrate.rs" && path != "platform/database/checks.rs";
    assert_eq!(lines_with(unchecked, where_checked), [""; 0]);
}

#[test]
fn handlers_hold_no_sql() {
    let sql = |line: &str| line.contains("sqlx::query");
    assert_eq!(lines_with(sql, |path| path.ends_with("routes.rs")), [""; 0]);
    assert!(!lines_with(sql, |path| path.ends_with("store.rs")).is_empty(), "the rule sees something");
}

/// A metric that nothing has touched yet is on no page, so a test that reads the page misses it.
#[test]
fn every_metric_that_is_declared_is_in_the_document() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let mut declared = BTreeSet::new();
    for (path, code) in sources() {
        let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for declaration in code.split("register_").skip(1).filter(|rest| rest.contains("!(")) {
            let Some((macro_name, rest)) = declaration.split_once("!(") else { continue };
            if !macro_name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                continue;
            }
            let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            let name = name.unwrap_or_else(|| panic!("src/{path}: {macro_name} begins with a name"));
            assert!(
                document.contains(&format!("| `{name}` | ")),
                "src/{path}: {name} is not in docs/metrics.md"
            );
            declared.insert(name.to_owned());
        }
    }
    // The rule sees what every project has, by each way of declaring it.
    for name in [
        "http_requests_total",
        "http_requests_in_flight",
        "db_query_duration_seconds",
        "audit_seal_lag_seconds",
    ] {
        assert!(declared.contains(name), "{name} is not seen among {declared:?}");
    }
}
