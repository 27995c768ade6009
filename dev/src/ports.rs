//! Ports that are still free after a restart.
use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// Below the ports that systems give to outgoing connections (from 32768 on Linux, from 49152 by RFC 6335): one of those may
/// be some connection's by the time that a server wants it back.
const LASTING: Range<u16> = 10_000..32_000;

const ATTEMPTS: usize = 100;

/// Listens on a free port of this machine that nobody is given by chance.
pub(crate) fn listen() -> io::Result<TcpListener> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let free = (0..ATTEMPTS).find_map(|_| listen(rand::random_range(LASTING)).ok());
    free.map_or_else(|| listen(0), Ok)
}
