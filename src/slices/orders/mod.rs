//! Orders: their items, prices and payment status.
//!
//! Three rules:
//!
//! - The service reads prices from the catalog, and never from the request.
//! - An order keeps the names and prices of its products at the time of placement.
//! - Only an unpaid order without a payment in progress can be cancelled.
mod metrics;
mod model;
mod routes;
mod store;

pub use self::metrics::initialize as initialize_metrics;
pub use self::model::OrderStatus;
pub use self::routes::routes;
pub use self::store::{PayableOrder, payable};
