//! The reasons why a request about an order is rejected.
use uuid::Uuid;

/// A rejected request about an order.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The products of these lines do not exist, or are not active. Lines are counted from 0.
    #[error("the products of the lines {0:?} cannot be ordered")]
    NotForSale(Vec<usize>),
    /// The products of the basket have several currencies.
    #[error("the products have several currencies")]
    SeveralCurrencies,
    /// The order was not placed, but the later search for the reason found that all of its products can be ordered in
    /// one currency. The catalog changed in between, so a retry can succeed. If the idempotency key is already claimed,
    /// the client gets the stored response instead of this error.
    #[error("the catalog changed during the request")]
    CatalogChanged,
    /// There is no such order, or it belongs to another customer.
    #[error("there is no order {0}, or it belongs to another customer")]
    NotFound(Uuid),
    /// A payment of the order is in progress.
    #[error("a payment of the order is in progress")]
    PaymentInProgress,
    /// The order is cancelled already.
    #[error("the order is cancelled already")]
    AlreadyCancelled,
    /// The order was paid. The payment may have been refunded since then.
    #[error("the order is paid")]
    AlreadyPaid,
}
