//! The client address of a request that passed through proxies.
//!
//! Any client can send `X-Forwarded-For: 10.0.0.1`. So the header is used only when the peer is a trusted proxy. The
//! header is read from the right, because each proxy appends the address of its own peer. The first address that is not
//! that of a trusted proxy is the client's address, because a trusted proxy wrote it. The elements to the left of that
//! address come from the client and are ignored. The search stops at an element that is not an address. It then returns
//! the address to the right of that element, or the peer's address if there is none. If all addresses are those of
//! trusted proxies, the leftmost one is the client's address.
//!
//! A proxy writes either `Forwarded` (RFC 7239) or `X-Forwarded-For`, and forwards the other header unchanged. So
//! `FORWARDED_HEADER` names the one header that is read. If both were read, a client behind ingress-nginx or an AWS
//! load balancer could hide its address by sending `Forwarded`.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request},
    http::{HeaderMap, HeaderName, header},
};
use ipnet::IpNet;

/// The client of a request. [`find`] stores it in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress {
    /// The client's address that a trusted proxy reports, or the peer's address if none is reported. An IPv4-mapped
    /// IPv6 address is stored as IPv4.
    pub address: IpAddr,
    /// `true` if the peer is a trusted proxy. Then the trace headers of the request are trusted, too.
    pub through_trusted_proxy: bool,
    /// `https` if a trusted proxy reports that the client used TLS, otherwise `http`.
    pub scheme: &'static str,
}

impl ClientAddress {
    /// Returns the key that per-address limits count by: one IPv4 address, or one IPv6 /64 network. A client with one
    /// IPv6 address usually controls the whole /64 network.
    pub fn network(self) -> IpAddr {
        network(self.address)
    }
}

/// Returns the key that per-address limits count by; see [`ClientAddress::network`].
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Returns whether an address is in one of `networks`. An IPv4 address is also found in an IPv4-mapped IPv6 network.
/// The caller must convert an IPv4-mapped address to IPv4 first.
pub fn is_within(networks: &[IpNet], address: IpAddr) -> bool {
    let mapped = match address {
        IpAddr::V4(address) => Some(IpAddr::from(address.to_ipv6_mapped())),
        IpAddr::V6(_) => None,
    };
    let within = |address: &IpAddr| networks.iter().any(|network| network.contains(address));
    within(&address) || mapped.as_ref().is_some_and(within)
}

/// The header in which proxies that write `X-Forwarded-For` report the client's scheme.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// One element of a forwarding header: the peer of one proxy, as that proxy reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Hop {
    /// `None` if the element has no valid address.
    address: Option<IpAddr>,
    /// `true` if the element has `proto=https`, which only `Forwarded` has.
    is_https: bool,
}

/// The networks of trusted proxies, and the header that these proxies write. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrustedProxies {
    networks: Arc<[IpNet]>,
    header: HeaderName,
}

impl TrustedProxies {
    /// Creates the trusted proxies with addresses in `networks`, which write `header`: `Forwarded` or
    /// `X-Forwarded-For`.
    pub fn new(networks: &[IpNet], header: HeaderName) -> Self {
        Self { networks: networks.into(), header }
    }

    fn contain(&self, address: IpAddr) -> bool {
        is_within(&self.networks, address)
    }

    /// Returns the client of a request from `peer` with these headers.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        let peer = peer.to_canonical();
        if !self.contain(peer) {
            return ClientAddress { address: peer, through_trusted_proxy: false, scheme: "http" };
        }
        let (address, hop_is_https) = self.walk(peer, headers);
        let is_https =
            if self.header == header::FORWARDED { hop_is_https } else { is_forwarded_https(headers) };
        ClientAddress {
            address,
            through_trusted_proxy: true,
            scheme: if is_https { "https" } else { "http" },
        }
    }

    /// Follows the header from the right, past trusted proxies. Returns the client's address, and whether the element
    /// with that address has `proto=https`. Returns the peer if the header is absent, or if its rightmost element has
    /// no address.
    fn walk(&self, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, bool) {
        let elements = if self.header == header::FORWARDED { forwarded_elements } else { listed_elements };
        let lines = headers.get_all(&self.header).iter().rev();
        let mut last = (peer, false);
        // A line that is not text counts as one element that is not an address.
        let hops = lines
            .flat_map(|line| line.to_str().map_or_else(|_| vec![Hop::default()], elements).into_iter().rev());
        for hop in hops {
            let Some(address) = hop.address else { break };
            last = (address, hop.is_https);
            if !self.contain(address) {
                break;
            }
        }
        last
    }
}

