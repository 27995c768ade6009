//! Orders: what was ordered, at which price, and whether it is paid.
//!
//! The rules: prices come from the catalog and never from the client; an order keeps the price that it was placed
//! at; only an order that nobody is paying can be cancelled.
mod metrics;
mod model;
mod routes;
mod store;

pub use self::metrics::initialize as initialize_metrics;
pub use self::model::OrderStatus;
pub use self::routes::routes;
pub use self::store::{Payable, payable};
