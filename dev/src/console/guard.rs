//! Access control of the console: only its own pages and programs of this machine are allowed, not other websites in a
//! local browser.
//!
//! The console shows log lines, and turns simulated faults on and off, so it responds only under its own local
//! addresses. The `Origin` and `Sec-Fetch-Site` headers identify requests from pages of another origin. The console
//! rejects these requests, except a GET that opens one of its pages in a tab, as a link does. A foreign host name that
//! resolves to 127.0.0.1 (DNS rebinding) is not among the console's addresses and is rejected too.
use std::net::SocketAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Policy that allows only the console's own scripts, styles, images and requests.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn guard(State(address): State<SocketAddr>, request: Request, next: Next) -> Response {
    if let Err(reason) = check_origin(&request, address) {
        return (StatusCode::FORBIDDEN, reason).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Another build may serve other content under the same URLs, so the browser must not store this response.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn check_origin(request: &Request, address: SocketAddr) -> Result<(), &'static str> {
    let headers = request.headers();
    // HTTP/2 sends the host in the URI of the request.
    let host = request.uri().authority().map(Authority::as_str).or_else(|| text(headers, &header::HOST));
    let own_addresses = [address.to_string(), format!("localhost:{}", address.port())];
    if !host.is_some_and(|host| own_addresses.iter().any(|own| own == host)) {
        return Err("the console accepts requests for its own address only\n");
    }
    let origin = text(headers, &header::ORIGIN);
    if origin.is_some_and(|origin| !own_addresses.iter().any(|own| origin == format!("http://{own}"))) {
        return Err("the console accepts requests of its own pages only\n");
    }
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    let is_navigation = request.method() == Method::GET
        && headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
        && headers.get("sec-fetch-dest").is_some_and(|destination| destination == "document");
    match site {
        Some("cross-site" | "same-site") if !is_navigation => {
            Err("the console accepts requests of its own pages only\n")
        }
        _ => Ok(()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
