//! A TCP proxy between two parts of the system. The proxy cuts, slows, stalls or redirects connections, and counts
//! bytes and round trips.
//!
//! The proxy simulates three failures of a server: the server closes all connections (a restart), the server stops
//! responding (a lock-up, a lost route), or another host takes over the server's address. With several servers the
//! proxy is also a load balancer: each connection goes to the next server that accepts it.
mod round_trips;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use url::Url;

use self::round_trips::RoundTripCounter;

/// Timeout of a connection attempt. A server on this machine accepts a connection far sooner, even under load.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Passes all data, each piece after this delay.
    Flowing(Duration),
    /// Holds all data back. Connections stay open, even if the server closes them.
    Frozen,
    /// Closes every connection.
    Cut,
}

/// Normal operation: passes all data without delay.
const UNDELAYED: Flow = Flow::Flowing(Duration::ZERO);

/// A TCP proxy. Dropping the value closes the proxy.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
    accept_task: JoinHandle<()>,
}

#[derive(Debug)]
struct ProxyState {
    servers: Mutex<Vec<SocketAddr>>,
    next_server: AtomicUsize,
    /// Flow of new connections, and of the connections opened since the last call of [`TcpProxy::interrupt`] or
    /// [`TcpProxy::replace_host`].
    flow: Mutex<watch::Sender<Flow>>,
    /// Flow of the connections to replaced hosts. No method changes this flow, so these connections never pass data
    /// again.
    replaced: Mutex<Vec<watch::Sender<Flow>>>,
    rejected: AtomicUsize,
    round_trips: AtomicUsize,
    bytes_back: AtomicUsize,
}

