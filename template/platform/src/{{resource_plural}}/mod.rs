//! The {{resource_plural_words}}: what customers keep here. The pattern for a slice of one's own.
//!
//! The rules: customers see and change their own; support and admins see all, which is audited; what somebody else
//! owns is not there (404).
mod metrics;
mod model;
mod routes;
mod store;

pub use self::metrics::initialise as initialise_metrics;
pub use self::routes::routes;
