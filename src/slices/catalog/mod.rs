//! Products and their prices.
//!
//! A price is the current price. Orders keep the price at which they were placed, so a price change here changes no
//! order.
mod errors;
mod model;
mod routes;
mod store;

#[cfg(test)]
pub use self::model::MAX_UNIT_AMOUNT;
pub use self::routes::routes;
