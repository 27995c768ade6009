//! A customer, as every service has them.
use crate::example::traffic::memory::Memory;

/// A customer.
#[derive(Debug, Default)]
pub(crate) struct Customer {
    pub(crate) identity: Option<Identity>,
    pub(crate) token: Option<String>,
    /// Whether a registration or a login is in flight.
    pub(crate) at_the_door: bool,
    /// What they remember of what they have done.
    pub(crate) memory: Memory,
}

/// Who a customer is to the service.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) email: String,
    pub(crate) password: String,
}
