//! The HTTP server: listening, serving and draining.
//!
//! `axum::serve` has no timeout for a client that sends its headers slowly, and no deadline for a graceful shutdown.
//! So this module has its own accept loop, with:
//! - HTTP/1.1 and HTTP/2 without TLS, because TLS ends at the load balancer
//! - a limit on all connections and on those of one address
//! - timeouts for a request's headers, for a client that does not read, and for an idle connection
//! - a drain with a deadline
//!
//! Each connection is one task, so an error in a connection never stops the accept loop.
mod timed_stream;

use std::{error::Error, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use ipnet::IpNet;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use self::timed_stream::{Requests, TimedStream};
use super::{
    client_address,
    network_slots::{NetworkSlot, NetworkSlots},
};

/// Maximum size, in bytes, of all headers of one request. A browser with many cookies sends a quarter of this size. The
/// number of headers of an HTTP/1 request is limited to a hundred, hyper's default, because with any other number hyper
/// allocates memory for each request.
const HEADERS_LIMIT: u16 = 32 * 1024;

/// Interval of the pings to an HTTP/2 client, and the time that the client has to respond to a ping.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Pause after an `accept` error that may be temporary, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

crate::metrics! {
    /// Connections rejected because their address had too many open.
    static REFUSED: counter = "connections_refused_total";
    /// Requests that were rejected before they reached a route, because they are not valid HTTP/1.1 or their headers are too large.
    static MALFORMED: counter = "http_malformed_requests_total" { reason in [INVALID, TOO_LARGE] };
}

/// The request is not valid HTTP/1.1; hyper responds with 400.
const INVALID: &str = "invalid";
/// The headers or the URI of the request are too large; hyper responds with 431 or 414.
const TOO_LARGE: &str = "too_large";

/// The limits of a listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum number of open connections. Further connections wait until another one ends.
    pub max_connections: usize,
    /// Maximum number of open connections from one IPv4 address or IPv6 /64 network; 0 disables the limit. A further
    /// connection is closed immediately, because a waiting one would count towards `max_connections`.
    pub max_connections_per_address: usize,
    /// Networks that are exempt from the per-address limit: proxies, which forward the connections of many clients.
    pub proxies: Vec<IpNet>,
    /// Maximum time for a client to send a request's headers.
    pub header_timeout: Duration,
    /// Maximum time during which a client reads nothing of a response.
    pub write_timeout: Duration,
    /// Time that a connection without a request is kept open; up to twice this time on HTTP/2.
    pub idle_timeout: Duration,
}

/// The error when a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process uses the port.
    #[error("failed to listen on {address} ({setting}): the port is in use")]
    InUse {
        /// The setting of the address.
        setting: &'static str,
        /// The configured address.
        address: SocketAddr,
    },
    /// The machine does not have that address.
    #[error("failed to listen on {address} ({setting}): this machine does not have the address")]
    NotAvailable {
        /// The setting of the address.
        setting: &'static str,
        /// The configured address.
        address: SocketAddr,
    },
    /// Any other error.
    #[error("failed to listen on {address} ({setting}): {source}")]
    Bind {
        /// The setting of the address.
        setting: &'static str,
        /// The configured address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A bound address. Its connections wait in the kernel's queue until [`Listener::serve`] accepts them.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

impl Listener {
    /// Binds `address`, which comes from `setting`.
    ///
    /// # Errors
    /// The address cannot be bound. The message names the setting and the address.
    pub async fn bind(
        setting: &'static str,
        address: SocketAddr,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        let bound = async {
            let socket = TcpListener::bind(address).await?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let (socket, address) = bound.await.map_err(|source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ServerError::InUse { setting, address },
            io::ErrorKind::AddrNotAvailable => ServerError::NotAvailable { setting, address },
            _ => ServerError::Bind { setting, address, source },
        })?;
        Ok(Self { socket, address, limits })
    }

    /// Returns the bound address, with the actual port if the configured one was 0.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to accept connections. Each request carries the address of its peer as [`ConnectInfo`].
    pub fn serve(self, router: Router) -> Server {
        initialize();
        let (draining, aborting) = (CancellationToken::new(), CancellationToken::new());
        let connections = TaskTracker::new();
        let accepting = tokio::spawn(accept(
            self.socket,
            ConnectionLimits {
                permits: Arc::new(Semaphore::new(
                    self.limits.max_connections.clamp(1, Semaphore::MAX_PERMITS),
                )),
                slots: NetworkSlots::new(self.limits.max_connections_per_address),
                proxies: self.limits.proxies,
            },
            ConnectionContext {
                router,
                protocol: protocol(self.limits.idle_timeout),
                header_timeout: self.limits.header_timeout,
                write_timeout: self.limits.write_timeout,
                idle_timeout: self.limits.idle_timeout,
                draining: draining.clone(),
                aborting: aborting.clone(),
            },
            connections.clone(),
        ));
        Server { accepting, connections, draining, aborting }
    }
}

fn protocol(idle_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper starts this timeout at the end of the previous request, so the timeout limits idle time. The timeout
        // for headers is in `TimedStream`.
        .header_read_timeout(idle_timeout)
        .max_buf_size(HEADERS_LIMIT.into());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_header_list_size(HEADERS_LIMIT.into());
    builder
}

/// A running listener. It must be ended by [`Server::drain`].
#[derive(Debug)]
pub struct Server {
    accepting: JoinHandle<()>,
    connections: TaskTracker,
    draining: CancellationToken,
    aborting: CancellationToken,
}

/// The result of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Number of connections that were still open at the deadline, and were closed forcibly.
    pub cut: usize,
}

