//! Behaviour that all routes share: headers, limits, problems, and the OpenAPI document. Also panics of workers.
mod headers;
mod limits;
pub(crate) mod openapi;
pub(crate) mod panics;
pub(crate) mod problems;
