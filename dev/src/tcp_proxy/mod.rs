//! A TCP proxy between two parts of the system, for tests that cut, slow or stall the connections.
//!
//! A server can fail in three ways, and its clients must survive each. It closes connections at once (a restart), it
//! stops responding (a lock-up, a lost route), or another host takes over its address. With several servers the proxy
//! is also a load balancer: each connection goes to the next server that accepts it.
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

/// Timeout far above the time that a server on this machine takes to accept, even under load.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Passes all data, each piece after this delay.
    Flowing(Duration),
    Frozen,
    Cut,
}

/// Passes all data without delay.
const WELL: Flow = Flow::Flowing(Duration::ZERO);

/// A TCP proxy. Dropping the value ends it.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    wire: Arc<ProxyState>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct ProxyState {
    far_ends: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
    /// State of new connections.
    flow: Mutex<watch::Sender<Flow>>,
    /// State of connections to hosts that were replaced. No more data passes on these connections.
    lost: Mutex<Vec<watch::Sender<Flow>>>,
    rejected: AtomicUsize,
    round_trips: AtomicUsize,
    bytes_back: AtomicUsize,
}

impl TcpProxy {
    /// Opens a proxy to these servers.
    pub async fn open(far_ends: Vec<SocketAddr>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let wire = Arc::new(ProxyState {
            far_ends: Mutex::new(far_ends),
            turn: AtomicUsize::new(0),
            flow: Mutex::new(watch::Sender::new(WELL)),
            lost: Mutex::default(),
            rejected: AtomicUsize::new(0),
            round_trips: AtomicUsize::new(0),
            bytes_back: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&wire)));
        Ok(Self { address, wire, accepting })
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
    pub fn leads_to(&self, url: &Url) -> Url {
        let mut url = url.clone();
        // Both calls fail only for a URL without a host. Such a server could not have been reached.
        url.set_ip_host(self.address.ip()).ok();
        url.set_port(Some(self.address.port())).ok();
        url
    }

    /// Stops all data in both directions, while connections stay open.
    pub fn freeze(&self) {
        self.set(Flow::Frozen);
    }

    /// Delays all data.
    pub fn slow(&self, delay: Duration) {
        self.set(Flow::Flowing(delay));
    }

    /// Closes every connection, and each new connection at once.
    pub fn cut(&self) {
        self.set(Flow::Cut);
    }

    /// Closes every connection. New connections work.
    pub fn interrupt(&self) {
        self.replace().send_replace(Flow::Cut);
    }

    /// Lets all data pass again, including data held back in the meantime.
    pub fn mend(&self) {
        self.set(WELL);
    }

    /// Replaces the server's host: new connections work, and old connections never receive data again.
    pub fn fails_over(&self) {
        let old = self.replace();
        old.send_replace(Flow::Frozen);
        lock(&self.wire.lost).push(old);
    }

    /// Leads new connections to this server. Open connections are not affected.
    pub fn lead_to(&self, server: SocketAddr) {
        *lock(&self.wire.far_ends) = vec![server];
    }

    /// Returns the number of connections that were closed on arrival.
    pub fn rejected(&self) -> usize {
        self.wire.rejected.load(Ordering::Relaxed)
    }

    /// Returns the number of round trips so far on all connections, for a database server without TLS.
    pub fn round_trips(&self) -> usize {
        self.wire.round_trips.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the server has sent so far on all connections.
    pub fn bytes_back(&self) -> usize {
        self.wire.bytes_back.load(Ordering::Relaxed)
    }

    fn set(&self, flow: Flow) {
        lock(&self.wire.flow).send_replace(flow);
    }

    fn replace(&self) -> watch::Sender<Flow> {
        std::mem::replace(&mut *lock(&self.wire.flow), watch::Sender::new(WELL))
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProxyState {
    /// Connects to the next server that accepts; `None` if none does.
    async fn connect(&self) -> Option<TcpStream> {
        let far_ends = lock(&self.far_ends).clone();
        for _ in &far_ends {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % far_ends.len();
            let far_end = far_ends.get(turn)?;
            if let Ok(Ok(connection)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(far_end)).await {
                return Some(connection);
            }
        }
        None
    }
}

async fn accept(listener: TcpListener, wire: Arc<ProxyState>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let flow = lock(&wire.flow).subscribe();
        if *flow.borrow() == Flow::Cut {
            wire.rejected.fetch_add(1, Ordering::Relaxed);
        } else {
            connections.spawn(connect(client, Arc::clone(&wire), flow));
        }
    }
}

async fn connect(client: TcpStream, wire: Arc<ProxyState>, mut flow: watch::Receiver<Flow>) {
    // A frozen server does not respond to a new connection either, even if it has ended.
    if flow.wait_for(|flow| *flow != Flow::Frozen).await.is_err() {
        return;
    }
    // No server accepts. The client sees a closed connection, as without the proxy.
    let Some(server) = wire.connect().await else { return };
    let (from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let mut counter = RoundTripCounter::default();
    let count = |piece: &[u8]| {
        wire.bytes_back.fetch_add(piece.len(), Ordering::Relaxed);
        counter.count(piece, &wire.round_trips);
    };
    let mut cut = flow.clone();
    let server_ends = async {
        pass(from_server, &mut to_client, flow.clone(), count).await;
        // A frozen connection does not pass on the server's end either. A lost host sends nothing at all.
        let _ended = flow.wait_for(|flow| *flow != Flow::Frozen).await;
    };
    tokio::select! {
        () = pass(from_client, &mut to_server, cut.clone(), |_| {}) => {}
        () = server_ends => {}
        _ = cut.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

/// Copies data while both sides are connected, and passes each piece to an observer.
async fn pass(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
    mut show: impl FnMut(&[u8]),
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let flowing = flow.wait_for(|flow| matches!(flow, Flow::Flowing(_))).await.map(|flow| *flow);
        let Ok(Flow::Flowing(delay)) = flowing else { return };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let Some(piece) = buffer.get(..read) else { return };
        show(piece);
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frozen_connection_hides_the_end_of_its_server() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = TcpProxy::open(vec![server.local_addr().unwrap()]).await.unwrap();
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        let (accepted, _) = server.accept().await.unwrap();
        proxy.freeze();
        drop((accepted, server));
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        let silence = Duration::from_millis(200);
        let mut byte = [0];
        assert!(timeout(silence, old.read(&mut byte)).await.is_err(), "an open connection ended");
        assert!(timeout(silence, new.read(&mut byte)).await.is_err(), "a new connection ended");
        proxy.mend();
        assert_eq!(old.read(&mut byte).await.unwrap_or(0), 0);
        assert_eq!(new.read(&mut byte).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_frozen_connection_passes_on_the_end_of_its_client() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = TcpProxy::open(vec![server.local_addr().unwrap()]).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut accepted, _) = server.accept().await.unwrap();
        proxy.fails_over();
        drop(client);
        let end = timeout(CONNECT_TIMEOUT, accepted.read(&mut [0])).await;
        assert_eq!(end.expect("the server's connection ends").unwrap_or(0), 0);
    }
}
