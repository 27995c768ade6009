//! The checklist in docs/checklist*.md names existing files and tests.
use crate::docs::compliance::{quoted, test_exists, with_parts};

#[test]
fn the_checklist_names_existing_files_and_tests() {
    let document = with_parts("docs/checklist.md");
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
            assert!(test_exists(name), "there is no test {name}");
        }
    }
}