impl Server {
    /// Stops accepting connections, lets requests in flight finish until `deadline`, and then closes the remaining
    /// connections.
    ///
    /// Connections without a request in flight are closed immediately.
    pub async fn drain(self, deadline: Instant) -> DrainReport {
        self.draining.cancel();
        // The listening socket closes when the accept loop ends.
        let _ended = self.accepting.await;
        self.connections.close();
        if timeout_at(deadline, self.connections.wait()).await.is_ok() {
            return DrainReport { cut: 0 };
        }
        let cut = self.connections.len();
        self.aborting.cancel();
        self.connections.wait().await;
        DrainReport { cut }
    }
}

/// The state that all connections share.
#[derive(Clone)]
struct ConnectionContext {
    router: Router,
    protocol: auto::Builder<TokioExecutor>,
    header_timeout: Duration,
    write_timeout: Duration,
    idle_timeout: Duration,
    draining: CancellationToken,
    aborting: CancellationToken,
}

/// The limits that decide which connections are accepted.
struct ConnectionLimits {
    permits: Arc<Semaphore>,
    slots: NetworkSlots,
    proxies: Vec<IpNet>,
}

impl ConnectionLimits {
    /// Takes one of the connection slots of the peer's IPv4 address or IPv6 /64 network. Returns `Ok(None)` if the
    /// address is exempt from the limit, and an error if no slot is free.
    fn take_slot(&self, peer: SocketAddr) -> Result<Option<NetworkSlot>, ()> {
        let address = peer.ip().to_canonical();
        if client_address::is_within(&self.proxies, address) {
            return Ok(None);
        }
        self.slots.take(client_address::network(address)).map(Some).ok_or(())
    }
}

async fn accept(
    socket: TcpListener,
    limits: ConnectionLimits,
    context: ConnectionContext,
    connections: TaskTracker,
) {
    let draining = context.draining.clone();
    let accept_loop = async {
        loop {
            // The permit is acquired before `accept`, because a connection that waits in the kernel's queue costs
            // this process nothing.
            let Ok(permit) = Arc::clone(&limits.permits).acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, peer)) => {
                    if let Ok(slot) = limits.take_slot(peer) {
                        connections.spawn(context.clone().serve_connection(stream, peer, (permit, slot)));
                    } else {
                        REFUSED.inc();
                        tracing::debug!(%peer, "rejected a connection: its address has too many open connections");
                    }
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn Error, "failed to accept connections");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = draining.cancelled() => {}
        () = accept_loop => {}
    }
}

/// Returns whether the client disconnected before its connection was accepted.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

impl ConnectionContext {
    async fn serve_connection(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        _permits: (OwnedSemaphorePermit, Option<NetworkSlot>),
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "the client disconnected before its first request");
            return;
        }
        let requests = Arc::new(Requests::default());
        let stream = TimedStream::new(stream, self.header_timeout, self.write_timeout, Arc::clone(&requests));
        let router = self.router;
        let counted = Arc::clone(&requests);
        let service = service_fn(move |request: Request<Incoming>| {
            let in_flight = counted.begin(request.version());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            let response = router.clone().call(request);
            async move {
                let response = response.await;
                drop(in_flight);
                response
            }
        });
        let mut connection = pin!(self.protocol.serve_connection(TokioIo::new(stream), service));
        let result = tokio::select! {
            // The connection is polled first, so that a request that has arrived when the drain starts is still
            // handled.
            biased;
            result = connection.as_mut() => result,
            () = self.draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection => result,
                    () = self.aborting.cancelled() => return,
                }
            }
            () = requests.idle(self.idle_timeout) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection => result,
                    // A client that does not read a pending response would keep the connection open.
                    () = sleep(self.write_timeout) => return,
                    () = self.aborting.cancelled() => return,
                }
            }
        };
        if let Err(error) = result {
            report(peer, error.as_ref());
        }
    }
}

/// Logs a connection that ended with an error. A request that hyper itself rejects reaches no layer, so it is counted
/// and logged here. On HTTP/2, such a request ends only its stream, and hyper does not report it.
fn report(peer: SocketAddr, error: &(dyn Error + 'static)) {
    match error.downcast_ref::<hyper::Error>() {
        Some(rejected) if rejected.is_parse() && !rejected.is_parse_version_h2() => {
            let reason = if rejected.is_parse_too_large() { TOO_LARGE } else { INVALID };
            MALFORMED.with_label_values(&[reason]).inc();
            tracing::info!(%peer, reason, error, "rejected a malformed request");
        }
        // Clients disconnect all the time, so the end of a connection is logged at debug level.
        _ => tracing::debug!(%peer, error, "connection ended early"),
    }
}

#[cfg(test)]
mod tests;
