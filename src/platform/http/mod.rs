//! HTTP, inbound and outbound.
pub mod client_address;
pub mod correlation;
pub mod limits;
pub mod problem;
pub mod server;
