//! Products and their prices.
//!
//! The rule: a price is that of the moment. Orders keep the price that they were placed at; who changes a price
//! here changes no order.
mod model;
mod routes;
mod store;

#[cfg(test)]
pub use self::model::HIGHEST_UNIT_AMOUNT;
pub use self::routes::routes;
