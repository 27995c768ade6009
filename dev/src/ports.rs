//! Ports that are still free after a restart.
use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// Below the ephemeral ports of common systems (from 32768 on Linux, from 49152 by RFC 6335). An outgoing connection
/// can use an ephemeral port by the time a restarted server needs the port again.
const LASTING: Range<u16> = 10_000..32_000;

const ATTEMPTS: usize = 100;

/// Listens on a free port of this machine below the ephemeral ports. Uses any free port after `ATTEMPTS` failures.
pub(crate) fn listen() -> io::Result<TcpListener> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let free = (0..ATTEMPTS).find_map(|_| listen(rand::random_range(LASTING)).ok());
    free.map_or_else(|| listen(0), Ok)
}
