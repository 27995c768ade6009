//! HTTP, inbound and outbound.
pub mod client_address;
pub mod limits;
pub mod observe;
pub mod problem;
pub mod server;
