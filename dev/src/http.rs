//! The HTTP client of this crate, for plain HTTP to servers of the local environment and of tests.
use std::time::Duration;

/// Returns a client with a request timeout. The client uses no proxy and trusts no certificate, because all servers are
/// on this machine or in its compose network.
pub fn client(timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    // reqwest requires a TLS provider even for plain HTTP. The provider is installed once per process; a second
    // installation fails and keeps the first provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(timeout).build()
}
