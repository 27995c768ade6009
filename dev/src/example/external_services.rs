//! The addresses of the external services, and the comparison of the external services' records with the service's
//! tables, for the rest of this crate.
use url::Url;

use super::invariants;
use crate::console::Comparison;

/// The addresses of the external services.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub gateway: Url,
}

/// Returns the comparison of the service's tables with the records of the external services. Callers also accept
/// `None`, for a service without such records.
pub fn comparison(owner_url: &Url, external_services: &Addresses) -> Option<Comparison> {
    Some(invariants::console_comparison(owner_url.clone(), external_services.gateway.clone()))
}
