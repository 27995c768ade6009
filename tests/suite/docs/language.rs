//! The rules of language that a test can check: the openings of doc comments, the words of messages, the names of
//! types, functions and tests, and the lists of modules. CONTRIBUTING.md has the glossary.
use std::{collections::BTreeSet, fs};

use syn::visit::{self, Visit};

use super::structure::{files, root};

/// Words with which no doc comment starts. The comment of a type starts with a noun, and the comment of a function with
/// a verb: *Returns*, *Waits until*.
const OPENINGS: [&str; 21] = [
    "What", "Who", "Whom", "Whose", "Whoever", "Whatever", "Whether", "When", "Where", "How", "Somebody",
    "Nobody", "It", "Its", "Of", "In", "By", "For", "So", "As", "Also",
];

/// Words that no message contains. CONTRIBUTING.md has the words to use instead.
const BANNED: [&str; 23] = [
    "somebody",
    "someone",
    "nobody",
    "anybody",
    "whoever",
    "whatever",
    "stranger",
    "twin",
    "dear",
    "anew",
    "trail",
    "told",
    "tells",
    "says",
    "said",
    "answer",
    "answers",
    "answered",
    "under way",
    "may not",
    "ask again",
    "given back",
    "looked at",
];

/// Irregular participles. No type has such a name.
const PARTICIPLES: [&str; 9] = ["Found", "Known", "Seen", "Kept", "Held", "Told", "Broken", "Torn", "Gone"];

/// Prefixes of functions that only return whether something is true.
const PREDICATE_PREFIXES: [&str; 6] = ["is_", "are_", "has_", "was_", "may_", "can_"];

/// Maximum length of the name of a test, in characters.
const MAX_TEST_NAME: usize = 60;

/// Directories of Rust code. A project that is generated from this repository may lack the last two.
const SOURCES: [&str; 7] = ["src", "platform/src", "dev/src", "dev/tests", "tests", "bench/src", "template"];

/// Returns the path and the text of every Rust file in these directories.
fn sources(directories: &[&str]) -> Vec<(String, String)> {
    let existing = directories.iter().filter(|directory| root().join(directory).exists());
    let read = |path: std::path::PathBuf| (path.display().to_string(), fs::read_to_string(&path).unwrap());
    existing.flat_map(|directory| files(directory)).map(read).collect()
}

