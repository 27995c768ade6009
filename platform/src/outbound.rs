//! The client for HTTP calls to other services, the TLS provider of all connections, and the redaction and the
//! plaintext check of URLs.
//!
//! **Proxies.** No client uses a proxy. By default, reqwest takes a proxy from `HTTP_PROXY` and similar variables,
//! which are often set for another program. That proxy could read the bodies and credentials of `http` calls. The gRPC
//! exporters of spans and log records ignore these variables in any case. `docs/settings.md` documents that the
//! variables have no effect.
//!
//! **Certificates.** Every client trusts the certificates of the operating system, or those of `SSL_CERT_FILE` and
//! `SSL_CERT_DIR`. The connections to the database and the exporters of spans and log records do the same.
use reqwest::{ClientBuilder, redirect};
use url::{Host, Url};

/// The text in place of a secret part of a URL, as OpenTelemetry's semantic conventions define it for `url.full`.
const REDACTED: &str = "REDACTED";

/// Returns the builder of a client that uses no proxy and follows no redirect. A redirect could send the call to a host
/// that is not configured, or turn a POST into a GET.
pub fn client() -> ClientBuilder {
    install_tls_provider();
    reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none())
}

/// Installs `ring` as the cryptography provider of all TLS connections.
pub fn install_tls_provider() {
    // Fails only if a provider is already installed.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}

/// Returns the URL without secrets, for spans, logs and the output of commands. `REDACTED` replaces the user, the
/// password and the query, and the fragment is removed.
pub fn redacted(url: &Url) -> Url {
    let mut shown = url.clone();
    if !url.username().is_empty() || url.password().is_some() {
        // Both calls fail only if the URL cannot have a user.
        let _has_no_user = shown.set_username(REDACTED);
        let _has_no_password = shown.set_password(Some(REDACTED));
    }
    if url.query().is_some() {
        shown.set_query(Some(REDACTED));
    }
    shown.set_fragment(None);
    shown
}

/// Returns the text of a setting without secrets, for the output of commands. URLs with a host are [`redacted`]. Other
/// text with `@` or `?` is replaced as a whole, because it may be a mistyped URL or a URL without a host, and contain
/// a password.
pub fn redacted_text(text: &str) -> String {
    match Url::parse(text.trim()) {
        Ok(url) if url.has_host() && (url.query().is_some() || text.contains(['@', '#'])) => {
            redacted(&url).to_string()
        }
        Ok(url) if url.has_host() => text.to_owned(),
        _ if text.contains(['@', '?']) => "<redacted>".to_owned(),
        _ => text.to_owned(),
    }
}

/// Returns whether calls to this URL cross a network without TLS.
pub fn is_plaintext(url: &Url) -> bool {
    let is_local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "http" && !is_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_password_and_query_of_a_url_are_redacted() {
        for (url, shown) in [
            ("https://shop.example/v1/things", "https://shop.example/v1/things"),
            ("https://ada:s3cret@shop.example/", "https://REDACTED:REDACTED@shop.example/"),
            ("https://s3cret@shop.example/", "https://REDACTED:REDACTED@shop.example/"),
            ("https://:s3cret@shop.example/", "https://REDACTED:REDACTED@shop.example/"),
            ("https://shop.example/a?token=s3cret&s3cret", "https://shop.example/a?REDACTED"),
            ("https://shop.example/a#s3cret", "https://shop.example/a"),
        ] {
            assert_eq!(redacted(&Url::parse(url).unwrap()).as_str(), shown);
            assert_eq!(redacted_text(url), shown);
        }
    }

    #[test]
    fn only_text_that_may_hold_a_password_is_changed() {
        for text in [
            "127.0.0.1:8080",
            "https://shop.example",
            "info,app=debug",
            "https://a.example,https://b.example",
            "",
        ] {
            assert_eq!(redacted_text(text), text);
        }
        for text in
            ["ada:s3cret@shop.example", "https//ada:s3cret@shop.example", "postgres:///shop?password=s3cret"]
        {
            assert_eq!(redacted_text(text), "<redacted>");
        }
    }

    #[test]
    fn plaintext_is_http_to_any_host_but_loopback() {
        for url in
            ["http://shop.example", "http://10.0.0.1:80", "http://localhost.example", "http://[2001:db8::1]"]
        {
            assert!(is_plaintext(&Url::parse(url).unwrap()), "{url}");
        }
        for url in ["https://shop.example", "http://localhost:1", "http://127.1.2.3", "http://[::1]:80"] {
            assert!(!is_plaintext(&Url::parse(url).unwrap()), "{url}");
        }
    }
}
