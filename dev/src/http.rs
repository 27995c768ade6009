//! The HTTP client of the tools: plain HTTP to servers of the local environment.
use std::time::Duration;

/// A client that gives up on a request after `timeout`. It uses no proxy and trusts no certificate: whatever it
/// talks to is on this machine or in this compose network.
pub fn client(timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    // reqwest wants a TLS provider even where only plain HTTP is spoken. It is installed once in a process, and
    // whoever comes second finds the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(timeout).build()
}
