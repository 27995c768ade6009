//! Aggregation and binary operators of `PromQL`.
use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{
    AggregateExpr, BinaryExpr, LabelModifier, VectorMatchCardinality,
    token::{
        T_ADD, T_AVG, T_COUNT, T_DIV, T_EQLC, T_GTE, T_GTR, T_LAND, T_LOR, T_LSS, T_LTE, T_LUNLESS, T_MAX,
    },
    token::{T_MIN, T_MUL, T_NEQ, T_SUB, T_SUM, TokenId},
};

use super::{
    Element, Labels,
    exposition::NAME,
    value::{Error, Value, map},
};

/// Evaluates `sum by (…)` and similar aggregations.
pub(super) fn aggregate(aggregate: &AggregateExpr, elements: Vec<Element>) -> Result<Value, Error> {
    let combine: fn(&[f64]) -> f64 = match aggregate.op.id() {
        T_SUM => |values| values.iter().sum(),
        T_MAX => |values| values.iter().copied().fold(f64::NAN, f64::max),
        T_MIN => |values| values.iter().copied().fold(f64::NAN, f64::min),
        #[expect(clippy::cast_precision_loss, reason = "less than a million series")]
        T_COUNT => |values| values.len() as f64,
        #[expect(clippy::cast_precision_loss, reason = "less than a million series")]
        T_AVG => |values| values.iter().sum::<f64>() / values.len() as f64,
        _ => return Err(Error::unsupported(&aggregate.op)),
    };
    let mut groups: BTreeMap<Labels, Vec<f64>> = BTreeMap::new();
    for Element { labels, value } in elements {
        let group = match &aggregate.modifier {
            None => Labels::new(),
            Some(modifier) => grouping_labels(labels, modifier),
        };
        groups.entry(group).or_default().push(value);
    }
    let combined = groups.into_iter().map(|(labels, values)| Element { labels, value: combine(&values) });
    Ok(Value::Vector(combined.collect()))
}

/// Returns the labels that a modifier (`by`, `without`, `on` or `ignoring`) keeps.
fn grouping_labels(mut labels: Labels, modifier: &LabelModifier) -> Labels {
    let named = |label: &String| modifier.labels().labels.contains(label);
    labels
        .retain(|label, _| if modifier.is_include() { named(label) } else { label != NAME && !named(label) });
    labels
}

/// Evaluates a binary operator.
pub(super) fn binary(binary: &BinaryExpr, left: Value, right: Value) -> Result<Value, Error> {
    let modifier = binary.modifier.as_ref();
    if modifier.is_some_and(|modifier| modifier.return_bool) {
        return Err(Error::unsupported(&"bool"));
    }
    let operator = binary.op.id();
    let set_operator = matches!(operator, T_LAND | T_LOR | T_LUNLESS);
    let compute = if set_operator { None } else { Some(operation(operator, binary)?) };
    let matching = modifier.and_then(|modifier| modifier.matching.as_ref());
    match (left, right, compute) {
        (Value::Scalar(left), Value::Scalar(right), Some(Operation::Arithmetic(compute))) => {
            Ok(Value::Scalar(compute(left, right)))
        }
        (Value::Vector(left), Value::Scalar(right), Some(operation)) => Ok(Value::Vector(match operation {
            Operation::Arithmetic(compute) => map(left, |value| compute(value, right)),
            Operation::Filter(holds) => {
                left.into_iter().filter(|element| holds(element.value, right)).collect()
            }
        })),
        (Value::Scalar(left), Value::Vector(right), Some(operation)) => Ok(Value::Vector(match operation {
            Operation::Arithmetic(compute) => map(right, |value| compute(left, value)),
            Operation::Filter(holds) => {
                right.into_iter().filter(|element| holds(left, element.value)).collect()
            }
        })),
        (Value::Vector(left), Value::Vector(right), Some(operation)) => {
            if modifier.is_some_and(|modifier| modifier.card != VectorMatchCardinality::OneToOne) {
                return Err(Error::unsupported(&"matching many to one"));
            }
            Ok(Value::Vector(match_one_to_one(left, right, matching, &operation)))
        }
        (Value::Vector(left), Value::Vector(right), None) => {
            Ok(Value::Vector(apply_set_operator(operator, left, right, matching)))
        }
        _ => Err(Error::unsupported(&format!("{} between numbers", binary.op))),
    }
}

/// Effect of an operator on two values: an arithmetic result, or a condition that keeps or drops an element.
enum Operation {
    Arithmetic(fn(f64, f64) -> f64),
    Filter(fn(f64, f64) -> bool),
}

fn operation(operator: TokenId, binary: &BinaryExpr) -> Result<Operation, Error> {
    use Operation::{Arithmetic, Filter};
    Ok(match operator {
        T_ADD => Arithmetic(|left, right| left + right),
        T_SUB => Arithmetic(|left, right| left - right),
        T_MUL => Arithmetic(|left, right| left * right),
        T_DIV => Arithmetic(|left, right| left / right),
        T_GTR => Filter(|left, right| left > right),
        T_GTE => Filter(|left, right| left >= right),
        T_LSS => Filter(|left, right| left < right),
        T_LTE => Filter(|left, right| left <= right),
        #[expect(clippy::float_cmp, reason = "PromQL compares exactly")]
        T_EQLC => Filter(|left, right| left == right),
        #[expect(clippy::float_cmp, reason = "PromQL compares exactly")]
        T_NEQ => Filter(|left, right| left != right),
        _ => return Err(Error::unsupported(&binary.op)),
    })
}

/// Returns the labels that must be equal on both sides.
fn signature(labels: &Labels, matching: Option<&LabelModifier>) -> Labels {
    let mut labels = labels.clone();
    if let Some(matching) = matching {
        return grouping_labels(labels, matching);
    }
    labels.remove(NAME);
    labels
}

fn match_one_to_one(
    left: Vec<Element>,
    right: Vec<Element>,
    matching: Option<&LabelModifier>,
    operation: &Operation,
) -> Vec<Element> {
    let right: BTreeMap<Labels, f64> =
        right.into_iter().map(|element| (signature(&element.labels, matching), element.value)).collect();
    let pair = |element: Element| {
        let signature = signature(&element.labels, matching);
        let other = *right.get(&signature)?;
        match operation {
            Operation::Arithmetic(compute) => {
                Some(Element { labels: signature, value: compute(element.value, other) })
            }
            Operation::Filter(holds) => holds(element.value, other).then_some(element),
        }
    };
    left.into_iter().filter_map(pair).collect()
}

fn apply_set_operator(
    operator: TokenId,
    mut left: Vec<Element>,
    right: Vec<Element>,
    matching: Option<&LabelModifier>,
) -> Vec<Element> {
    let signatures = |elements: &[Element]| -> BTreeSet<Labels> {
        elements.iter().map(|element| signature(&element.labels, matching)).collect()
    };
    if operator == T_LOR {
        let signatures_of_other = signatures(&left);
        left.extend(
            right
                .into_iter()
                .filter(|element| !signatures_of_other.contains(&signature(&element.labels, matching))),
        );
    } else {
        let signatures_of_other = signatures(&right);
        let keep_matching = operator == T_LAND;
        left.retain(|element| {
            signatures_of_other.contains(&signature(&element.labels, matching)) == keep_matching
        });
    }
    left
}
