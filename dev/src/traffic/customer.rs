//! The state of a simulated customer: the user account, the session, and the results of earlier actions in the domain.
use crate::example::traffic::memory::Memory;

/// A customer.
#[derive(Debug, Default)]
pub(crate) struct Customer {
    pub(crate) identity: Option<Identity>,
    pub(crate) token: Option<String>,
    /// True while a registration or a login is in flight.
    pub(crate) is_logging_in: bool,
    /// The customer's state in the domain, as known from the responses to earlier actions.
    pub(crate) memory: Memory,
}

/// The user account of a customer.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) email: String,
    pub(crate) password: String,
}
