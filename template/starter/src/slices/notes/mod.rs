//! Notes of customers: the pattern for a slice of your own.
//!
//! Customers create, read and change their own notes. Support and admins read the notes of all customers, which is
//! audited. The response for another customer's note is the same as for a missing note (404).
mod metrics;
mod model;
mod routes;
mod store;

pub use self::metrics::initialize as initialize_metrics;
pub use self::routes::routes;
