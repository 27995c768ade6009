//! Living with dependencies that fail.
pub mod breaker;
pub mod crash;
pub mod retry;
