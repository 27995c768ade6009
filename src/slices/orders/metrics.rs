//! The metrics of orders.
platform::metrics! {
    /// Orders placed.
    pub(super) static ORDERS_CREATED: counter = "orders_created_total";
}