/// Returns whether the last value of `X-Forwarded-Proto`, which the nearest proxy wrote, is `https`.
fn is_forwarded_https(headers: &HeaderMap) -> bool {
    let line = headers.get_all(FORWARDED_PROTO).iter().next_back().and_then(|line| line.to_str().ok());
    let value = line.and_then(|line| line.rsplit(',').next());
    value.is_some_and(|value| value.trim().eq_ignore_ascii_case("https"))
}

/// Stores the [`ClientAddress`] in the request's extensions.
///
/// A request without a peer address gets no `ClientAddress`, and is rejected by the first extractor that requires
/// one.
pub fn find(proxies: &TrustedProxies, mut request: Request) -> Request {
    if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
        let client = proxies.client(peer.ip(), request.headers());
        request.extensions_mut().insert(client);
    }
    request
}

/// Parses the elements of one `X-Forwarded-For` line.
fn listed_elements(line: &str) -> Vec<Hop> {
    line.split(',').map(|element| Hop { address: node(element.trim()), is_https: false }).collect()
}

/// Parses the `for` and `proto` parameters of each element of one `Forwarded` line. A malformed line counts as one
/// element without an address. The reason is that a client can send an unclosed quote, after which the element that
/// the proxy appends would look like quoted text.
fn forwarded_elements(line: &str) -> Vec<Hop> {
    parse_forwarded(line).unwrap_or_else(|| vec![Hop::default()])
}

/// Parses a line such as `for=192.0.2.60;proto=http, for="[2001:db8::1]:4711"` (RFC 7239, section 4).
fn parse_forwarded(line: &str) -> Option<Vec<Hop>> {
    let mut elements = Vec::new();
    let mut seen_for: Option<Option<IpAddr>> = None;
    let mut seen_proto: Option<bool> = None;
    let mut rest = line.trim();
    loop {
        let (name, after) = rest.split_once('=')?;
        if !is_token(name) {
            return None;
        }
        let (value, after) = forwarded_value(after)?;
        let is_duplicate = if name.eq_ignore_ascii_case("for") {
            seen_for.replace(node(&value)).is_some()
        } else if name.eq_ignore_ascii_case("proto") {
            seen_proto.replace(value.eq_ignore_ascii_case("https")).is_some()
        } else {
            false
        };
        if is_duplicate {
            return None;
        }
        let mut hop =
            || Hop { address: seen_for.take().flatten(), is_https: seen_proto.take() == Some(true) };
        let after = after.trim_start();
        let Some(separator) = after.chars().next() else {
            elements.push(hop());
            return Some(elements);
        };
        rest = after.get(1..)?.trim_start();
        match separator {
            ';' => {}
            ',' => elements.push(hop()),
            _ => return None,
        }
    }
}

/// Splits `text` into its leading value (a token or a quoted string) and the rest.
fn forwarded_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(end)?;
        return is_token(value).then(|| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(characters.next()?),
            other => value.push(other),
        }
    }
}

/// Returns whether `text` is a token of RFC 7230. Also accepts `:`, `[` and `]`, which some proxies do not quote.
fn is_token(text: &str) -> bool {
    let in_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&byte);
    !text.is_empty() && text.bytes().all(in_token)
}

/// Parses an address with or without a port. Returns `None` for `unknown`, for obfuscated names and for anything
/// else.
fn node(text: &str) -> Option<IpAddr> {
    let bare = || text.parse::<IpAddr>().ok();
    let bracketed = || {
        let (address, port) = text.strip_prefix('[')?.split_once(']')?;
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        address.parse::<Ipv6Addr>().ok().filter(|_| is_port).map(IpAddr::from)
    };
    let with_port = || {
        let (address, port) = text.split_once(':')?;
        address.parse::<Ipv4Addr>().ok().filter(|_| is_port(port)).map(IpAddr::from)
    };
    bare().or_else(bracketed).or_else(with_port).map(|address| address.to_canonical())
}

