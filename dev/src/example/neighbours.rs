//! The services that ours calls, as the rest of this crate knows them.
use url::Url;

use super::invariants;
use crate::console::Comparison;

/// The addresses of the services that ours calls.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub gateway: Url,
}

/// Returns what compares the service's tables with the records of those services.
pub fn comparison(owner_url: &Url, neighbours: &Addresses) -> Option<Comparison> {
    Some(invariants::for_the_console(owner_url.clone(), neighbours.gateway.clone()))
}
