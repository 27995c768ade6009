//! The subset of `PromQL` in the console's charts and figures, and in the rules that the console evaluates. The
//! evaluation of any other function or operator returns an error with the name of that function or operator.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use promql_parser::parser::{self, Call, Expr, MatrixSelector, Offset, VectorSelector};

use super::{
    Element, Labels, Store,
    exposition::NAME,
    functions::{self, Range},
    store::{Sample, milliseconds},
    value::{Error, Value, map},
    vectors,
};

/// Maximum age of the current value of a series, in milliseconds. A series whose last sample is a stale marker has no
/// current value.
const LOOKBACK_MS: i64 = 5 * 60 * 1000;

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Expression(Arc<Expr>);

impl Expression {
    /// Parses an expression.
    pub fn parse(text: &str) -> Result<Self, Error> {
        parser::parse(text).map(|expression| Self(Arc::new(expression))).map_err(Error::Syntax)
    }

    /// Evaluates the expression at a time, in milliseconds since 1970.
    pub fn value(&self, store: &Store, at: i64) -> Result<Value, Error> {
        Evaluation { store, at }.value(&self.0)
    }

    /// Returns the longest range in the expression.
    pub fn longest_range(&self) -> Duration {
        longest_range(&self.0)
    }

    /// Returns the names of the metrics that the expression uses.
    pub fn metrics(&self) -> Vec<String> {
        let mut names = Vec::new();
        collect_names(&self.0, &mut names);
        names
    }
}

fn operands(expression: &Expr) -> Vec<&Expr> {
    match expression {
        Expr::Aggregate(aggregate) => vec![&aggregate.expr],
        Expr::Unary(unary) => vec![&unary.expr],
        Expr::Binary(binary) => vec![&binary.lhs, &binary.rhs],
        Expr::Paren(inner) => vec![&inner.expr],
        Expr::Subquery(inner) => vec![&inner.expr],
        Expr::Call(call) => call.args.args.iter().map(AsRef::as_ref).collect(),
        _ => Vec::new(),
    }
}

fn longest_range(expression: &Expr) -> Duration {
    match expression {
        Expr::MatrixSelector(selector) => selector.range,
        other => operands(other).into_iter().map(longest_range).max().unwrap_or_default(),
    }
}

fn collect_names(expression: &Expr, names: &mut Vec<String>) {
    match expression {
        Expr::VectorSelector(selector) => names.extend(selector.name.clone()),
        Expr::MatrixSelector(selector) => names.extend(selector.vs.name.clone()),
        other => operands(other).into_iter().for_each(|operand| collect_names(operand, names)),
    }
}

/// The store at one evaluation time.
struct Evaluation<'a> {
    store: &'a Store,
    at: i64,
}

