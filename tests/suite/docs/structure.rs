//! The rules of the code structure that a test can check in the sources, and the documentation of every metric.
//! docs/architecture.md states the reasons of the rules.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{UseTree, visit::Visit};

use crate::telemetry::metrics::HEADING;

/// The source directories of the service and the platform. Each is the root of a crate.
pub(super) const CRATES: [&str; 2] = ["src", "platform/src"];

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns every Rust file below a directory of the checkout.
pub(super) fn files(directory: &str) -> Vec<PathBuf> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(directory), &mut found);
    found.sort();
    found
}

/// Returns the sources of the service and the platform: the path of each file, and its text without unit tests.
pub(crate) fn sources() -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
        (path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), code)
    };
    let all = CRATES.iter().flat_map(|directory| files(directory));
    all.filter(|path| !path.ends_with("tests.rs")).map(read).collect()
}

/// Returns the lines of code for which `is_match` is true, in the files for which `is_in_scope` is true.
fn lines_with(is_match: impl Fn(&str) -> bool, is_in_scope: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (path, code) in sources().into_iter().filter(|(path, _)| is_in_scope(path)) {
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        found.extend(lines.filter(|line| is_match(line)).map(|line| format!("{path}: {}", line.trim())));
    }
    found
}

#[test]
fn only_the_list_of_slices_names_a_slice() {
    let directories = fs::read_dir(root().join("src/slices")).unwrap().map(|entry| entry.unwrap().path());
    let slices: Vec<_> = directories
        .filter(|path| path.join("mod.rs").exists())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let names_a_slice = |line: &str| slices.iter().any(|slice| line.contains(&format!("{slice}::")));
    assert_eq!(lines_with(names_a_slice, |path| !path.starts_with("src/slices/")), [""; 0]);
    assert!(
        !lines_with(names_a_slice, |path| path == "src/slices/mod.rs").is_empty(),
        "the rule must find lines"
    );
}

#[test]
fn only_the_executable_uses_its_entry_points() {
    let uses_an_entry_point = |line: &str| line.contains("service::serve") || line.contains("cli::");
    let outside =
        |path: &str| !["src/main.rs", "src/lib.rs", "src/cli/mod.rs", "src/service/mod.rs"].contains(&path);
    assert_eq!(lines_with(uses_an_entry_point, outside), [""; 0]);
    assert!(
        !lines_with(uses_an_entry_point, |path| path == "src/main.rs").is_empty(),
        "the rule must find lines"
    );
}

/// The items of the same crate that a file uses, as paths from the root of the crate.
struct Uses<'a> {
    module: &'a [String],
    found: BTreeSet<Vec<String>>,
}

impl Uses<'_> {
    /// Adds a path in source code, if the path refers to an item of the same crate.
    fn add(&mut self, segments: &[String]) {
        let mut from = self.module.to_vec();
        let mut rest = segments;
        match rest.first().map(String::as_str) {
            Some("crate") => from.clear(),
            Some("self" | "super") => {}
            _ => return,
        }
        while let Some(first) = rest.first() {
            match first.as_str() {
                "super" => drop(from.pop()),
                "crate" | "self" => {}
                _ => break,
            }
            rest = &rest[1..];
        }
        from.extend(rest.iter().cloned());
        self.found.insert(from);
    }

    fn add_tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.add_tree(item, before)),
            UseTree::Name(name) => self.add(&with(&name.ident)),
            UseTree::Rename(rename) => self.add(&with(&rename.ident)),
            UseTree::Glob(_) => self.add(before),
        }
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // Unit tests are allowed to use any module.
        if item.ident != "tests" {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

/// Returns for each module the sibling modules that it or one of its submodules uses.
fn uses_of_siblings(directory: &str) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let base = root().join(directory);
    let module_of = |path: &Path| -> Vec<String> {
        let path = path.strip_prefix(&base).unwrap().with_extension("");
        let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
        parts.filter(|part| !["mod", "lib", "main"].contains(&part.as_str())).collect()
    };
    let all: Vec<_> = files(directory).into_iter().filter(|path| !path.ends_with("tests.rs")).collect();
    let modules: BTreeSet<_> = all.iter().map(|path| module_of(path)).collect();
    let mut graph = BTreeMap::<_, BTreeSet<_>>::new();
    for path in &all {
        let module = module_of(path);
        let mut uses = Uses { module: &module, found: BTreeSet::new() };
        uses.visit_file(&syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap());
        for used in &uses.found {
            let depth = module.iter().zip(used).take_while(|(one, other)| one == other).count();
            let (Some(from), Some(to)) = (module.get(..=depth), used.get(..=depth)) else { continue };
            if modules.contains(to) {
                graph.entry(from.to_vec()).or_default().insert(to.to_vec());
            }
        }
    }
    graph
}

