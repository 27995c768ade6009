//! Listening, serving and draining.
//!
//! `axum::serve` has no timeout for a client that sends its headers one byte a minute, and no end to a
//! graceful shutdown, so the accept loop is our own: HTTP/1.1 and HTTP/2 without TLS (which ends at the load
//! balancer), a limit on connections and on those of one address, timeouts for a request's headers, for a client
//! that does not read and for an idle connection, and a drain with a deadline.
//!
//! One connection is one task, and nothing that happens in it reaches the accept loop.
mod timed_stream;

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use ipnet::IpNet;
use lazy_static::lazy_static;
use prometheus::{IntCounter, register_int_counter};
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
    shares::{Share, Shares},
};
use crate::telemetry::metrics::registered;

/// All headers of one request together. A browser with many cookies sends a quarter of it. There are at most a
/// hundred of them: hyper's default, since another number costs an allocation for every request.
const HEADERS_LIMIT: u16 = 32 * 1024;

/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// After an error of `accept` that waiting may cure, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

lazy_static! {
    static ref REFUSED: IntCounter = registered(register_int_counter!(
        "connections_refused_total",
        "Connections closed at once because their address had too many open."
    ));
}

/// The limits of a listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections open at once. One more is accepted when another has ended.
    pub max_connections: usize,
    /// Connections open at once from one address; 0 is no limit. One more is closed at once, because it would take a
    /// place from the other addresses while it waits.
    pub max_connections_per_address: usize,
    /// Networks whose addresses have no limit of their own: those of proxies, which bring the connections of many
    /// clients.
    pub proxies: Vec<IpNet>,
    /// How long a client may take over its request's headers.
    pub header_timeout: Duration,
    /// How long a client may take nothing of a response.
    pub write_timeout: Duration,
    /// How long a connection without a request is kept.
    pub idle_timeout: Duration,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody else has the port.
    #[error("cannot listen on {address} ({setting}): another process already does")]
    InUse {
        /// The setting that asked for it.
        setting: &'static str,
        /// What it asked for.
        address: SocketAddr,
    },
    /// The machine does not have that address.
    #[error("cannot listen on {address} ({setting}): this machine does not have that address")]
    NotAvailable {
        /// The setting that asked for it.
        setting: &'static str,
        /// What it asked for.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address} ({setting}): {source}")]
    Bind {
        /// The setting that asked for it.
        setting: &'static str,
        /// What it asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound address that accepts nothing yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

impl Listener {
    /// Binds `address`, which `setting` asked for.
    ///
    /// # Errors
    /// One sentence that names the setting and the address.
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

    /// Where it listens; port 0 has become a real one.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to accept. Each request carries its peer as [`ConnectInfo`].
    pub fn serve(self, router: Router) -> Server {
        lazy_static::initialize(&REFUSED);
        let (draining, cut) = (CancellationToken::new(), CancellationToken::new());
        let connections = TaskTracker::new();
        let accepting = tokio::spawn(accept(
            self.socket,
            Admission {
                permits: Arc::new(Semaphore::new(
                    self.limits.max_connections.clamp(1, Semaphore::MAX_PERMITS),
                )),
                shares: Shares::new(self.limits.max_connections_per_address),
                proxies: self.limits.proxies,
            },
            Serving {
                router,
                protocol: protocol(self.limits.idle_timeout),
                header_timeout: self.limits.header_timeout,
                write_timeout: self.limits.write_timeout,
                idle_timeout: self.limits.idle_timeout,
                draining: draining.clone(),
                cut: cut.clone(),
            },
            connections.clone(),
        ));
        Server { accepting, connections, draining, cut }
    }
}

fn protocol(idle_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper counts from the end of the last request, so this is the limit on idleness; headers have
        // theirs in `TimedStream`.
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

/// A listener at work. To be ended by [`Server::drain`].
#[derive(Debug)]
pub struct Server {
    accepting: JoinHandle<()>,
    connections: TaskTracker,
    draining: CancellationToken,
    cut: CancellationToken,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still open at the deadline, and were cut.
    pub cut: usize,
}

impl Server {
    /// Accepts nothing more, lets requests under way finish until `deadline`, and cuts the rest.
    ///
    /// Connections without a request under way are closed at once.
    pub async fn drain(self, deadline: Instant) -> Drained {
        self.draining.cancel();
        // The listening socket is closed with the accept loop.
        let _ended = self.accepting.await;
        self.connections.close();
        if timeout_at(deadline, self.connections.wait()).await.is_ok() {
            return Drained { cut: 0 };
        }
        let cut = self.connections.len();
        self.cut.cancel();
        self.connections.wait().await;
        Drained { cut }
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Serving {
    router: Router,
    protocol: auto::Builder<TokioExecutor>,
    header_timeout: Duration,
    write_timeout: Duration,
    idle_timeout: Duration,
    draining: CancellationToken,
    cut: CancellationToken,
}

/// Decides which connections are accepted.
struct Admission {
    permits: Arc<Semaphore>,
    shares: Shares,
    proxies: Vec<IpNet>,
}

impl Admission {
    /// Takes one of the address's share. `None` without an error: the address needs none.
    fn share(&self, peer: SocketAddr) -> Result<Option<Share>, ()> {
        let address = peer.ip().to_canonical();
        if client_address::is_within(&self.proxies, address) {
            return Ok(None);
        }
        self.shares.take(client_address::network(address)).map(Some).ok_or(())
    }
}

async fn accept(socket: TcpListener, admission: Admission, serving: Serving, connections: TaskTracker) {
    let draining = serving.draining.clone();
    let endless = async {
        loop {
            // Before accepting: what waits for a permit waits in the kernel's queue, and costs us nothing.
            let Ok(permit) = Arc::clone(&admission.permits).acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, peer)) => {
                    if let Ok(share) = admission.share(peer) {
                        connections.spawn(serving.clone().connection(stream, peer, (permit, share)));
                    } else {
                        REFUSED.inc();
                        tracing::debug!(%peer, "rejected a connection: its address has too many open");
                    }
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = draining.cancelled() => {}
        () = endless => {}
    }
}

/// The client was gone before its connection was accepted.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

impl Serving {
    async fn connection(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        _while_it_is_open: (OwnedSemaphorePermit, Option<Share>),
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "the connection was gone before its first request");
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
            // In this order: a request that is here already when draining begins is still answered.
            biased;
            result = connection.as_mut() => result,
            () = self.draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection => result,
                    () = self.cut.cancelled() => return,
                }
            }
            () = requests.idle(self.idle_timeout) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection => result,
                    // A response is left that the client does not take.
                    () = sleep(self.write_timeout) => return,
                    () = self.cut.cancelled() => return,
                }
            }
        };
        if let Err(error) = result {
            // Clients come and go as they like: not a matter for anybody's night.
            tracing::debug!(%peer, error, "connection ended early");
        }
    }
}

#[cfg(test)]
mod tests;