/// Returns whether `text` is a port number, or an obfuscated port (`_` and a token).
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok() || text.strip_prefix('_').is_some_and(is_token)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    /// Returns trusted proxies that write `header`.
    fn proxies(header: &'static str) -> TrustedProxies {
        let networks = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        TrustedProxies::new(&networks, HeaderName::from_static(header))
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect()
    }

    /// Returns the client's address for a request whose last header line was written by the proxy.
    fn client(peer: &str, lines: &[(&'static str, &str)]) -> String {
        let written = lines.last().map_or("x-forwarded-for", |(name, _)| name);
        proxies(written).client(peer.parse().unwrap(), &headers(lines)).address.to_string()
    }

    #[test]
    fn an_untrusted_peer_is_the_client() {
        for name in ["forwarded", "x-forwarded-for"] {
            assert_eq!(client("203.0.113.9", &[(name, "for=192.0.2.1"), (name, "192.0.2.1")]), "203.0.113.9");
        }
        let proxies = proxies("x-forwarded-for");
        let found = proxies.client("203.0.113.9".parse().unwrap(), &HeaderMap::new());
        assert!(!found.through_trusted_proxy);
        assert!(proxies.client(PROXY.parse().unwrap(), &HeaderMap::new()).through_trusted_proxy);
    }

    #[test]
    fn the_client_is_stored_in_a_request_of_a_known_peer() {
        let request =
            || Request::get("/path").header("x-forwarded-for", "192.0.2.1").body(Body::empty()).unwrap();
        let peer = SocketAddr::from(([10, 0, 0, 1], 4711));
        let mut of_a_peer = request();
        of_a_peer.extensions_mut().insert(ConnectInfo(peer));
        let found = find(&proxies("x-forwarded-for"), of_a_peer);
        assert_eq!(found.uri(), "/path");
        let client = found.extensions().get::<ClientAddress>().unwrap();
        assert_eq!(client.address.to_string(), "192.0.2.1");
        let without = find(&proxies("x-forwarded-for"), request());
        assert!(without.extensions().get::<ClientAddress>().is_none());
    }

    #[test]
    fn the_scheme_is_the_one_that_a_trusted_proxy_reports() {
        let scheme = |header, peer: &str, lines: &[(&'static str, &str)]| {
            proxies(header).client(peer.parse().unwrap(), &headers(lines)).scheme
        };
        for (line, expected) in [
            ("for=192.0.2.1;proto=https", "https"),
            ("proto=HTTPS;for=192.0.2.1", "https"),
            ("for=192.0.2.1;proto=https, for=10.0.0.2;proto=http", "https"),
            ("for=198.51.100.66;proto=https, for=192.0.2.1;proto=http, for=10.0.0.2", "http"),
            ("for=192.0.2.1", "http"),
            ("for=192.0.2.1;proto=https;proto=https", "http"),
            ("for=192.0.2.1;proto=ftp", "http"),
        ] {
            assert_eq!(scheme("forwarded", PROXY, &[("forwarded", line)]), expected, "{line}");
            assert_eq!(scheme("forwarded", "203.0.113.9", &[("forwarded", line)]), "http", "{line}");
        }
        for (line, expected) in
            [("https", "https"), ("http, https", "https"), ("https, http", "http"), ("", "http")]
        {
            let lines = [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", line)];
            assert_eq!(scheme("x-forwarded-for", PROXY, &lines), expected, "{line}");
            assert_eq!(scheme("x-forwarded-for", "203.0.113.9", &lines), "http", "{line}");
        }
        let both = [("forwarded", "for=192.0.2.1"), ("x-forwarded-proto", "https")];
        assert_eq!(scheme("forwarded", PROXY, &both), "http", "read a header that the proxy does not write");
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right_past_trusted_hops() {
        for (line, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("198.51.100.66, 192.0.2.1, 10.0.0.3 ,10.0.0.2", "192.0.2.1"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("198.51.100.66, unknown, 10.0.0.2", "10.0.0.2"),
            ("198.51.100.66, _hidden", PROXY),
            ("198.51.100.66,", PROXY),
            ("192.0.2.1:_hidden", "192.0.2.1"),
            ("192.0.2.1:_", PROXY),
            ("192.0.2.1:_a b", PROXY),
            ("192.0.2.1:99999", PROXY),
            ("192.0.2.256", PROXY),
            ("fe80::1%eth0", PROXY),
            ("[192.0.2.1]", PROXY),
            ("", PROXY),
            ("198.51.100.66, é", PROXY),
        ] {
            assert_eq!(client(PROXY, &[("x-forwarded-for", line)]), expected, "{line}");
        }
    }

    #[test]
    fn forwarded_is_parsed_as_rfc_7239_specifies() {
        for (line, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=192.0.2.1;proto=https;by=10.0.0.1", "192.0.2.1"),
            ("proto=https; host=\"a,b;c\" ;for=192.0.2.1", "192.0.2.1"),
            ("for=\"192.0.2.1:443\"", "192.0.2.1"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("for=[2001:db8::1]", "2001:db8::1"),
            ("for=\"\\1\\92.0.2.1\"", "192.0.2.1"),
            ("for=198.51.100.66, for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
            ("for=198.51.100.66, for=unknown, for=10.0.0.2", "10.0.0.2"),
            ("for=198.51.100.66, for=_mystery", PROXY),
            ("for=198.51.100.66, proto=https", PROXY),
            ("for=198.51.100.66;for=192.0.2.1", PROXY),
            ("for=198.51.100.66, for=\"192.0.2.1", PROXY),
            ("for=\"open, for=192.0.2.1", PROXY),
            ("for=\"open, for=\"192.0.2.1\"", PROXY),
            ("for = 192.0.2.1", PROXY),
            ("=a;for=192.0.2.1", PROXY),
            ("b y=a;for=192.0.2.1", PROXY),
            ("by=;for=192.0.2.1", PROXY),
            ("by=a@b;for=192.0.2.1", PROXY),
            ("for=", PROXY),
            ("192.0.2.1", PROXY),
            ("for=192.0.2.1,", PROXY),
            ("", PROXY),
        ] {
            assert_eq!(client(PROXY, &[("forwarded", line)]), expected, "{line}");
        }
    }

    #[test]
    fn several_header_lines_are_one_list() {
        let lines = [("x-forwarded-for", "198.51.100.66, 192.0.2.1"), ("x-forwarded-for", "10.0.0.2")];
        assert_eq!(client(PROXY, &lines), "192.0.2.1");
        let lines = [("forwarded", "for=\"left open"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(client(PROXY, &lines), "192.0.2.1");
    }

    #[test]
    fn the_header_that_the_proxy_does_not_write_is_ignored() {
        for forged in ["for=198.51.100.66", "for=\"open", ""] {
            let lines = [("forwarded", forged), ("x-forwarded-for", "192.0.2.1")];
            assert_eq!(client(PROXY, &lines), "192.0.2.1", "{forged}");
        }
        let lines = [("x-forwarded-for", "198.51.100.66"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(client(PROXY, &lines), "192.0.2.1");
        let alone = headers(&[("forwarded", "for=198.51.100.66")]);
        let found = proxies("x-forwarded-for").client(PROXY.parse().unwrap(), &alone);
        assert_eq!(found.address.to_string(), PROXY);
    }

    #[test]
    fn an_ipv4_mapped_peer_counts_as_ipv4() {
        assert_eq!(client("::ffff:10.0.0.1", &[("x-forwarded-for", "192.0.2.1")]), "192.0.2.1");
        assert_eq!(client("::ffff:203.0.113.9", &[]), "203.0.113.9");
        let networks = ["::ffff:10.0.0.0/104".parse().unwrap()];
        let mapped = TrustedProxies::new(&networks, HeaderName::from_static("x-forwarded-for"));
        let headers = headers(&[("x-forwarded-for", "192.0.2.1")]);
        assert_eq!(mapped.client(PROXY.parse().unwrap(), &headers).address.to_string(), "192.0.2.1");
    }

    #[test]
    fn limits_count_an_ipv6_network_as_one() {
        let network = |address: &str| {
            ClientAddress { address: address.parse().unwrap(), through_trusted_proxy: false, scheme: "http" }
                .network()
                .to_string()
        };
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
    }

    fn untrusted() -> impl Strategy<Value = IpAddr> {
        any::<IpAddr>()
            .prop_map(|address| address.to_canonical())
            .prop_filter("address of a proxy", |address| !proxies("forwarded").contain(*address))
    }

    proptest! {
        #[test]
        fn the_address_that_the_proxy_wrote_is_used(
            forged in "[ -~]{0,60}", address in untrusted(), name in prop_oneof![Just("forwarded"), Just("x-forwarded-for")],
        ) {
            let written = match (name, address) {
                ("forwarded", IpAddr::V4(address)) => format!("for={address}"),
                ("forwarded", IpAddr::V6(address)) => format!("for=\"[{address}]\""),
                (_, address) => address.to_string(),
            };
            // The client's text on a separate line changes nothing.
            let lines = [(name, forged.as_str()), (name, written.as_str())];
            prop_assert_eq!(client(PROXY, &lines), address.to_string());
            // On the same line the client's text can make the line malformed. Then the proxy's address is used.
            let line = format!("{forged}, {written}");
            let found = client(PROXY, &[(name, &line)]);
            prop_assert!(found == address.to_string() || found == PROXY, "{found}");
        }

        #[test]
        fn formatted_addresses_are_parsed(address in any::<IpAddr>(), port in any::<u16>()) {
            let with_port = SocketAddr::from((address, port)).to_string();
            prop_assert_eq!(node(&with_port), Some(address.to_canonical()));
            prop_assert_eq!(node(&address.to_string()), Some(address.to_canonical()));
        }
    }
}
