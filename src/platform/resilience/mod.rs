//! Living with dependencies that fail.
pub mod breaker;
pub mod retry;
