//! The reasons why a request about the catalog is rejected, or fails.

/// A rejected or failed request about the catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Another product has the SKU.
    #[error("another product has this sku")]
    SkuTaken,
    /// There is no such product.
    #[error("there is no such product")]
    ProductNotFound,
    /// The statement failed, or the database is unreachable.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}
