//! Listening, serving and draining.
//!
//! `axum::serve` has no timeout for a client that sends its headers one byte a minute, and no end to a
//! graceful shutdown, so the accept loop is our own: HTTP/1.1 and HTTP/2 without TLS (which ends at the load
//! balancer), a limit on connections, a limit on how long a request's headers may take, and a drain with a
//! deadline.
//!
//! One connection is one task, and nothing that happens in it reaches the accept loop.
mod header_timeout;

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use self::header_timeout::{HeaderTimeout, Requests};

/// All headers of one request together. A browser with many cookies sends a quarter of it. There are at most a
/// hundred of them: hyper's default, since another number costs an allocation for every request.
const HEADERS_LIMIT: u16 = 32 * 1024;

/// How long a connection without a request is kept: longer than the 60 seconds after which common load
/// balancers give theirs up. The side that closes first must not be the one that the next request goes to.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// After an error of `accept` that waiting may cure, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What a listener puts up with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections open at once. One more is accepted when another has ended.
    pub max_connections: usize,
    /// How long a client may take over its request's headers.
    pub header_timeout: Duration,
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
        let (draining, cut) = (CancellationToken::new(), CancellationToken::new());
        let connections = TaskTracker::new();
        let accepting = tokio::spawn(accept(
            self.socket,
            Semaphore::new(self.limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)),
            Serving {
                router,
                protocol: protocol(),
                header_timeout: self.limits.header_timeout,
                draining: draining.clone(),
                cut: cut.clone(),
            },
            connections.clone(),
        ));
        Server { accepting, connections, draining, cut }
    }
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper counts from the end of the last request, so this is the limit on idleness; headers have
        // theirs in `HeaderTimeout`.
        .header_read_timeout(IDLE_TIMEOUT)
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
    draining: CancellationToken,
    cut: CancellationToken,
}

async fn accept(socket: TcpListener, permits: Semaphore, serving: Serving, connections: TaskTracker) {
    let permits = Arc::new(permits);
    let draining = serving.draining.clone();
    let endless = async {
        loop {
            // Before accepting: what waits for a permit waits in the kernel's queue, and costs us nothing.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match socket.accept().await {
                Ok((stream, peer)) => {
                    connections.spawn(serving.clone().connection(stream, peer, permit));
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
    async fn connection(self, stream: TcpStream, peer: SocketAddr, _permit: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "the connection was gone before its first request");
            return;
        }
        let requests = Arc::new(Requests::default());
        let stream = HeaderTimeout::new(stream, self.header_timeout, Arc::clone(&requests));
        let router = self.router;
        let service = service_fn(move |request: Request<Incoming>| {
            requests.begin(request.version());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            let response = router.clone().call(request);
            let requests = Arc::clone(&requests);
            async move {
                let response = response.await;
                requests.answer();
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
        };
        if let Err(error) = result {
            // Clients come and go as they like: not a matter for anybody's night.
            tracing::debug!(%peer, error, "connection ended early");
        }
    }
}

#[cfg(test)]
mod tests;
