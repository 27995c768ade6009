//! Behaviour of every route: headers, limits, panics, problems, and the OpenAPI document.
mod headers;
mod limits;
pub(crate) mod openapi;
pub(crate) mod panics;
pub(crate) mod problems;
