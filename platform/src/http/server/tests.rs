use axum::{extract::State, http::Version, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::timeout,
};

use super::*;

const LIMITS: Limits = Limits {
    max_connections: 100,
    max_connections_per_address: 0,
    proxies: Vec::new(),
    header_timeout: Duration::from_millis(200),
    write_timeout: WAIT_TIMEOUT,
    idle_timeout: WAIT_TIMEOUT,
};

/// Maximum time that a test waits for one step, far longer than any step takes.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Control of requests to `/held`: `entered` is notified when a request arrives, and `release` lets it respond.
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

    async fn request(&mut self, path: &str) -> &mut Self {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await
    }

    /// Reads until `end` arrives. Returns the text up to and including `end`.
    async fn read_until(&mut self, end: &str) -> String {
        let mut text = String::new();
        let reading = async {
            while !text.ends_with(end) {
                text.push(char::from(self.0.read_u8().await.unwrap()));
            }
        };
        timeout(WAIT_TIMEOUT, reading).await.unwrap();
        text
    }

    /// Reads everything until the server closes the connection.
    async fn read_until_closed(&mut self) -> String {
        let mut bytes = Vec::new();
        // A reset also counts as closed.
        let _ = timeout(WAIT_TIMEOUT, self.0.read_to_end(&mut bytes)).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

fn deadline() -> Instant {
    Instant::now() + WAIT_TIMEOUT
}

#[tokio::test]
async fn a_request_carries_the_address_of_its_peer() {
    let (server, address, _) = start(LIMITS).await;
    let response = Client::connect(address).await.request("/").await.read_until("127.0.0.1").await;
    assert!(response.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(server.drain(deadline()).await, DrainReport { cut: 0 });
}

#[tokio::test]
async fn a_bind_error_names_the_setting_and_the_address() {
    let (_server, address, _) = start(LIMITS).await;
    let error = Listener::bind("API_ADDRESS", address, LIMITS).await.unwrap_err();
    let expected = format!("failed to listen on {address} (API_ADDRESS): the port is in use");
    assert_eq!(error.to_string(), expected);
    let foreign = ([192, 0, 2, 1], 0).into();
    let error = Listener::bind("OPS_ADDRESS", foreign, LIMITS).await.unwrap_err();
    assert!(matches!(error, ServerError::NotAvailable { .. }), "{error}");
}

#[tokio::test]
async fn connections_without_complete_headers_are_closed() {
    let (_server, address, _) = start(LIMITS).await;
    let mut silent = Client::connect(address).await;
    let mut slow = Client::connect(address).await;
    slow.send("GET / HTTP/1.1\r\nhost:").await;
    let mut half_a_preface = Client::connect(address).await;
    half_a_preface.send("PRI * HTTP/2.0").await;
    assert_eq!(silent.read_until_closed().await, "");
    assert_eq!(slow.read_until_closed().await, "");
    assert_eq!(half_a_preface.read_until_closed().await, "");
}

#[tokio::test]
async fn the_header_timeout_ends_slow_requests_not_idle_connections() {
    let (_server, address, _) = start(LIMITS).await;
    let (mut idle, mut slow) = (Client::connect(address).await, Client::connect(address).await);
    idle.request("/").await.read_until("127.0.0.1").await;
    slow.request("/").await.read_until("127.0.0.1").await;
    slow.send("GET").await;
    assert_eq!(slow.read_until_closed().await, "");
    idle.request("/").await.read_until("127.0.0.1").await;
}

#[tokio::test]
async fn a_slow_body_does_not_trigger_the_header_timeout() {
    let (_server, address, _) = start(LIMITS).await;
    let (mut uploading, mut slow) = (Client::connect(address).await, Client::connect(address).await);
    uploading.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nfirst").await;
    slow.send("GET").await;
    assert_eq!(slow.read_until_closed().await, "");
    uploading.send("-last").await.read_until("first-last").await;
}

#[tokio::test]
async fn a_half_closed_connection_is_served_and_then_closed() {
    let (_server, address, gate) = start(LIMITS).await;
    let mut client = Client::connect(address).await;
    client.request("/held").await;
    gate.entered.notified().await;
    client.0.shutdown().await.unwrap();
    // During these 100 ms the server receives the end of the client's input. The server cannot distinguish a half-closed
    // connection from a closed one, so the request must continue for a while.
    assert!(timeout(Duration::from_millis(100), client.0.readable()).await.is_err());
    gate.release.notify_one();
    assert!(client.read_until_closed().await.ends_with("released"));
}

#[tokio::test]
async fn a_client_disconnect_ends_its_request() {
    let (server, address, gate) = start(LIMITS).await;
    let mut client = Client::connect(address).await;
    client.request("/held").await;
    gate.entered.notified().await;
    drop(client);
    assert_eq!(
        server.drain(deadline()).await,
        DrainReport { cut: 0 },
        "the request continued after its client disconnected"
    );
}

#[tokio::test]
async fn a_proxy_is_exempt_from_the_per_address_limit() {
    let limits = Limits { max_connections_per_address: 1, ..LIMITS };
    let (_server, address, _) =
        start(Limits { proxies: vec!["127.0.0.0/8".parse().unwrap()], ..limits }).await;
    let (mut one, mut other) = (Client::connect(address).await, Client::connect(address).await);
    one.request("/").await.read_until("127.0.0.1").await;
    other.request("/").await.read_until("127.0.0.1").await;
}

#[tokio::test]
async fn one_connection_over_the_limit_waits() {
    let (_server, address, gate) = start(Limits { max_connections: 1, ..LIMITS }).await;
    let mut first = Client::connect(address).await;
    first.request("/held").await;
    gate.entered.notified().await;
    let mut second = Client::connect(address).await;
    second.request("/").await;
    assert!(timeout(LIMITS.header_timeout, second.0.readable()).await.is_err());
    gate.release.notify_one();
    first.read_until("released").await;
    drop(first);
    second.read_until("127.0.0.1").await;
}

#[tokio::test]
async fn a_panic_closes_only_its_connection() {
    let (server, address, _) = start(LIMITS).await;
    assert_eq!(Client::connect(address).await.request("/panic").await.read_until_closed().await, "");
    Client::connect(address).await.request("/").await.read_until("127.0.0.1").await;
    assert_eq!(server.drain(deadline()).await, DrainReport { cut: 0 });
}

#[tokio::test]
async fn draining_closes_idle_connections_and_lets_requests_finish() {
    let (server, address, gate) = start(Limits { header_timeout: WAIT_TIMEOUT, ..LIMITS }).await;
    let (mut silent, mut idle) = (Client::connect(address).await, Client::connect(address).await);
    idle.request("/").await.read_until("127.0.0.1").await;
    let mut busy = Client::connect(address).await;
    busy.request("/held").await;
    gate.entered.notified().await;
    let draining = tokio::spawn(server.drain(deadline()));
    silent.read_until_closed().await;
    idle.read_until_closed().await;
    assert!(TcpStream::connect(address).await.is_err());
    assert!(!draining.is_finished());
    gate.release.notify_one();
    assert!(busy.read_until_closed().await.ends_with("released"));
    assert_eq!(draining.await.unwrap(), DrainReport { cut: 0 });
}

#[tokio::test]
async fn connections_open_at_the_deadline_are_closed_and_counted() {
    let (server, address, gate) = start(LIMITS).await;
    let mut busy = Client::connect(address).await;
    busy.request("/held").await;
    gate.entered.notified().await;
    assert_eq!(server.drain(Instant::now()).await, DrainReport { cut: 1 });
    assert_eq!(busy.read_until_closed().await, "");
}

#[tokio::test]
async fn http_2_works_without_tls() {
    let (server, address, _) = start(LIMITS).await;
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{address}/")).body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    assert_eq!(server.drain(deadline()).await, DrainReport { cut: 0 });
}

#[tokio::test]
async fn oversized_headers_are_rejected() {
    let (_server, address, _) = start(LIMITS).await;
    let mut client = Client::connect(address).await;
    client.send(&format!("GET / HTTP/1.1\r\ncookie: {}\r\n", "c".repeat(HEADERS_LIMIT.into()))).await;
    assert!(client.read_until_closed().await.starts_with("HTTP/1.1 431"));
    let mut client = Client::connect(address).await;
    client.send(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101))).await;
    assert!(client.read_until_closed().await.starts_with("HTTP/1.1 431"));
}