impl Evaluation<'_> {
    fn value(&self, expression: &Expr) -> Result<Value, Error> {
        match expression {
            Expr::NumberLiteral(number) => Ok(Value::Scalar(number.val)),
            Expr::Paren(inner) => self.value(&inner.expr),
            Expr::VectorSelector(selector) => self.instant_vector(selector).map(Value::Vector),
            Expr::Call(call) => self.call(call),
            Expr::Unary(unary) => Ok(match self.value(&unary.expr)? {
                Value::Scalar(value) => Value::Scalar(-value),
                Value::Vector(elements) => Value::Vector(map(elements, |value| -value)),
            }),
            Expr::Aggregate(aggregate) => vectors::aggregate(aggregate, self.vector(&aggregate.expr)?),
            Expr::Binary(binary) => {
                vectors::binary(binary, self.value(&binary.lhs)?, self.value(&binary.rhs)?)
            }
            other => Err(Error::unsupported(&other)),
        }
    }

    fn vector(&self, expression: &Expr) -> Result<Vec<Element>, Error> {
        self.value(expression).map(Value::into_elements)
    }

    fn instant_vector(&self, selector: &VectorSelector) -> Result<Vec<Element>, Error> {
        let end = self.end_of(selector)?;
        let range = Range { start: end - LOOKBACK_MS, end };
        let series = self.store.select(selector.name.as_deref(), &selector.matchers);
        let elements = series.filter_map(|series| {
            let last = series.samples.iter().rev().find(|sample| sample.at <= end)?;
            (range.contains(last.at) && !last.is_stale())
                .then(|| Element { labels: series.labels.clone(), value: last.value })
        });
        Ok(elements.collect())
    }

    fn call(&self, call: &Call) -> Result<Value, Error> {
        let arguments: Vec<&Expr> = call.args.args.iter().map(AsRef::as_ref).collect();
        match (call.func.name, arguments.as_slice()) {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are exact in an f64")]
            ("time", []) => Ok(Value::Scalar(self.at as f64 / 1000.0)),
            ("vector", [number]) => Ok(Value::Vector(self.vector(number)?)),
            ("absent", [vector]) => self.absent(vector),
            ("histogram_quantile", [level, buckets]) => {
                let Value::Scalar(level) = self.value(level)? else {
                    return Err(Error::unsupported(&"a quantile that is a vector"));
                };
                Ok(Value::Vector(quantiles(level, self.vector(buckets)?)))
            }
            (name, [Expr::MatrixSelector(selector)]) => self.over_time(name, selector),
            (name, _) => Err(Error::unsupported(&name)),
        }
    }

    fn over_time(&self, name: &str, selector: &MatrixSelector) -> Result<Value, Error> {
        let end = self.end_of(&selector.vs)?;
        let range = Range { start: end - milliseconds(selector.range), end };
        let function: fn(&[Sample], Range) -> Option<f64> = match name {
            "increase" | "rate" => functions::increase,
            "changes" => |samples, _| functions::changes(samples),
            "avg_over_time" => |samples, _| functions::mean(samples),
            other => return Err(Error::unsupported(&other)),
        };
        let per = if name == "rate" { selector.range.as_secs_f64() } else { 1.0 };
        let series = self.store.select(selector.vs.name.as_deref(), &selector.vs.matchers);
        let values = series.filter_map(|series| {
            let within =
                series.samples.iter().filter(|sample| range.contains(sample.at) && !sample.is_stale());
            let within: Vec<Sample> = within.copied().collect();
            let value = function(&within, range)?;
            Some(Element::unnamed(series.labels.clone(), value / per))
        });
        Ok(Value::Vector(values.collect()))
    }

    /// Evaluates `absent`: returns one element if the expression has no element. If the expression is a selector, the
    /// element has the labels that the selector compares with `=`.
    fn absent(&self, expression: &Expr) -> Result<Value, Error> {
        if !self.vector(expression)?.is_empty() {
            return Ok(Value::Vector(Vec::new()));
        }
        let mut labels = Labels::new();
        if let Expr::VectorSelector(selector) = expression {
            let equal =
                selector.matchers.matchers.iter().filter(|matcher| {
                    matcher.op == promql_parser::label::MatchOp::Equal && matcher.name != NAME
                });
            labels.extend(equal.map(|matcher| (matcher.name.clone(), matcher.value.clone())));
        }
        Ok(Value::Vector(vec![Element { labels, value: 1.0 }]))
    }

    fn end_of(&self, selector: &VectorSelector) -> Result<i64, Error> {
        match (&selector.at, &selector.offset) {
            (Some(at), _) => Err(Error::unsupported(at)),
            (None, None) => Ok(self.at),
            (None, Some(Offset::Pos(back))) => Ok(self.at - milliseconds(*back)),
            (None, Some(Offset::Neg(ahead))) => Ok(self.at + milliseconds(*ahead)),
        }
    }
}

fn quantiles(level: f64, buckets: Vec<Element>) -> Vec<Element> {
    let mut histograms: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for Element { mut labels, value } in buckets {
        let bound = labels.remove("le").and_then(|bound| bound.parse().ok());
        labels.remove(NAME);
        if let Some(bound) = bound {
            histograms.entry(labels).or_default().push((bound, value));
        }
    }
    let quantile = |(labels, buckets)| Element { labels, value: functions::quantile(level, buckets) };
    histograms.into_iter().map(quantile).collect()
}
