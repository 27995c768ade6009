//! A customer, independent of the domain.
use crate::example::traffic::memory::Memory;

/// A customer.
#[derive(Debug, Default)]
pub(crate) struct Customer {
    pub(crate) identity: Option<Identity>,
    pub(crate) token: Option<String>,
    /// True while a registration or a login is in flight.
    pub(crate) is_logging_in: bool,
    /// The customer's memory of earlier actions.
    pub(crate) memory: Memory,
}

/// A customer's account and session at the service.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) email: String,
    pub(crate) password: String,
}
