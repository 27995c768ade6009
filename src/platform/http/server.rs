//! Listening, serving and draining.
//!
//! `axum::serve` has no timeout for a client that sends its headers one byte a minute, and no end to a
//! graceful shutdown, so the accept loop is our own: HTTP/1.1 and HTTP/2 without TLS (which ends at the load
//! balancer), a limit on connections, a limit on how long a request's headers may take, and a drain with a
//! deadline.
//!
//! One connection is one task, and nothing that happens in it reaches the accept loop.
use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, Version},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

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

/// What a connection's service knows of its requests, for its [`HeaderTimeout`].
#[derive(Debug, Default)]
struct Requests {
    begun: AtomicUsize,
    answered: AtomicUsize,
    multiplexed: AtomicBool,
}

impl Requests {
    /// A request's headers have arrived whole.
    fn begin(&self, version: Version) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.multiplexed.store(version == Version::HTTP_2, Ordering::Relaxed);
    }

    fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether what arrives now can only be the headers of a request.
    fn headers_are_next(&self) -> bool {
        self.begun.load(Ordering::Relaxed) == self.answered.load(Ordering::Relaxed)
            && !self.multiplexed.load(Ordering::Relaxed)
    }
}

/// A stream that fails when a request's headers take too long.
///
/// The time runs from accepting the connection, since a client that says nothing holds a connection too,
/// and again from the first byte that follows a request. hyper's own timeout cannot tell an idle connection
/// from a slow client, and does not run at all until the first bytes have shown the protocol's version.
/// On HTTP/2 pings take over after the first request.
struct HeaderTimeout {
    stream: TcpStream,
    timeout: Duration,
    requests: Arc<Requests>,
    /// How many requests had begun when it last looked.
    seen: usize,
    /// Since when headers are awaited.
    since: Option<Instant>,
    /// Made only when headers do not come in one piece, which is seldom.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl HeaderTimeout {
    fn new(stream: TcpStream, timeout: Duration, requests: Arc<Requests>) -> Self {
        Self { stream, timeout, requests, seen: 0, since: Some(Instant::now()), alarm: None }
    }

    fn poll_timeout(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(since) = self.since else { return Poll::Pending };
        let timeout = self.timeout;
        self.alarm.get_or_insert_with(|| Box::pin(sleep_until(since + timeout))).as_mut().poll(context)
    }
}

impl AsyncRead for HeaderTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begun = self.requests.begun.load(Ordering::Relaxed);
        if begun != self.seen {
            self.seen = begun;
            self.since = None;
            self.alarm = None;
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if result.is_pending() && self.poll_timeout(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if buffer.filled().len() > before && self.since.is_none() && self.requests.headers_are_next() {
            self.since = Some(Instant::now());
        }
        result
    }
}

impl AsyncWrite for HeaderTimeout {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::{extract::State, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
        time::timeout,
    };

    use super::*;

    const LIMITS: Limits = Limits { max_connections: 100, header_timeout: Duration::from_millis(200) };

    /// Far beyond what anything here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Requests to `/held` are answered when `release` is notified; `entered` tells that one is being held.
    #[derive(Clone, Default)]
    struct Gate {
        entered: Arc<Notify>,
        release: Arc<Notify>,
    }

    async fn start(limits: Limits) -> (Server, SocketAddr, Gate) {
        let gate = Gate::default();
        let held = async |State(gate): State<Gate>| {
            gate.entered.notify_one();
            gate.release.notified().await;
            "released"
        };
        let peer = async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.ip().to_string();
        let panics = async || -> String { panic!("a panic of the test") };
        let echo = async |body: String| body;
        let router = Router::new()
            .route("/", get(peer).post(echo))
            .route("/held", get(held))
            .route("/panic", get(panics))
            .with_state(gate.clone());
        let listener = Listener::bind("API_ADDRESS", ([127, 0, 0, 1], 0).into(), limits).await.unwrap();
        let address = listener.local_address();
        (listener.serve(router), address, gate)
    }

    struct Client(TcpStream);

    impl Client {
        async fn connect(address: SocketAddr) -> Self {
            Self(TcpStream::connect(address).await.unwrap())
        }

        async fn send(&mut self, text: &str) -> &mut Self {
            self.0.write_all(text.as_bytes()).await.unwrap();
            self
        }

        async fn asks_for(&mut self, path: &str) -> &mut Self {
            self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await
        }

        /// Reads until `end` has come.
        async fn reads(&mut self, end: &str) -> String {
            let mut text = String::new();
            let reading = async {
                while !text.ends_with(end) {
                    text.push(char::from(self.0.read_u8().await.unwrap()));
                }
            };
            timeout(PATIENCE, reading).await.unwrap();
            text
        }

        /// Reads whatever comes until the server closes the connection.
        async fn is_closed(&mut self) -> String {
            let mut bytes = Vec::new();
            // A reset is an end, too.
            let _ = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.unwrap();
            String::from_utf8(bytes).unwrap()
        }
    }

    fn deadline() -> Instant {
        Instant::now() + PATIENCE
    }

    #[tokio::test]
    async fn a_request_carries_its_peer() {
        let (server, address, _) = start(LIMITS).await;
        let answer = Client::connect(address).await.asks_for("/").await.reads("127.0.0.1").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"));
        assert_eq!(server.drain(deadline()).await, Drained { cut: 0 });
    }

