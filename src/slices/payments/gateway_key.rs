//! The gateway key: the idempotency key, and also the reference, of a payment or refund at the gateway.
//!
//! The key is derived from data that the client repeats in each retry: the caller, the `Idempotency-Key`, and the
//! request's fingerprint (method, path and body). A retry therefore has the same key even if the database has lost the
//! payment, for example after a restore, and the gateway charges once. With a random key, the gateway would charge a
//! second time.
use platform::http::idempotency::Claim;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

/// A gateway key: a `UUIDv8` derived from a SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GatewayKey(pub Uuid);

impl GatewayKey {
    /// Derives the gateway key of the payment or refund that a request begins.
    ///
    /// Neither a caller's id nor an `Idempotency-Key` contains a zero byte, and the fingerprint has a fixed length.
    /// Different claims therefore never hash the same bytes.
    pub fn derive(claim: &Claim) -> Self {
        let hash = Sha256::new()
            .chain_update(&claim.scope)
            .chain_update([0])
            .chain_update(&claim.key)
            .chain_update([0])
            .chain_update(claim.fingerprint.as_bytes())
            .finalize();
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(hash).for_each(|(byte, hashed)| *byte = hashed);
        Self(Builder::from_custom_bytes(bytes).into_uuid())
    }
}

impl std::fmt::Display for GatewayKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use platform::http::idempotency::Fingerprint;

    fn derive(scope: &str, key: &str, request: &[u8]) -> GatewayKey {
        let (scope, key) = (scope.to_owned(), key.to_owned());
        GatewayKey::derive(&Claim { scope, key, fingerprint: Fingerprint::of_bytes(request) })
    }

    #[test]
    fn the_same_request_of_the_same_caller_has_the_same_key() {
        let key = derive("ada", "checkout-1", b"pay order 1");
        assert_eq!(key, derive("ada", "checkout-1", b"pay order 1"));
        assert_eq!(key.0.get_version_num(), 8);
        for other in [
            derive("bob", "checkout-1", b"pay order 1"),
            derive("ada", "checkout-2", b"pay order 1"),
            derive("ada", "checkout-1", b"pay order 2"),
            derive("adacheckout-1", "", b"pay order 1"),
        ] {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn a_release_derives_the_same_keys_as_earlier_releases() {
        let key = derive("018f0000-0000-7000-8000-000000000001", "checkout-1", b"POST /v1/orders/1/payments");
        assert_eq!(key.to_string(), "12c975c0-b2d3-8d51-99c9-0655b9ea9b5b");
    }
}
