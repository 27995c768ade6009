//! What every service needs, and what knows nothing of orders.
pub mod alerts;
pub mod audit;
pub mod database;
pub mod http;
pub mod identity;
pub mod ops;
pub mod resilience;
pub mod telemetry;
pub mod workers;
