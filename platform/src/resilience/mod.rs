//! Resilience against failing dependencies: circuit breaker, retries, and crash points for tests.
pub mod breaker;
pub mod crash;
pub mod retry;
