//! The ports of the environment, checked before anything is started.
use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::ports;

/// The reason why a port is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("port {port}, for {what}, is in use: free it, or choose another port with {flag}")]
    InUse { what: &'static str, flag: &'static str, port: u16 },
    #[error("failed to use port {port}: {source}")]
    Unusable { port: u16, source: io::Error },
}

/// Maximum wait for a port. After an earlier run was killed, its processes keep their ports until the watchdog has
/// stopped the processes. The watchdog sends SIGTERM first, and SIGKILL after five seconds.
const WAIT_TIMEOUT: Duration = Duration::from_secs(7);

/// The service's ports, on this machine only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) api: SocketAddr,
    pub(super) ops: SocketAddr,
}

impl Ports {
    /// Waits until both ports are free, and returns their addresses. The error names the first port that is
    /// unavailable.
    pub(super) async fn find(api: u16, ops: u16, progress: &dyn Fn(&str)) -> Result<Self, Error> {
        Ok(Self {
            api: free("the API", "--api-port", api, progress).await?,
            ops: free("the operations listener", "--ops-port", ops, progress).await?,
        })
    }
}

/// Waits until a port of this machine is free, at most [`WAIT_TIMEOUT`]. Returns the port's address.
pub(crate) async fn free(
    what: &'static str,
    flag: &'static str,
    port: u16,
    progress: &dyn Fn(&str),
) -> Result<SocketAddr, Error> {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    let mut is_reported = false;
    loop {
        // Port 0 selects any free port.
        let listener =
            if port == 0 { ports::listen() } else { TcpListener::bind((Ipv4Addr::LOCALHOST, port)) };
        match listener {
            Ok(listener) => return listener.local_addr().map_err(|source| Error::Unusable { port, source }),
            Err(source) if source.kind() != io::ErrorKind::AddrInUse => {
                return Err(Error::Unusable { port, source });
            }
            Err(_) if Instant::now() >= deadline => return Err(Error::InUse { what, flag, port }),
            Err(_) => {
                if !is_reported {
                    progress(&format!("port {port}, for {what}, is in use: waiting"));
                    is_reported = true;
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
