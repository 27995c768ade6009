//! The view *Now*: the charts of the last 15 minutes, the current figures, and the table of routes.
use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::{
    metrics::{Element, Error, Expression, Labels, RETENTION, Store},
    panels::{DATABASE_PANELS, FIGURES, Panel, REQUEST_PANELS, or_dash},
};
use crate::example;

/// Window of rates. The window contains several scrapes, and is short enough to show a fault within seconds.
const WINDOW: &str = "30s";

/// Columns of the table of routes. Each expression is grouped by method and path.
const COLUMNS: [(&str, &str); 4] = [
    ("rate", "sum by (method, path) (rate(http_requests_total[WINDOW]))"),
    ("errors", r#"sum by (method, path) (rate(http_requests_total{status=~"5.."}[WINDOW]))"#),
    (
        "p50",
        "histogram_quantile(0.5, sum by (method, path, le) (rate(http_request_duration_seconds_bucket[WINDOW])))",
    ),
    (
        "p95",
        "histogram_quantile(0.95, sum by (method, path, le) (rate(http_request_duration_seconds_bucket[WINDOW])))",
    ),
];

/// A chart without its values.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    id: &'static str,
    title: &'static str,
    unit: &'static str,
    /// Names of the lines, in display order. A name in braces is a label, and each value of the label names one line.
    lines: Vec<&'static str>,
    /// The `PromQL` expressions of the lines.
    expressions: Vec<String>,
}

/// The values of all charts and figures after one scrape.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Snapshot {
    /// Milliseconds since 1970.
    pub(super) at: i64,
    /// The values by the id of the chart and the name of the line. A line without a finite value is missing.
    charts: BTreeMap<&'static str, BTreeMap<String, f64>>,
    pub(super) figures: BTreeMap<&'static str, f64>,
}

/// A row of the table of routes.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Route {
    method: String,
    path: String,
    #[serde(flatten)]
    values: BTreeMap<&'static str, f64>,
}

type NamedExpression<'a> = (&'a str, Expression);

/// The expressions and their results.
pub(super) struct Overview {
    panels: Vec<(&'static str, Vec<NamedExpression<'static>>)>,
    columns: Vec<NamedExpression<'static>>,
    figures: Vec<NamedExpression<'static>>,
    pub(super) points: VecDeque<Snapshot>,
    pub(super) routes: Vec<Route>,
}

/// Returns every chart in display order.
fn panels() -> impl Iterator<Item = &'static Panel> {
    REQUEST_PANELS.iter().chain(example::PANELS).chain(DATABASE_PANELS)
}

fn with_window(expression: &str) -> String {
    expression.replace("WINDOW", WINDOW)
}

fn parse_all(
    expressions: &'static [(&'static str, &'static str)],
) -> Result<Vec<NamedExpression<'static>>, Error> {
    let read = |(name, text): &(&'static str, &str)| Ok((*name, Expression::parse(&with_window(text))?));
    expressions.iter().map(read).collect()
}

/// Returns the charts of the view.
pub(super) fn charts() -> Vec<Chart> {
    let chart = |panel: &Panel| Chart {
        id: panel.id,
        title: panel.title,
        unit: panel.unit,
        lines: panel.lines.iter().map(|(name, _)| *name).collect(),
        expressions: panel.lines.iter().map(|(_, expression)| with_window(expression)).collect(),
    };
    panels().map(chart).collect()
}

impl Overview {
    pub(super) fn new() -> Result<Self, Error> {
        let panels = panels().map(|panel| Ok((panel.id, parse_all(panel.lines)?)));
        Ok(Self {
            panels: panels.collect::<Result<_, Error>>()?,
            columns: parse_all(&COLUMNS)?,
            figures: [parse_all(FIGURES)?, parse_all(example::FIGURES)?].concat(),
            points: VecDeque::new(),
            routes: Vec::new(),
        })
    }

    /// Evaluates all expressions at the time `at`, in milliseconds since 1970, and stores the results.
    pub(super) fn compute(&mut self, store: &Store, at: i64) -> Snapshot {
        let value = |expression: &Expression| {
            let elements = expression.value(store, at).map(super::metrics::Value::into_elements);
            elements.unwrap_or_default().into_iter().filter(|element| element.value.is_finite())
        };
        let mut charts = BTreeMap::new();
        for (id, expressions) in &self.panels {
            let mut lines = BTreeMap::new();
            for (name, expression) in expressions {
                lines.extend(value(expression).map(|element| (line_name(name, &element), element.value)));
            }
            charts.insert(*id, lines);
        }
        let figure =
            |(name, expression): &NamedExpression<'static>| Some((*name, value(expression).next()?.value));
        let figures = self.figures.iter().filter_map(figure).collect();

        let mut routes: BTreeMap<Labels, Route> = BTreeMap::new();
        for (column, expression) in &self.columns {
            for element in value(expression) {
                routes.entry(element.labels).or_default().values.insert(column, element.value);
            }
        }
        let label = |labels: &Labels, name: &str| labels.get(name).cloned().unwrap_or_default();
        let named = routes.into_iter().map(|(labels, route)| Route {
            method: label(&labels, "method"),
            path: label(&labels, "path"),
            ..route
        });
        self.routes =
            named.filter(|route| route.values.get("rate").is_some_and(|rate| *rate > 0.0)).collect();

        let point = Snapshot { at, charts, figures };
        self.points.push_back(point.clone());
        let oldest = at - i64::try_from(RETENTION.as_millis()).unwrap_or(i64::MAX);
        while self.points.front().is_some_and(|point| point.at < oldest) {
            self.points.pop_front();
        }
        point
    }
}

impl Snapshot {
    /// Returns the status line, for a terminal of 80 columns.
    pub(super) fn status_line(&self) -> String {
        let figure = |name: &str| self.figures.get(name).copied();
        format!(
            "{} req/s · p95 {} ms · {} errors/s · {}",
            or_dash(figure("requests"), 1),
            or_dash(figure("p95").map(|seconds| seconds * 1000.0), 0),
            or_dash(figure("errors"), 1),
            example::status_line(&self.figures),
        )
    }
}

/// Returns the name of a line. A name in braces is replaced with the element's value of this label.
fn line_name(name: &str, element: &Element) -> String {
    match name.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
        Some(label) => element.labels.get(label).cloned().unwrap_or_default(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expression_can_be_computed() {
        let mut overview = Overview::new().unwrap();
        let store = Store::default();
        for (_, expression) in overview.panels.iter().flat_map(|(_, lines)| lines) {
            expression.value(&store, 0).unwrap();
        }
        for (_, expression) in overview.columns.iter().chain(&overview.figures) {
            expression.value(&store, 0).unwrap();
        }
        overview.compute(&store, 0);
    }

    #[test]
    fn a_missing_figure_is_shown_as_a_dash() {
        let line = Overview::new().unwrap().compute(&Store::default(), 0).status_line();
        assert!(line.starts_with("– req/s · p95 – ms · – errors/s · – "), "{line}");
    }
}
