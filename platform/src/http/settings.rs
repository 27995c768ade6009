//! Settings of the two listeners.
use std::{net::SocketAddr, time::Duration};

use axum::http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use secrecy::SecretString;

use crate::settings::values::{
    address, count, forwarded_header, list_of_networks, list_of_origins, milliseconds, positive, secret,
};

crate::groups! {
    /// The two listeners, and the limits of what they accept.
    http: Settings {
        /// Address of the API; port 0 takes a free port, which the start-up log line contains.
        "API_ADDRESS" api_address: SocketAddr = address, default("127.0.0.1:8080");
        /// Address of the operations listener: probes, metrics, log level. Never exposed to the public.
        "OPS_ADDRESS" ops_address: SocketAddr = address, default("127.0.0.1:9000");
        /// Lets callers other than loopback change the log level on the operations listener.
        "OPS_TOKEN" ops_token: SecretString = secret, optional, secret;
        /// Networks (CIDR, comma-separated) of the proxies whose `FORWARDED_HEADER` is believed, right to left.
        "TRUSTED_PROXIES" trusted_proxies: Vec<IpNet> = list_of_networks, default("");
        /// The one header in which the proxy writes the client's address: `x-forwarded-for` or `forwarded` (RFC 7239).
        "FORWARDED_HEADER" forwarded_header: HeaderName = forwarded_header, default("x-forwarded-for");
        /// The deadline of one request, in milliseconds.
        "REQUEST_TIMEOUT_MS" request_timeout: Duration = milliseconds, default("10000");
        /// The largest request body, in bytes.
        "REQUEST_BODY_LIMIT_BYTES" body_limit: usize = count, default("65536");
        /// Requests worked on at once; one more is refused with 503.
        "MAX_REQUESTS_IN_FLIGHT" max_requests_in_flight: usize = positive, default("512");
        /// Requests of one address in flight at once; one more is refused with 429. 0 is off.
        "MAX_REQUESTS_IN_FLIGHT_PER_ADDRESS" max_requests_in_flight_per_address: usize = count, default("256");
        /// Connections open at once on the API listener; one more waits to be accepted.
        "MAX_CONNECTIONS" max_connections: usize = positive, default("10000");
        /// Connections open at once from one address outside of `TRUSTED_PROXIES`; one more is closed. 0 is off.
        "MAX_CONNECTIONS_PER_ADDRESS" max_connections_per_address: usize = count, default("1000");
        /// Longest time for the headers of a request, in milliseconds.
        "HEADER_TIMEOUT_MS" header_timeout: Duration = milliseconds, default("5000");
        /// Longest time for the body of a request, in milliseconds.
        "BODY_TIMEOUT_MS" body_timeout: Duration = milliseconds, default("5000");
        /// Longest time in which a client reads nothing of its response, in milliseconds.
        "WRITE_TIMEOUT_MS" write_timeout: Duration = milliseconds, default("30000");
        /// Longest time of a connection without a request, in milliseconds: longer than that of the load balancer.
        "IDLE_TIMEOUT_MS" idle_timeout: Duration = milliseconds, default("75000");
        /// Origins (comma-separated) that browsers may call from. None: CORS is off.
        "CORS_ALLOWED_ORIGINS" cors_allowed_origins: Vec<HeaderValue> = list_of_origins, default("");
        /// Requests a second from one caller, steadily; bursts of ten times that. 0 is off.
        "RATE_LIMIT_CALLER_PER_SECOND" rate_limit_caller: u32 = count, default("50");
        /// Requests a second from one address, steadily; bursts of ten times that. 0 is off.
        "RATE_LIMIT_ADDRESS_PER_SECOND" rate_limit_address: u32 = count, default("100");
    }
}
