//! What every route has: headers, limits, problems, and its place in the OpenAPI document.
mod headers;
mod limits;
pub(crate) mod openapi;
pub(crate) mod panics;
pub(crate) mod problems;
