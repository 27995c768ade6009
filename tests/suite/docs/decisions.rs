//! The decisions in `docs/decisions` are listed, and each has the required parts, such as the reason and the cost.
use std::{collections::BTreeSet, fs};

use super::{
    assert_complete,
    compliance::{file, with_parts},
};

#[test]
fn every_decision_is_listed_and_complete() {
    let list = with_parts("docs/decisions/README.md");
    let listed: BTreeSet<_> = list
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| [")?.split(['(', ')']).nth(1)?.to_owned()))
        .collect();
    let mut written = BTreeSet::new();
    for entry in fs::read_dir(crate::stack::repository().join("docs/decisions")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("README") {
            continue;
        }
        let text = file(&format!("docs/decisions/{name}"));
        let title = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap();
        assert!(list.contains(&format!("]({name}) | {title} |")), "{name} must be listed with its title");
        for part in ["Chosen:", "Alternatives:", "Why:", "Cost:", "Conditions of a change:"] {
            assert!(text.contains(&format!("**{part}**")), "{name} has no text under {part}");
        }
        written.insert(name);
    }
    assert_complete("docs/decisions/README.md", &listed, "the files of docs/decisions", &written);
}
