//! The project's own alerting rules, read from its rule files, and the current values of their expressions.
use std::{fs, io, path::Path};

use chrono::{DateTime, Utc};
use promql_parser::parser;
use serde::{Deserialize, Serialize};

use super::metrics::{Element, Expression, Labels, RETENTION, Store};

/// The reason why the rules cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read the rule files: {0}")]
    Files(#[from] io::Error),
    #[error("failed to parse a rule file: {0}")]
    Content(#[from] yaml_serde::Error),
}

#[derive(Deserialize)]
struct File {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<RuleSource>,
}

/// A rule in a rule file. A recording rule has no `alert`.
#[derive(Deserialize)]
struct RuleSource {
    alert: Option<String>,
    expr: String,
    #[serde(rename = "for", default)]
    hold: String,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    annotations: Labels,
}

/// A displayed rule.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Rule {
    pub(super) name: String,
    severity: String,
    summary: String,
    expression: String,
    hold: String,
    /// Name of the runbook.
    runbook: String,
    pub(super) standing: RuleState,
}

/// State of a rule.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct RuleState {
    /// `firing`, `pending` or `inactive` as reported by Prometheus; `true`, `false` or `unknown` as computed by the
    /// console.
    pub(super) state: String,
    pub(super) since: Option<DateTime<Utc>>,
    /// The value that the condition compares with its limit, and the comparison.
    pub(super) value: Option<f64>,
    pub(super) limit: Option<String>,
    /// Prometheus' description of each alert, or the reason why the state is unknown.
    pub(super) notes: Vec<String>,
}

/// The rules, and the time since which the console has evaluated each to true.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<(Rule, Result<Expression, String>, Option<Comparison>)>,
}

/// The displayed part of a condition: `errors / requests` of `errors / requests > 0.05 and …`.
#[derive(Debug)]
struct Comparison {
    expression: Expression,
    limit: String,
}

impl Rules {
    pub(super) fn read(directory: &Path) -> Result<Self, Error> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory)? {
            paths.push(entry?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yml"));
        paths.sort();
        let mut rules = Vec::new();
        for path in paths {
            let file: File = yaml_serde::from_str(&fs::read_to_string(path)?)?;
            rules.extend(file.groups.into_iter().flat_map(|group| group.rules).filter_map(rule));
        }
        Ok(Self { rules })
    }

    /// Evaluates every rule and returns its state as computed by the console.
    pub(super) fn look(&mut self, store: &Store, at: i64) -> Vec<Rule> {
        for (rule, expression, watched) in &mut self.rules {
            let since = rule.standing.since;
            rule.standing = match &expression {
                Err(why) => RuleState { notes: vec![why.clone()], ..RuleState::default() },
                Ok(expression) => standing(expression, store, at, since),
            };
            if rule.standing.state.is_empty() {
                "unknown".clone_into(&mut rule.standing.state);
                continue;
            }
            if let Some(Comparison { expression, limit }) = watched {
                let value = expression.value(store, at).map(super::metrics::Value::into_elements);
                rule.standing.value = worst(&value.unwrap_or_default());
                rule.standing.limit = Some(limit.clone());
            }
        }
        self.rules.iter().map(|(rule, ..)| rule.clone()).collect()
    }
}

fn rule(written: RuleSource) -> Option<(Rule, Result<Expression, String>, Option<Comparison>)> {
    let RuleSource { alert, expr, hold, labels, mut annotations } = written;
    let expression = expr.trim().to_owned();
    let mut name = alert?;
    let runbook = name.clone();
    if let (Some(long), Some(short)) = (labels.get("long"), labels.get("short")) {
        name = format!("{name} {long}/{short}");
    }
    let rule = Rule {
        name,
        severity: labels.get("severity").cloned().unwrap_or_default(),
        summary: annotations.remove("summary").unwrap_or_default(),
        expression: expression.clone(),
        hold,
        runbook,
        standing: RuleState::default(),
    };
    let parsed = Expression::parse(&expression).map_err(|error| error.to_string());
    let parsed = parsed.and_then(|expression| within_reach(&expression).map(|()| expression));
    let watched = parser::parse(&rule.expression).ok().and_then(|expression| watched(&expression));
    Some((rule, parsed, watched))
}

