//! The rules of language that a test can check: the openings of doc comments, the words of messages, the length of test
//! names. CONTRIBUTING.md has the glossary.
use std::{collections::BTreeSet, fs};

use syn::visit::{self, Visit};

use super::structure::{CRATES, files, root};

/// Words with which no doc comment starts. A type starts with a noun, a function with a verb: *Returns*, *Waits until*.
const OPENINGS: [&str; 12] = [
    "What", "Who", "Whom", "Whose", "Whoever", "Whatever", "Whether", "When", "Where", "How", "Somebody",
    "Nobody",
];

/// Words that no message contains. CONTRIBUTING.md has the words to use instead.
const BANNED: [&str; 22] = [
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
];

/// Maximum length of the name of a test, in characters.
const MAX_TEST_NAME: usize = 60;

/// Directories of Rust code. A project may lack the last two.
const SOURCES: [&str; 7] = ["src", "platform/src", "dev/src", "dev/tests", "tests", "bench/src", "template"];

/// Returns the path and the text of every Rust file in these directories.
fn sources(directories: &[&str]) -> Vec<(String, String)> {
    let present = directories.iter().filter(|directory| root().join(directory).exists());
    let read = |path: std::path::PathBuf| (path.display().to_string(), fs::read_to_string(&path).unwrap());
    present.flat_map(|directory| files(directory)).map(read).collect()
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
    assert!(starts > 500, "{starts} doc comments");
}

/// The texts of a file outside of its unit tests: string literals, `#[error]` messages, and the contents of macros
/// except queries. These are the messages of logs, errors, problems, alerts, metrics and commands.
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

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }
}

/// Returns the words of a message in lower case, without its placeholders.
fn words(message: &str) -> String {
    let text: String = message.split('{').filter_map(|part| part.rsplit('}').next()).collect();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    format!(" {} ", words.collect::<Vec<_>>().join(" ").to_lowercase())
}

#[test]
fn messages_use_the_words_of_the_glossary() {
    let (mut checked, mut found) = (0, Vec::new());
    for (path, text) in sources(&CRATES).into_iter().filter(|(path, _)| !path.ends_with("/tests.rs")) {
        let mut texts = Texts::default();
        texts.visit_file(&syn::parse_file(&text).unwrap());
        // A message has several words. A single one is a name, which clients and dashboards rely on.
        for message in texts.0.iter().filter(|message| message.trim().contains(' ')) {
            let words = words(message);
            let banned = BANNED.iter().filter(|word| words.contains(&format!(" {word} ")));
            found.extend(banned.map(|word| format!("{path}: \"{word}\" in \"{message}\"")));
            checked += 1;
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    assert!(checked > 200, "{checked} messages");
}

/// The names of the tests in a file.
#[derive(Default)]
struct Tests(BTreeSet<String>);

impl<'ast> Visit<'ast> for Tests {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
        };
        if function.attrs.iter().any(is_test) {
            self.0.insert(function.sig.ident.to_string());
        }
    }
}

#[test]
fn names_of_tests_are_short() {
    let mut tests = Tests::default();
    for (_, text) in sources(&SOURCES) {
        tests.visit_file(&syn::parse_file(&text).unwrap());
    }
    let long: Vec<_> = tests.0.iter().filter(|name| name.len() > MAX_TEST_NAME).collect();
    assert!(long.is_empty(), "longer than {MAX_TEST_NAME} characters: {long:#?}");
    assert!(tests.0.len() > 200, "{} tests", tests.0.len());
}
