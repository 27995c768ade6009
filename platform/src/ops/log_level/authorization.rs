//! The authorization of log level changes. Without it, any caller could turn logging off, and so hide later actions.
//!
//! - The request's `Host` must be loopback or the listener's own address. For a listener on all addresses, `Host` may
//!   be any IP address. This rule prevents DNS rebinding, in which a web page in an operator's browser resolves its own
//!   name to the listener's address. The page's requests then come from the operator's machine, but their `Host` is the
//!   page's name.
//! - A caller that is not on loopback must send the token that `OPS_TOKEN` sets. If `OPS_TOKEN` is not set, only
//!   loopback callers may change the level.
use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, Uri, header, uri::Authority};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::http::problem::{self, Problem};

/// The rule that decides which callers may change the log level.
pub(super) struct LogLevelAuth {
    /// The listener's address.
    pub(super) address: SocketAddr,
    /// The token for callers that are not on loopback.
    pub(super) token: Option<SecretString>,
}

/// A rejected change of the log level.
pub(super) struct Rejection {
    /// `foreign_host`, `not_loopback` or `bad_token`.
    pub(super) reason: &'static str,
    /// The problem that the caller receives.
    pub(super) problem: Problem,
}

impl LogLevelAuth {
    /// Returns `Ok` if this caller may change the log level, otherwise the rejection.
    pub(super) fn admit(&self, peer: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Rejection> {
        if !self.is_own_host(uri, headers) {
            let detail = "Host must be loopback or the address of this listener.";
            let problem = Problem::new(problem::FORBIDDEN).detail(detail);
            return Err(Rejection { reason: "foreign_host", problem });
        }
        if peer.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let Some(token) = &self.token else {
            let detail =
                "Only loopback clients are authorized to change the log level, because OPS_TOKEN is not set.";
            let problem = Problem::new(problem::FORBIDDEN).detail(detail);
            return Err(Rejection { reason: "not_loopback", problem });
        };
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_, token)| token)
            .unwrap_or_default();
        if token.expose_secret().as_bytes().ct_eq(sent).into() {
            Ok(())
        } else {
            Err(Rejection { reason: "bad_token", problem: Problem::new(problem::UNAUTHENTICATED) })
        }
    }

    /// Returns whether the request's host is loopback or this listener's address, rather than a name from DNS. For a
    /// listener on all addresses, every IP address is its own.
    fn is_own_host(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let named = match (uri.authority(), hosts.next(), hosts.next()) {
            (Some(authority), None, None) => Some(authority.clone()),
            (None, Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
            (Some(authority), Some(host), None) if authority.as_str().as_bytes() == host.as_bytes() => {
                Some(authority.clone())
            }
            _ => None,
        };
        let Some(named) = named else { return false };
        let host = named.host().trim_start_matches('[').trim_end_matches(']');
        match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            // A listener on all addresses accepts any address, because an IP address in `Host` cannot come from DNS
            // rebinding.
            Ok(address) => {
                address.is_loopback()
                    || address == self.address.ip().to_canonical()
                    || self.address.ip().is_unspecified()
            }
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }
}