    #[tokio::test]
    async fn an_address_in_use_is_one_sentence() {
        let (_server, address, _) = start(LIMITS).await;
        let error = Listener::bind("API_ADDRESS", address, LIMITS).await.unwrap_err();
        let expected = format!("cannot listen on {address} (API_ADDRESS): another process already does");
        assert_eq!(error.to_string(), expected);
        let foreign = ([192, 0, 2, 1], 0).into();
        let error = Listener::bind("OPS_ADDRESS", foreign, LIMITS).await.unwrap_err();
        assert!(matches!(error, ServerError::NotAvailable { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_silent_client_and_a_slow_one_lose_their_connection() {
        let (_server, address, _) = start(LIMITS).await;
        let mut silent = Client::connect(address).await;
        let mut slow = Client::connect(address).await;
        slow.send("GET / HTTP/1.1\r\nhost:").await;
        let mut half_a_preface = Client::connect(address).await;
        half_a_preface.send("PRI * HTTP/2.0").await;
        assert_eq!(silent.is_closed().await, "");
        assert_eq!(slow.is_closed().await, "");
        assert_eq!(half_a_preface.is_closed().await, "");
    }

    #[tokio::test]
    async fn an_idle_connection_outlives_the_header_timeout_and_a_slow_second_request_does_not() {
        let (_server, address, _) = start(LIMITS).await;
        let (mut idle, mut slow) = (Client::connect(address).await, Client::connect(address).await);
        idle.asks_for("/").await.reads("127.0.0.1").await;
        slow.asks_for("/").await.reads("127.0.0.1").await;
        slow.send("GET").await;
        assert_eq!(slow.is_closed().await, "");
        idle.asks_for("/").await.reads("127.0.0.1").await;
    }

    #[tokio::test]
    async fn a_slow_body_is_not_a_slow_header() {
        let (_server, address, _) = start(LIMITS).await;
        let (mut uploading, mut slow) = (Client::connect(address).await, Client::connect(address).await);
        uploading.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nfirst").await;
        slow.send("GET").await;
        assert_eq!(slow.is_closed().await, "");
        uploading.send("-last").await.reads("first-last").await;
    }

    #[tokio::test]
    async fn one_connection_too_many_waits_for_its_turn() {
        let (_server, address, gate) = start(Limits { max_connections: 1, ..LIMITS }).await;
        let mut first = Client::connect(address).await;
        first.asks_for("/held").await;
        gate.entered.notified().await;
        let mut second = Client::connect(address).await;
        second.asks_for("/").await;
        assert!(timeout(LIMITS.header_timeout, second.0.readable()).await.is_err());
        gate.release.notify_one();
        first.reads("released").await;
        drop(first);
        second.reads("127.0.0.1").await;
    }

    #[tokio::test]
    async fn a_panic_costs_one_connection() {
        let (server, address, _) = start(LIMITS).await;
        assert_eq!(Client::connect(address).await.asks_for("/panic").await.is_closed().await, "");
        Client::connect(address).await.asks_for("/").await.reads("127.0.0.1").await;
        assert_eq!(server.drain(deadline()).await, Drained { cut: 0 });
    }

    #[tokio::test]
    async fn draining_closes_idle_connections_and_lets_requests_finish() {
        let (server, address, gate) = start(Limits { header_timeout: PATIENCE, ..LIMITS }).await;
        let (mut silent, mut idle) = (Client::connect(address).await, Client::connect(address).await);
        idle.asks_for("/").await.reads("127.0.0.1").await;
        let mut busy = Client::connect(address).await;
        busy.asks_for("/held").await;
        gate.entered.notified().await;
        let draining = tokio::spawn(server.drain(deadline()));
        silent.is_closed().await;
        idle.is_closed().await;
        assert!(TcpStream::connect(address).await.is_err());
        assert!(!draining.is_finished());
        gate.release.notify_one();
        assert!(busy.is_closed().await.ends_with("released"));
        assert_eq!(draining.await.unwrap(), Drained { cut: 0 });
    }

    #[tokio::test]
    async fn what_is_not_done_at_the_deadline_is_cut_and_counted() {
        let (server, address, gate) = start(LIMITS).await;
        let mut busy = Client::connect(address).await;
        busy.asks_for("/held").await;
        gate.entered.notified().await;
        assert_eq!(server.drain(Instant::now()).await, Drained { cut: 1 });
        assert_eq!(busy.is_closed().await, "");
    }

    #[tokio::test]
    async fn http_2_is_spoken_without_tls() {
        let (server, address, _) = start(LIMITS).await;
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("http://{address}/")).body(Body::empty()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        assert_eq!(server.drain(deadline()).await, Drained { cut: 0 });
    }

    #[tokio::test]
    async fn oversized_headers_are_refused() {
        let (_server, address, _) = start(LIMITS).await;
        let mut client = Client::connect(address).await;
        client.send(&format!("GET / HTTP/1.1\r\ncookie: {}\r\n", "c".repeat(HEADERS_LIMIT.into()))).await;
        assert!(client.is_closed().await.starts_with("HTTP/1.1 431"));
        let mut client = Client::connect(address).await;
        client.send(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101))).await;
        assert!(client.is_closed().await.starts_with("HTTP/1.1 431"));
    }
}
