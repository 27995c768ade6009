//! Products and their prices.
//!
//! The catalog has only current prices. An order keeps the prices at which it was placed, so a price change in the
//! catalog changes no order.
mod model;
mod routes;
mod store;

#[cfg(test)]
pub use self::model::MAX_UNIT_AMOUNT;
pub use self::routes::routes;