#[test]
fn doc_comments_start_with_a_noun_or_a_verb() {
    let mut starts = 0;
    let mut wrong = Vec::new();
    for (path, text) in sources(&SOURCES) {
        let mut previous = "";
        for line in text.lines().map(str::trim_start) {
            let is_doc = |line: &str| line.starts_with("/// ") || line.starts_with("//! ");
            if is_doc(line) && !is_doc(previous) && !["///", "//!"].contains(&previous.trim_end()) {
                let first = line[4..].split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                if OPENINGS.contains(&first) {
                    wrong.push(format!("{path}: {line}"));
                }
                starts += 1;
            }
            previous = line;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(starts > 500, "only {starts} doc comments were checked");
}

/// The texts of a file: its string literals and `#[error]` messages, including the literals in macros other than
/// queries. They include the messages of logs, errors, problems, alerts, metrics, commands and assertions.
#[derive(Default)]
struct Texts(Vec<String>);

impl Texts {
    fn add_tokens(&mut self, tokens: &impl ToString) {
        self.0.extend(tokens.to_string().split('"').skip(1).step_by(2).map(ToOwned::to_owned));
    }
}

impl<'ast> Visit<'ast> for Texts {
    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        self.0.push(text.value());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let (true, syn::Meta::List(list)) = (attribute.path().is_ident("error"), &attribute.meta) {
            self.add_tokens(&list.tokens);
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = call.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        if !name.starts_with("query") {
            self.add_tokens(&call.tokens);
        }
    }
}

/// Returns the words of a message in lower case, without its placeholders and the names in backticks.
fn words(message: &str) -> String {
    let message: String = message.split('`').step_by(2).collect();
    let text: String = message.split('{').filter_map(|part| part.rsplit('}').next()).collect();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    format!(" {} ", words.collect::<Vec<_>>().join(" ").to_lowercase())
}

#[test]
fn messages_use_the_words_of_the_glossary() {
    let (mut checked, mut found) = (0, Vec::new());
    for (path, text) in sources(&SOURCES).into_iter().filter(|(path, _)| !path.ends_with("docs/language.rs"))
    {
        let mut texts = Texts::default();
        texts.visit_file(&syn::parse_file(&text).unwrap());
        // A message has several words. A text of one word is a name, which clients and dashboards rely on.
        for message in texts.0.iter().filter(|message| message.trim().contains(' ')) {
            let words = words(message);
            let banned = BANNED.iter().filter(|word| words.contains(&format!(" {word} ")));
            found.extend(banned.map(|word| format!("{path}: \"{word}\" in \"{message}\"")));
            checked += 1;
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    assert!(checked > 200, "only {checked} messages were checked");
}

/// The names of the tests in the visited files, and the names that break a rule.
#[derive(Default)]
struct Names {
    tests: BTreeSet<String>,
    participles: Vec<String>,
    acting_predicates: Vec<String>,
    functions_without_verb: Vec<String>,
}

impl Names {
    fn add_type(&mut self, name: &syn::Ident) {
        let name = name.to_string();
        let is_one_word = name.chars().filter(char::is_ascii_uppercase).count() == 1;
        let is_participle = name.ends_with("ed") && !name.ends_with("eed");
        if is_one_word && is_participle || PARTICIPLES.contains(&name.as_str()) {
            self.participles.push(name);
        }
    }

    /// Adds an async function that is named like a predicate and returns no `bool`, because such a function waits or
    /// acts. Also adds a function whose documentation does not start with a verb, unless the function is a route. The
    /// documentation of a route is a title in the OpenAPI document.
    fn add_function(&mut self, function: &syn::Signature, attributes: &[syn::Attribute]) {
        let name = function.ident.to_string();
        let is_predicate = PREDICATE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let mut result = ReturnsBool(false);
        result.visit_return_type(&function.output);
        if function.asyncness.is_some() && is_predicate && !result.0 {
            self.acting_predicates.push(name);
        }
        let is_route = attributes.iter().any(|attribute| attribute.path().segments[0].ident == "utoipa");
        let mut documentation = Texts::default();
        let docs = attributes.iter().filter(|attribute| attribute.path().is_ident("doc"));
        docs.for_each(|attribute| visit::visit_attribute(&mut documentation, attribute));
        let first = documentation.0.first().and_then(|line| line.split_whitespace().next());
        if first.is_some_and(|word| !word.trim_end_matches(',').ends_with('s')) && !is_route {
            self.functions_without_verb.push(format!("{}: {}", function.ident, documentation.0[0]));
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
        };
        if function.attrs.iter().any(is_test) {
            self.tests.insert(function.sig.ident.to_string());
        } else {
            self.add_function(&function.sig, &function.attrs);
        }
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add_function(&function.sig, &function.attrs);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.add_type(&item.ident);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.add_type(&item.ident);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.add_type(&item.ident);
    }
}

struct ReturnsBool(bool);

impl<'ast> Visit<'ast> for ReturnsBool {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0 |= path.is_ident("bool");
        visit::visit_path(self, path);
    }
}

/// Returns the names in all Rust files.
fn names() -> Names {
    let mut names = Names::default();
    for (_, text) in sources(&SOURCES) {
        names.visit_file(&syn::parse_file(&text).unwrap());
    }
    names
}

#[test]
fn names_of_tests_are_short() {
    let tests = names().tests;
    let long: Vec<_> = tests.iter().filter(|name| name.len() > MAX_TEST_NAME).collect();
    assert!(long.is_empty(), "longer than {MAX_TEST_NAME} characters: {long:#?}");
    assert!(tests.len() > 200, "only {} tests were found", tests.len());
}

#[test]
fn types_are_nouns_and_async_predicates_return_bool() {
    let names = names();
    assert!(names.participles.is_empty(), "participles as names of types: {:#?}", names.participles);
    assert!(
        names.acting_predicates.is_empty(),
        "async predicates that return no bool: {:#?}",
        names.acting_predicates
    );
}

#[test]
fn documentation_of_functions_starts_with_a_verb() {
    let functions = names().functions_without_verb;
    assert!(functions.is_empty(), "must start with a third-person verb: {functions:#?}");
}

/// A renamed module must not keep its old name in the list of modules in the documentation of its parent module.
#[test]
fn lists_of_modules_name_existing_modules() {
    let (mut checked, mut missing) = (0, Vec::new());
    for (path, text) in sources(&SOURCES) {
        let items = text.lines().filter_map(|line| line.strip_prefix("//! - ")?.split_once(": "));
        for name in items.flat_map(|(names, _)| names.split('`').skip(1).step_by(2)) {
            let declared = [format!("mod {name};"), format!("mod {name} {{")];
            if !name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                continue;
            }
            checked += 1;
            if !declared.iter().any(|module| text.contains(module)) {
                missing.push(format!("{path}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(checked > 50, "only {checked} modules were checked");
}
