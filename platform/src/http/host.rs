//! Validation of the `Host` header, as RFC 9112, section 3.2, requires.
//!
//! The router ignores the host, but proxies and caches in front of the service use the host to select a backend or a
//! stored response. Two of them may parse an invalid host differently, so a request with an invalid host is rejected.
use std::net::Ipv6Addr;

use axum::{
    extract::Request,
    http::{HeaderValue, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::problem::Problem;

/// Rejects an HTTP/1.1 request without a `Host` header, and any request with several `Host` headers or an invalid one.
pub async fn require_host(request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let is_valid = match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_host(host),
        // HTTP/1.0 does not require `Host`, and HTTP/2 has `:authority` instead.
        (None, _) => request.version() != Version::HTTP_11,
        (Some(_), Some(_)) => false,
    };
    if is_valid {
        next.run(request).await
    } else {
        Problem::malformed("Send one Host header with a host and an optional port.").into_response()
    }
}

/// Returns whether the value is `uri-host [ ":" port ]`, where each part may be empty (RFC 3986, section 3.2).
fn is_host(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let (host_is_valid, rest) = match text.strip_prefix('[').map(|text| text.split_once(']')) {
        Some(Some((address, rest))) => (address.parse::<Ipv6Addr>().is_ok(), rest),
        Some(None) => return false,
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (name.bytes().all(is_name_byte), rest)
        }
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    host_is_valid && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, http::StatusCode, middleware::from_fn, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn status(version: Version, hosts: &[&str]) -> StatusCode {
        let router = Router::new().route("/", get(async || ())).layer(from_fn(require_host));
        let mut request = Request::get("/").version(version);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn one_valid_host_is_required_in_http_1_1() {
        assert_eq!(status(Version::HTTP_11, &[]).await, StatusCode::BAD_REQUEST);
        assert_eq!(status(Version::HTTP_10, &[]).await, StatusCode::OK);
        assert_eq!(status(Version::HTTP_2, &[]).await, StatusCode::OK);
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert_eq!(status(version, &["shop.example"]).await, StatusCode::OK);
            assert_eq!(status(version, &["shop.example", "shop.example"]).await, StatusCode::BAD_REQUEST);
            assert_eq!(status(version, &["shop example"]).await, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for valid in ["", "shop", "shop:", "shop:8080", "192.0.2.1:80", "[2001:db8::1]", "[::1]:80", "%41_b"]
        {
            assert!(is_host(&HeaderValue::from_str(valid).unwrap()), "{valid}");
        }
        for invalid in [
            "a b",
            "user@shop",
            "shop/path",
            "shop:port",
            "shop:80:80",
            "[::1",
            "[shop]",
            "[::1]80",
            "\u{e4}",
            "a?b",
            "a#b",
        ] {
            assert!(!is_host(&HeaderValue::from_bytes(invalid.as_bytes()).unwrap()), "{invalid}");
        }
    }
}