#[test]
fn modules_have_no_cyclic_dependencies() {
    fn visit<'a>(
        graph: &'a BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
        module: &'a Vec<String>,
        path: &mut Vec<&'a Vec<String>>,
        done: &mut BTreeSet<&'a Vec<String>>,
        cycles: &mut Vec<String>,
    ) {
        if let Some(start) = path.iter().position(|earlier| *earlier == module) {
            let cycle = path[start..].iter().chain([&module]).map(|module| module.join("::"));
            cycles.push(cycle.collect::<Vec<_>>().join(" -> "));
        } else if !done.contains(module) {
            path.push(module);
            for next in graph.get(module).into_iter().flatten() {
                visit(graph, next, path, done, cycles);
            }
            path.pop();
            done.insert(module);
        }
    }
    for directory in [CRATES.as_slice(), &["dev/src"]].concat() {
        let mut graph = uses_of_siblings(directory);
        // This cycle is allowed: the crate `dev` calls the example through `example/mod.rs`, and the example uses parts
        // of `dev`. A project without the example replaces the directory `example`.
        for used in graph.values_mut() {
            used.retain(|module| module.join("::") != "example");
        }
        assert!(graph.len() > 10, "the rule must find the modules of {directory}");
        let (mut done, mut cycles) = (BTreeSet::new(), Vec::new());
        for module in graph.keys() {
            visit(&graph, module, &mut Vec::new(), &mut done, &mut cycles);
        }
        assert!(cycles.is_empty(), "{directory}: {cycles:#?}");
    }
}

#[test]
fn domain_models_do_no_input_or_output() {
    let does_io = |line: &str| {
        ["sqlx::", "tokio::", "reqwest::", "async fn", "Utc::now"].iter().any(|io| line.contains(io))
    };
    let is_model = |path: &str| path.ends_with("/model.rs") || path.contains("/model/");
    assert_eq!(lines_with(does_io, is_model), [""; 0]);
    assert!(!lines_with(does_io, |path| path.ends_with("/store.rs")).is_empty(), "the rule must find lines");
}

#[test]
fn sql_is_checked_when_it_is_compiled() {
    let unchecked = |line: &str| {
        ["sqlx::query(", "sqlx::query_as(", "sqlx::query_scalar(", "QueryBuilder"]
            .iter()
            .any(|call| line.contains(call))
    };
    // Most statements of these files can run before the schema exists, so they cannot be checked against it.
    let must_be_checked = |path: &str| {
        path != "platform/src/migrations.rs"
            && path != "platform/src/database/requirements.rs"
            && path != "platform/src/database/schema.rs"
    };
    assert_eq!(lines_with(unchecked, must_be_checked), [""; 0]);
}

#[test]
fn handlers_contain_no_sql() {
    let sql = |line: &str| line.contains("sqlx::query");
    assert_eq!(lines_with(sql, |path| path.ends_with("routes.rs")), [""; 0]);
    assert!(!lines_with(sql, |path| path.ends_with("store.rs")).is_empty(), "the rule must find lines");
}

#[test]
fn connections_are_acquired_by_hand_only_for_several_statements() {
    let acquires = |line: &str| line.contains(".acquire().await");
    let in_database = |path: &str| path.starts_with("platform/src/database/");
    // An export sets a parameter of its connection. A verification calls functions of the export, which take a
    // connection.
    assert_eq!(
        lines_with(acquires, |path| !in_database(path)),
        [
            "platform/src/audit/export/mod.rs: let mut connection = owner.acquire().await?;",
            "platform/src/audit/verify.rs: let mut connection = database.acquire().await?;",
        ]
    );
}

/// The edge of a slice is its routes and the conversion of its errors into problems. The other files of the slice must
/// not name HTTP problems, because workers and commands also use these files, and send no HTTP response.
#[test]
fn only_the_edge_of_a_slice_names_problems() {
    let names_a_problem = |line: &str| line.contains("Problem");
    // The authentication layer responds to requests, so it also belongs to the edge.
    let edge = ["/routes.rs", "/problems.rs", "/errors.rs", "/authentication.rs"];
    let at_the_edge = |path: &str| edge.iter().any(|file| path.ends_with(file));
    let in_a_slice = |path: &str| path.starts_with("src/slices/") || path.starts_with("src/accounts/");
    let inside = |path: &str| in_a_slice(path) && !at_the_edge(path);
    assert_eq!(lines_with(names_a_problem, inside), [""; 0]);
    assert!(!lines_with(names_a_problem, at_the_edge).is_empty(), "the rule must find lines");
}

/// The names of the metrics in the visited files.
#[derive(Default)]
struct Metrics(BTreeSet<String>);

impl<'ast> Visit<'ast> for Metrics {
    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        if item.mac.path.segments.last().is_some_and(|last| last.ident == "metrics") {
            let declarations = item.mac.tokens.to_string();
            let names = declarations.split("static ").skip(1).map(|metric| {
                let (_, rest) = metric.split_once("= \"").unwrap();
                rest.split('"').next().unwrap().to_owned()
            });
            self.0.extend(names);
        }
    }
}

/// Returns the names of the metrics that the sources declare.
pub fn declared_metrics() -> BTreeSet<String> {
    let mut metrics = Metrics::default();
    for path in CRATES.iter().flat_map(|directory| files(directory)) {
        metrics.visit_file(&syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap());
    }
    metrics.0
}

/// `/metrics` does not contain metrics without a series, so a test that only reads `/metrics` would miss such metrics.
#[test]
fn every_declared_metric_is_documented() {
    let rows = super::compliance::rows(HEADING);
    // `docs/metrics.md` has another table for the metrics of parts of the platform that not every project uses.
    let common = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let declared = declared_metrics();
    for name in &declared {
        let cell = format!("| `{name}` | ");
        assert!(
            rows.iter().any(|line| line.starts_with(&cell)) || common.contains(&cell),
            "{name} is in no table \"{HEADING}\" of docs"
        );
    }
    // Every project declares these metrics. Their absence would mean that the search for declarations is broken.
    for name in [
        "http_requests_total",
        "http_requests_in_flight",
        "db_query_duration_seconds",
        "audit_seal_lag_seconds",
    ] {
        assert!(declared.contains(name), "{name} is not found among {declared:?}");
    }
}
