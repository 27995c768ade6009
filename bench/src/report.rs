//! The output: Markdown that is also readable as plain text.
use std::fmt::{self, Display, Formatter};

use crate::statistics::{Spread, rounded};

/// The report of one case: its title, explanation, tables and goals.
#[derive(Debug, Default)]
pub struct Section {
    pub title: String,
    pub about: String,
    pub tables: Vec<Table>,
    pub goals: Vec<Goal>,
}

#[derive(Debug)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A goal: the bound of a figure, and the measured value.
#[derive(Debug)]
pub struct Goal {
    pub what: String,
    pub bound: Bound,
    pub measured: Option<Spread>,
}

#[derive(Clone, Copy, Debug)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

/// Formats a figure as a cell.
pub fn cell(figure: Option<Spread>) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| figure.to_string())
}

/// Formats a figure that was measured once.
pub fn single(figure: Option<f64>) -> String {
    figure.filter(|figure| figure.is_finite()).map_or_else(|| "–".to_owned(), rounded)
}

impl Display for Table {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|cells| cells.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        for (number, cells) in lines().enumerate() {
            for (cell, width) in cells.iter().zip(&widths) {
                write!(formatter, "| {cell:<width$} ")?;
            }
            writeln!(formatter, "|")?;
            if number == 0 {
                for width in &widths {
                    write!(formatter, "|{}", "-".repeat(width + 2))?;
                }
                writeln!(formatter, "|")?;
            }
        }
        Ok(())
    }
}

impl Goal {
    fn is_met(&self) -> Option<bool> {
        let median = self.measured?.median;
        Some(match self.bound {
            Bound::AtLeast(minimum) => median >= minimum,
            Bound::AtMost(maximum) => median <= maximum,
        })
    }
}

impl Display for Section {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "### {}\n", self.title)?;
        if !self.about.is_empty() {
            writeln!(formatter, "{}\n", self.about)?;
        }
        for table in &self.tables {
            writeln!(formatter, "{table}")?;
        }
        if self.goals.is_empty() {
            return Ok(());
        }
        let mut goals = Table::new(&["goal", "wanted", "measured", "met"]);
        for goal in &self.goals {
            let expected = match goal.bound {
                Bound::AtLeast(minimum) => format!("≥ {minimum}"),
                Bound::AtMost(maximum) => format!("≤ {maximum}"),
            };
            let met = match goal.is_met() {
                Some(true) => "yes",
                Some(false) => "no",
                None => "–",
            };
            goals.row([goal.what.clone(), expected, cell(goal.measured), met.to_owned()]);
        }
        writeln!(formatter, "{goals}")
    }
}

/// Marks of the beginning and the end of the tables in a document with other content.
const BEGIN: &str = "<!-- The tables below are written by `cargo bench-all --markdown`. -->\n";
const END: &str = "<!-- The tables above are written by `cargo bench-all --markdown`. -->\n";

/// Returns the document with new tables between the marks. If a mark is missing, the tables and their marks follow the
/// document.
pub fn replace_tables(document: &str, tables: &str) -> String {
    let around = document.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = around.unwrap_or((document, ""));
    format!("{before}{BEGIN}\n{}\n\n{END}{after}", tables.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_by_characters() {
        let mut table = Table::new(&["µs", "who"]);
        table.row(["1.50".to_owned(), "a".to_owned()]);
        assert_eq!(table.to_string(), "| µs   | who |\n|------|-----|\n| 1.50 | a   |\n");
    }

    #[test]
    fn a_goal_is_met_by_its_median_or_unknown() {
        let goal = |bound, median| {
            let measured = Some(Spread { median, minimum: 0.0, maximum: 9.0 });
            Goal { what: String::new(), bound, measured }.is_met()
        };
        assert_eq!(goal(Bound::AtLeast(1.2), 1.2), Some(true));
        assert_eq!(goal(Bound::AtLeast(1.2), 1.19), Some(false));
        assert_eq!(goal(Bound::AtMost(2.2), 2.3), Some(false));
        assert_eq!(Goal { what: String::new(), bound: Bound::AtMost(1.0), measured: None }.is_met(), None);
    }

    #[test]
    fn new_tables_replace_the_old_ones() {
        let first = replace_tables("", "old");
        assert_eq!(first, format!("{BEGIN}\nold\n\n{END}"));
        assert_eq!(replace_tables("# Fast\n", "old"), format!("# Fast\n{first}"));
        let document = format!("# Fast\n\n{first}\nWhy.\n");
        assert_eq!(replace_tables(&document, "new"), format!("# Fast\n\n{BEGIN}\nnew\n\n{END}\nWhy.\n"));
    }
}
