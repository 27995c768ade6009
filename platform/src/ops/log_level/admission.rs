//! Who may change what is logged: whoever turns logging off can hide what comes next.
//!
//! - The request must be meant for this listener: its `Host` is loopback or the listener's own address. A web
//!   page in an operator's browser can point its own name at this address (DNS rebinding), and its requests
//!   then come from the operator's machine; but they carry that name.
//! - A caller who is not on loopback shows the operations token; where none is set, only loopback may change it.
use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, Uri, header, uri::Authority};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::http::problem::{self, Problem};

/// Whom a listener lets change the log level.
pub(super) struct Admission {
    /// Of the listener.
    pub(super) address: SocketAddr,
    /// Opens it to callers who are not on loopback.
    pub(super) token: Option<SecretString>,
}

/// Why a caller may not.
pub(super) struct Refusal {
    /// `foreign_host`, `not_loopback` or `bad_token`.
    pub(super) reason: &'static str,
    /// What the caller is told.
    pub(super) problem: Problem,
}

impl Admission {
    /// Whether this caller may change the level.
    pub(super) fn admit(&self, peer: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        if !self.is_own_name(uri, headers) {
            let detail = "The Host must be loopback or the address of this listener.";
            let problem = Problem::new(problem::FORBIDDEN).detail(detail);
            return Err(Refusal { reason: "foreign_host", problem });
        }
        if peer.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let Some(token) = &self.token else {
            let detail = "Only loopback may change the log level, because OPS_TOKEN is not set.";
            let problem = Problem::new(problem::FORBIDDEN).detail(detail);
            return Err(Refusal { reason: "not_loopback", problem });
        };
        let shown = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .map(|(_, token)| token)
            .unwrap_or_default();
        if token.expose_secret().as_bytes().ct_eq(shown).into() {
            Ok(())
        } else {
            Err(Refusal { reason: "bad_token", problem: Problem::new(problem::UNAUTHENTICATED) })
        }
    }

    /// Whether the request names loopback or this listener, and not what somebody's DNS says is here.
    fn is_own_name(&self, uri: &Uri, headers: &HeaderMap) -> bool {
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
            // A listener on all addresses has each of them; and no DNS can point at a number.
            Ok(address) => {
                address.is_loopback()
                    || address == self.address.ip().to_canonical()
                    || self.address.ip().is_unspecified()
            }
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }
}
