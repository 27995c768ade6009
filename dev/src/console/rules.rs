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
    hold_time: String,
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
    hold_time: String,
    /// Name of the runbook.
    runbook: String,
    pub(super) evaluation: RuleState,
}

/// State of a rule.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct RuleState {
    /// `firing`, `pending` or `inactive` as reported by Prometheus; `true`, `false` or `unknown` as computed by the
    /// console.
    pub(super) state: String,
    pub(super) since: Option<DateTime<Utc>>,
    /// Current value of the left operand of the rule's comparison. If there are several values, the value farthest from
    /// zero.
    pub(super) value: Option<f64>,
    /// The operator and the right operand of the comparison, and an abbreviation of further conditions.
    pub(super) limit: Option<String>,
    /// From Prometheus, the description of each alert and the last error of the rule. From the console, the reason why
    /// the state is unknown.
    pub(super) notes: Vec<String>,
}

/// The rules, each with its parsed expression or the reason why the console cannot evaluate the expression. The third
/// part of each tuple is the displayed comparison, if the expression has one.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<(Rule, Result<Expression, String>, Option<Comparison>)>,
}

/// The displayed comparison of a condition. For `errors / requests > 0.05 and up > 0`, the expression is
/// `errors / requests`, and the limit is `> 0.05 and …`.
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

    /// Evaluates every rule. Returns the rules with their states as computed by the console.
    pub(super) fn evaluate(&mut self, store: &Store, at: i64) -> Vec<Rule> {
        for (rule, expression, comparison) in &mut self.rules {
            let since = rule.evaluation.since;
            rule.evaluation = match &expression {
                Err(reason) => RuleState { notes: vec![reason.clone()], ..RuleState::default() },
                Ok(expression) => evaluate(expression, store, at, since),
            };
            if rule.evaluation.state.is_empty() {
                "unknown".clone_into(&mut rule.evaluation.state);
                continue;
            }
            if let Some(Comparison { expression, limit }) = comparison {
                let value = expression.value(store, at).map(super::metrics::Value::into_elements);
                rule.evaluation.value = largest_absolute(&value.unwrap_or_default());
                rule.evaluation.limit = Some(limit.clone());
            }
        }
        self.rules.iter().map(|(rule, ..)| rule.clone()).collect()
    }
}

fn rule(source: RuleSource) -> Option<(Rule, Result<Expression, String>, Option<Comparison>)> {
    let RuleSource { alert, expr, hold_time, labels, mut annotations } = source;
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
        hold_time,
        runbook,
        evaluation: RuleState::default(),
    };
    let parsed = Expression::parse(&expression).map_err(|error| error.to_string());
    let parsed = parsed.and_then(|expression| check_supported(&expression).map(|()| expression));
    let comparison = parser::parse(&rule.expression).ok().and_then(|expression| comparison_of(&expression));
    Some((rule, parsed, comparison))
}

/// Rejects expressions that need a recorded series or a range longer than [`RETENTION`]. The console evaluates no
/// recording rules, and stores no older samples.
fn check_supported(expression: &Expression) -> Result<(), String> {
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

fn comparison_of(expression: &parser::Expr) -> Option<Comparison> {
    use parser::token::{T_GTE, T_GTR, T_LAND, T_LSS, T_LTE, T_LUNLESS};
    match expression {
        parser::Expr::Paren(inner) => comparison_of(&inner.expr),
        parser::Expr::Binary(binary) => match binary.op.id() {
            // The limit abbreviates further conditions, because the page shows the whole expression of an opened rule.
            joint @ (T_LAND | T_LUNLESS) => comparison_of(&binary.lhs).map(|part| Comparison {
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

fn evaluate(expression: &Expression, store: &Store, at: i64, since: Option<DateTime<Utc>>) -> RuleState {
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
fn largest_absolute(elements: &[Element]) -> Option<f64> {
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
        store.record_scrape(
            1_000,
            "service",
            "one",
            Some("db_connections_active 95\ndb_connections_max 100\n"),
        );
        let rules = rules.evaluate(&store, 1_000);
        assert!(rules.len() > 20, "{}", rules.len());
        for rule in &rules {
            let has_reason = match rule.evaluation.state.as_str() {
                "true" | "false" => rule.evaluation.notes.is_empty(),
                _ => !rule.evaluation.notes.is_empty() && !rule.evaluation.notes[0].contains("supported"),
            };
            assert!(has_reason, "{rule:#?}");
        }
        let pool = rules.iter().find(|rule| rule.name == "DatabasePoolExhausted").unwrap();
        assert_eq!((pool.evaluation.state.as_str(), pool.evaluation.value), ("true", Some(0.95)));
        assert_eq!(pool.evaluation.limit.as_deref(), Some("> 0.9"));
    }

    #[test]
    fn a_limit_abbreviates_further_conditions() {
        let limit = |text: &str| comparison_of(&parser::parse(text).unwrap()).map(|part| part.limit);
        assert_eq!(limit("a >= 5 unless b > 0").as_deref(), Some(">= 5 unless …"));
        assert_eq!(limit("(a > 5) and b > 0").as_deref(), Some("> 5 and …"));
        assert_eq!(limit("a"), None);
    }
}