impl TcpProxy {
    /// Opens a proxy to these servers.
    pub async fn open(servers: Vec<SocketAddr>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(ProxyState {
            servers: Mutex::new(servers),
            next_server: AtomicUsize::new(0),
            flow: Mutex::new(watch::Sender::new(UNDELAYED)),
            replaced: Mutex::default(),
            rejected: AtomicUsize::new(0),
            round_trips: AtomicUsize::new(0),
            bytes_back: AtomicUsize::new(0),
        });
        let accept_task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, accept_task })
    }

    /// Opens a proxy to the database server of this URL.
    pub async fn to(server: &Url) -> io::Result<Self> {
        Self::open(server.socket_addrs(|| Some(5432))?).await
    }

    /// Returns the proxy's own address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the same URL with the proxy's address.
    pub fn url_through(&self, url: &Url) -> Url {
        let mut url = url.clone();
        // Both calls fail only for a URL without a host, to which no connection can be opened anyway.
        url.set_ip_host(self.address.ip()).ok();
        url.set_port(Some(self.address.port())).ok();
        url
    }

    /// Holds back all data in both directions. Connections stay open, even if the server closes them.
    pub fn freeze(&self) {
        self.set(Flow::Frozen);
    }

    /// Passes all data, each piece after this delay.
    pub fn slow(&self, delay: Duration) {
        self.set(Flow::Flowing(delay));
    }

    /// Closes every connection, and every new connection on arrival.
    pub fn cut(&self) {
        self.set(Flow::Cut);
    }

    /// Closes every connection. New connections work.
    pub fn interrupt(&self) {
        self.replace().send_replace(Flow::Cut);
    }

    /// Passes all data again, including data that was held back.
    pub fn resume(&self) {
        self.set(UNDELAYED);
    }

    /// Simulates the loss of the server's host: new connections work, and old connections never receive data again. No
    /// later call affects the old connections.
    pub fn replace_host(&self) {
        let old = self.replace();
        old.send_replace(Flow::Frozen);
        lock(&self.state.replaced).push(old);
    }

    /// Directs new connections to this server. Open connections are not affected.
    pub fn redirect_to(&self, server: SocketAddr) {
        *lock(&self.state.servers) = vec![server];
    }

    /// Returns the number of connections that were closed on arrival.
    pub fn rejected(&self) -> usize {
        self.state.rejected.load(Ordering::Relaxed)
    }

    /// Returns the number of round trips so far on all connections, for a database server without TLS.
    pub fn round_trips(&self) -> usize {
        self.state.round_trips.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the proxy has passed from the servers to the clients so far.
    pub fn bytes_back(&self) -> usize {
        self.state.bytes_back.load(Ordering::Relaxed)
    }

    fn set(&self, flow: Flow) {
        lock(&self.state.flow).send_replace(flow);
    }

    fn replace(&self) -> watch::Sender<Flow> {
        std::mem::replace(&mut *lock(&self.state.flow), watch::Sender::new(UNDELAYED))
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProxyState {
    /// Connects to the next server that accepts. Returns `None` if no server accepts.
    async fn connect(&self) -> Option<TcpStream> {
        let servers = lock(&self.servers).clone();
        for _ in &servers {
            let next_server = self.next_server.fetch_add(1, Ordering::Relaxed) % servers.len();
            let server = servers.get(next_server)?;
            if let Ok(Ok(connection)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(server)).await {
                return Some(connection);
            }
        }
        None
    }
}

async fn accept(listener: TcpListener, state: Arc<ProxyState>) {
    let mut connections = JoinSet::new();
    loop {
        // A failed `accept` concerns one connection, or a temporary lack of file descriptors.
        let Ok((client, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let flow = lock(&state.flow).subscribe();
        if *flow.borrow() == Flow::Cut {
            state.rejected.fetch_add(1, Ordering::Relaxed);
        } else {
            connections.spawn(connect(client, Arc::clone(&state), flow));
        }
    }
}

async fn connect(client: TcpStream, state: Arc<ProxyState>, mut flow: watch::Receiver<Flow>) {
    // While the proxy is frozen, a new connection stays open without data, even if the server has ended.
    if flow.wait_for(|flow| *flow != Flow::Frozen).await.is_err() {
        return;
    }
    // If no server accepts, the client's connection is closed. Without the proxy, it would be refused.
    let Some(server) = state.connect().await else { return };
    let (from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let mut counter = RoundTripCounter::default();
    let count = |piece: &[u8]| {
        state.bytes_back.fetch_add(piece.len(), Ordering::Relaxed);
        counter.count(piece, &state.round_trips);
    };
    let mut cut = flow.clone();
    let server_ended = async {
        pass(from_server, &mut to_client, flow.clone(), count).await;
        // A frozen connection does not show that the server has closed it, because a lost host sends nothing.
        let _ended = flow.wait_for(|flow| *flow != Flow::Frozen).await;
    };
    tokio::select! {
        () = pass(from_client, &mut to_server, cut.clone(), |_| {}) => {}
        () = server_ended => {}
        _ = cut.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

/// Copies data while both sides are connected, and passes each piece to an observer.
async fn pass(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
    mut observe: impl FnMut(&[u8]),
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let flowing = flow.wait_for(|flow| matches!(flow, Flow::Flowing(_))).await.map(|flow| *flow);
        let Ok(Flow::Flowing(delay)) = flowing else { return };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let Some(piece) = buffer.get(..read) else { return };
        observe(piece);
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frozen_connection_hides_that_the_server_closed_it() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = TcpProxy::open(vec![server.local_addr().unwrap()]).await.unwrap();
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        let (accepted, _) = server.accept().await.unwrap();
        proxy.freeze();
        drop((accepted, server));
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        let no_data_time = Duration::from_millis(200);
        let mut byte = [0];
        assert!(timeout(no_data_time, old.read(&mut byte)).await.is_err(), "an open connection ended");
        assert!(timeout(no_data_time, new.read(&mut byte)).await.is_err(), "a new connection ended");
        proxy.resume();
        assert_eq!(old.read(&mut byte).await.unwrap_or(0), 0);
        assert_eq!(new.read(&mut byte).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_frozen_connection_shows_that_the_client_closed_it() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = TcpProxy::open(vec![server.local_addr().unwrap()]).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        proxy.replace_host();
        drop(client);
        let closed = timeout(CONNECT_TIMEOUT, accepted.read(&mut [0])).await;
        assert_eq!(closed.expect("the server's connection did not end").unwrap_or(0), 0);
    }
}
