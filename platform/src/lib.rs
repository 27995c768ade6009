//! The parts that every service needs. A service depends on this crate, never the reverse, and the crate contains no
//! domain logic.
//!
//! - [`settings`]: the declaration and parsing of settings; each module declares its own
//! - [`http`]: the listener, limits, extractors, problems, pagination and idempotency keys
//! - [`identity`]: the caller of a request, and the extractors that require a role
//! - [`database`]: the pool, transactions, measured statements, checks, and the monitor
//! - [`migrations`]: applying the migrations, starting an audit epoch, and setting the privileges and settings of the
//!   service's role
//! - [`audit`]: the tamper-evident audit log: recording, sealing, verification, export
//! - [`telemetry`]: logs, traces, metrics and correlation ids
//! - [`ops`]: the operations listener: probes, metrics, log level
//! - [`alerts`]: alerts that the service itself sends
//! - [`outbound`]: the client for HTTP calls to other services
//! - [`resilience`]: circuit breaker, retries, crash points
//! - [`workers`]: periodic work, and tasks that outlive a request
//! - [`shutdown`]: signals and the timeouts of a shutdown
//! - [`build_info`]: the name, version and commit of the service
pub mod alerts;
pub mod audit;
pub mod build_info;
pub mod database;
pub mod http;
pub mod identity;
pub mod migrations;
pub mod ops;
pub mod outbound;
pub mod resilience;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod workers;

#[cfg(test)]
mod instruction_counts;
