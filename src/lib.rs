//! axum-orders: orders and payments over HTTP, with everything that production asks for.
pub mod config;
pub mod platform;
