//! The checklist and the decisions name what there is.
use std::{collections::BTreeSet, fs};

use crate::compliance::{file, quoted, stands};

#[test]
fn every_line_of_the_checklist_names_files_and_tests_that_there_are() {
    let document = file("docs/checklist.md");
    let rows: Vec<_> = document.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() >= 12 + 17, "{}", rows.len());
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let [.., places, proofs] = &cells[..] else { panic!("{row}") };
        let places = quoted(places);
        assert!(!places.is_empty(), "{row}");
        for place in places {
            assert!(crate::stack::repository().join(place).is_file(), "there is no {place}");
        }
        let tests: Vec<_> = quoted(proofs).into_iter().filter(|name| name.contains("::")).collect();
        assert!(!tests.is_empty(), "no test proves {row}");
        for name in tests {
            assert!(stands(name), "there is no test {name}");
        }
    }
}

#[test]
fn every_decision_is_listed_and_says_what_would_change_it() {
    let list = file("docs/decisions/README.md");
    let listed: BTreeSet<_> = list
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| [")?.split(['(', ')']).nth(1)?.to_owned()))
        .collect();
    let mut written = BTreeSet::new();
    for entry in fs::read_dir(crate::stack::repository().join("docs/decisions")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "README.md" {
            continue;
        }
        let text = file(&format!("docs/decisions/{name}"));
        let title = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap();
        assert!(list.contains(&format!("]({name}) | {title} |")), "{name} is listed by its title");
        for part in ["Chosen:", "Also thought of:", "Why:", "Price:", "What would change our mind:"] {
            assert!(text.contains(&format!("**{part}**")), "{name} says nothing under {part}");
        }
        written.insert(name);
    }
    assert_eq!(listed, written);
}
