//! Settings of the API listener and the operations listener.
use std::{net::SocketAddr, time::Duration};

use axum::http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use secrecy::SecretString;

use crate::settings::values::{
    address, count, forwarded_header, list_of_networks, list_of_origins, milliseconds, positive, rate, secret,
};

crate::groups! {
    /// The two listeners, and the limits of their connections and requests.
    http: Settings {
        /// Address of the API. Port 0 selects a free port, which the start-up log line contains.
        "API_ADDRESS" api_address: SocketAddr = address, default("127.0.0.1:8080");
        /// Address of the operations listener (probes, metrics, log level), which must never be public.
        "OPS_ADDRESS" ops_address: SocketAddr = address, default("127.0.0.1:9000");
        /// Token that authorizes clients other than loopback to change the log level. At least 16 characters.
        "OPS_TOKEN" ops_token: SecretString = secret, optional, secret;
        /// Networks (CIDR, comma-separated) of the trusted proxies, whose `FORWARDED_HEADER` is read from right to left.
        "TRUSTED_PROXIES" trusted_proxies: Vec<IpNet> = list_of_networks, default("");
        /// Header in which the proxy sends the client's address: `x-forwarded-for` or `forwarded` (RFC 7239).
        "FORWARDED_HEADER" forwarded_header: HeaderName = forwarded_header, default("x-forwarded-for");
        /// Deadline of a request, in milliseconds.
        "REQUEST_TIMEOUT_MS" request_timeout: Duration = milliseconds, default("10000");
        /// Maximum size of a request body, in bytes.
        "REQUEST_BODY_LIMIT_BYTES" body_limit: usize = positive, default("65536");
        /// Maximum number of requests in flight. More are rejected with 503.
        "MAX_REQUESTS_IN_FLIGHT" max_requests_in_flight: usize = positive, default("512");
        /// Maximum number of requests of one address (IPv6: one /64 network) in flight. More are rejected with 429. 0 disables the limit.
        "MAX_REQUESTS_IN_FLIGHT_PER_ADDRESS" max_requests_in_flight_per_address: usize = count, default("256");
        /// Maximum number of open connections of each listener. More wait in the kernel.
        "MAX_CONNECTIONS" max_connections: usize = positive, default("10000");
        /// Maximum number of open connections of one address (IPv6: one /64 network) outside of `TRUSTED_PROXIES`. More are closed. 0 disables the limit.
        "MAX_CONNECTIONS_PER_ADDRESS" max_connections_per_address: usize = count, default("1000");
        /// Timeout of reading a request's headers, in milliseconds.
        "HEADER_TIMEOUT_MS" header_timeout: Duration = milliseconds, default("5000");
        /// Timeout of reading a request's body, in milliseconds.
        "BODY_TIMEOUT_MS" body_timeout: Duration = milliseconds, default("5000");
        /// Timeout of a response of which the client reads nothing, in milliseconds.
        "WRITE_TIMEOUT_MS" write_timeout: Duration = milliseconds, default("30000");
        /// Timeout of a connection without a request, in milliseconds. Must exceed that of the load balancer.
        "IDLE_TIMEOUT_MS" idle_timeout: Duration = milliseconds, default("75000");
        /// Origins (comma-separated) from which browsers are allowed to call. None: CORS is off.
        "CORS_ALLOWED_ORIGINS" cors_allowed_origins: Vec<HeaderValue> = list_of_origins, default("");
        /// Sustained requests per second of one caller; bursts of ten times that rate. 0 disables the limit.
        "RATE_LIMIT_CALLER_PER_SECOND" rate_limit_caller: u32 = rate, default("50");
        /// Sustained requests per second of one address (IPv6: one /64 network); bursts of ten times that rate. 0 disables the limit.
        "RATE_LIMIT_ADDRESS_PER_SECOND" rate_limit_address: u32 = rate, default("100");
    }
}
