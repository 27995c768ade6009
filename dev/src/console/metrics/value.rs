//! The value of an expression, or the reason why the expression has no value.
use super::{Element, Labels};

/// The reason why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("invalid expression: {0}")]
    Syntax(String),
    #[error("unsupported: {0}")]
    Unsupported(String),
}

impl Error {
    pub(super) fn unsupported(what: &impl ToString) -> Self {
        Self::Unsupported(what.to_string())
    }
}

/// The result of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Scalar(f64),
    Vector(Vec<Element>),
}

impl Value {
    /// Returns the elements. A number becomes one element without labels.
    pub fn into_elements(self) -> Vec<Element> {
        match self {
            Self::Scalar(value) => vec![Element { labels: Labels::new(), value }],
            Self::Vector(elements) => elements,
        }
    }
}

/// Applies `change` to every value. Removes the metric names, as `PromQL` does for every computed value.
pub(super) fn map(elements: Vec<Element>, change: impl Fn(f64) -> f64) -> Vec<Element> {
    let changed = |element: Element| Element::unnamed(element.labels, change(element.value));
    elements.into_iter().map(changed).collect()
}
