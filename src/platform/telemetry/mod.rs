//! Logs, traces, metrics, and the correlation that ties them together.
pub mod correlation;
pub mod logs;
pub mod metrics;
pub mod traces;
