//! Inbound HTTP: the listener and its settings, middleware, request extractors, idempotency keys, pagination,
//! timestamps and problem responses.
pub mod accept;
pub mod client_address;
pub mod extract;
pub mod host;
pub mod idempotency;
pub mod limits;
pub mod network_slots;
pub mod pagination;
pub mod problem;
pub mod request_telemetry;
pub mod server;
mod settings;
pub mod timestamp;

pub use self::settings::Settings;