/// Rejects expressions that the console cannot evaluate: it records no rules and has a short retention.
fn within_reach(expression: &Expression) -> Result<(), String> {
    if let Some(recorded) = expression.metrics().into_iter().find(|name| name.contains(':')) {
        return Err(format!("needs the recorded series {recorded}, which only Prometheus stores"));
    }
    if expression.longest_range() > RETENTION {
        return Err(format!(
            "needs more than the {} minutes that the console stores",
            RETENTION.as_secs() / 60
        ));
    }
    Ok(())
}

fn watched(expression: &parser::Expr) -> Option<Comparison> {
    use parser::token::{T_GTE, T_GTR, T_LAND, T_LSS, T_LTE, T_LUNLESS};
    match expression {
        parser::Expr::Paren(inner) => watched(&inner.expr),
        parser::Expr::Binary(binary) => match binary.op.id() {
            // The other operand is visible when the rule is opened.
            joint @ (T_LAND | T_LUNLESS) => watched(&binary.lhs).map(|part| Comparison {
                limit: format!("{} {}", part.limit, if joint == T_LAND { "and …" } else { "unless …" }),
                ..part
            }),
            T_GTR | T_GTE | T_LSS | T_LTE => Some(Comparison {
                expression: Expression::parse(&binary.lhs.to_string()).ok()?,
                limit: format!("{} {}", binary.op, binary.rhs),
            }),
            _ => None,
        },
        _ => None,
    }
}

fn standing(expression: &Expression, store: &Store, at: i64, since: Option<DateTime<Utc>>) -> RuleState {
    match expression.value(store, at).map(super::metrics::Value::into_elements) {
        Err(error) => RuleState { notes: vec![error.to_string()], ..RuleState::default() },
        Ok(elements) if elements.is_empty() => {
            RuleState { state: "false".to_owned(), ..RuleState::default() }
        }
        Ok(_) => RuleState {
            state: "true".to_owned(),
            since: since.or_else(|| DateTime::from_timestamp_millis(at)),
            ..RuleState::default()
        },
    }
}

/// Returns the value that is farthest from zero.
fn worst(elements: &[Element]) -> Option<f64> {
    let values = elements.iter().map(|element| element.value).filter(|value| value.is_finite());
    values.max_by(|one, other| one.abs().total_cmp(&other.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_computed_or_has_a_note() {
        let directory = crate::project::root().join("prometheus/rules");
        let mut rules = Rules::read(&directory).unwrap();
        let mut store = Store::default();
        store.scraped(1_000, "service", "one", Some("db_connections_active 95\ndb_connections_max 100\n"));
        let rules = rules.look(&store, 1_000);
        assert!(rules.len() > 20, "{}", rules.len());
        for rule in &rules {
            let told = match rule.standing.state.as_str() {
                "true" | "false" => rule.standing.notes.is_empty(),
                _ => !rule.standing.notes.is_empty() && !rule.standing.notes[0].contains("supported"),
            };
            assert!(told, "{rule:#?}");
        }
        let pool = rules.iter().find(|rule| rule.name == "DatabasePoolExhausted").unwrap();
        assert_eq!((pool.standing.state.as_str(), pool.standing.value), ("true", Some(0.95)));
        assert_eq!(pool.standing.limit.as_deref(), Some("> 0.9"));
    }

    #[test]
    fn a_limit_with_an_exception_is_shown_as_such() {
        let limit = |text: &str| watched(&parser::parse(text).unwrap()).map(|part| part.limit);
        assert_eq!(limit("a >= 5 unless b > 0").as_deref(), Some(">= 5 unless …"));
        assert_eq!(limit("(a > 5) and b > 0").as_deref(), Some("> 5 and …"));
        assert_eq!(limit("a"), None);
    }
}
