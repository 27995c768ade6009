//! Ports that stay free until a server listens on them, and while the server restarts.
use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// Ports below the ephemeral range of common systems (from 32768 on Linux, from 49152 by RFC 6335). An outgoing
/// connection could take a server's port in the ephemeral range before the server starts, or while it restarts.
const PORTS: Range<u16> = 10_000..32_000;

const MAX_ATTEMPTS: usize = 100;

/// Listens on a free port of this machine below the ephemeral ports. Uses any free port after `MAX_ATTEMPTS` failures.
pub fn listen() -> io::Result<TcpListener> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let free = (0..MAX_ATTEMPTS).find_map(|_| listen(rand::random_range(PORTS)).ok());
    free.map_or_else(|| listen(0), Ok)
}
