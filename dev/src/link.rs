//! The wire between two parts of the system, for tests that cut, slow or stall it.
//!
//! What is at its far end can be away in three ways, and whoever needs it must survive each: connections are closed
//! at once (a restart), nothing is said any more (a lock-up, a lost route), or the host is gone for good and another
//! one has its address. With several far ends it is a balancer as well: each connection goes to the next one that
//! accepts it.
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

use self::round_trips::Answers;

/// Longer than a part of this machine takes to accept, however busy it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Everything passes, each piece after this time.
    Flowing(Duration),
    Frozen,
    Cut,
}

/// At once, as a wire should be.
const WELL: Flow = Flow::Flowing(Duration::ZERO);

/// A wire. It is gone when this is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    wire: Arc<Wire>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Wire {
    far_ends: Vec<SocketAddr>,
    turn: AtomicUsize,
    /// What new connections follow.
    flow: Mutex<watch::Sender<Flow>>,
    /// What connections to hosts that are gone follow: nothing ever comes.
    lost: Mutex<Vec<watch::Sender<Flow>>>,
    refused: AtomicUsize,
    round_trips: AtomicUsize,
    bytes_back: AtomicUsize,
}

impl Link {
    /// A wire to these.
    pub async fn open(far_ends: Vec<SocketAddr>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let wire = Arc::new(Wire {
            far_ends,
            turn: AtomicUsize::new(0),
            flow: Mutex::new(watch::Sender::new(WELL)),
            lost: Mutex::default(),
            refused: AtomicUsize::new(0),
            round_trips: AtomicUsize::new(0),
            bytes_back: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&wire)));
        Ok(Self { address, wire, accepting })
    }

    /// A wire to the database server that this URL names.
    pub async fn to(server: &Url) -> io::Result<Self> {
        Self::open(server.socket_addrs(|| Some(5432))?).await
    }

    /// Where it is entered.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same URL, by way of this wire.
    pub fn leads_to(&self, url: &Url) -> Url {
        let mut url = url.clone();
        // Both fail only for a URL without a host, which no server has been reached at.
        url.set_ip_host(self.address.ip()).ok();
        url.set_port(Some(self.address.port())).ok();
        url
    }

    /// Nothing passes any more, in either direction; connections stay open and say nothing.
    pub fn freeze(&self) {
        self.set(Flow::Frozen);
    }

    /// Everything passes late.
    pub fn slow(&self, delay: Duration) {
        self.set(Flow::Flowing(delay));
    }

    /// Closes every connection, and each new one at once.
    pub fn cut(&self) {
        self.set(Flow::Cut);
    }

    /// Closes every connection; new ones are well.
    pub fn interrupt(&self) {
        self.replace().send_replace(Flow::Cut);
    }

    /// Everything passes again, also what was held up meanwhile.
    pub fn mend(&self) {
        self.set(WELL);
    }

    /// Another host takes the place of the far end: new connections are well, and the old ones never hear again.
    pub fn fails_over(&self) {
        let old = self.replace();
        old.send_replace(Flow::Frozen);
        lock(&self.wire.lost).push(old);
    }

    /// How many connections were closed as soon as they came.
    pub fn refused(&self) -> usize {
        self.wire.refused.load(Ordering::Relaxed)
    }

    /// How many round trips have been made so far, by all connections, where the far end is a database server that is
    /// spoken to without TLS.
    pub fn round_trips(&self) -> usize {
        self.wire.round_trips.load(Ordering::Relaxed)
    }

    /// How many bytes the far end has sent so far, on all connections.
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

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    /// A connection to the next far end that accepts it; `None` if none does.
    async fn connect(&self) -> Option<TcpStream> {
        for _ in &self.far_ends {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.far_ends.len();
            let far_end = self.far_ends.get(turn)?;
            if let Ok(Ok(connection)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(far_end)).await {
                return Some(connection);
            }
        }
        None
    }
}

async fn accept(listener: TcpListener, wire: Arc<Wire>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let flow = lock(&wire.flow).subscribe();
        if *flow.borrow() == Flow::Cut {
            wire.refused.fetch_add(1, Ordering::Relaxed);
        } else {
            connections.spawn(connect(client, Arc::clone(&wire), flow));
        }
    }
}

async fn connect(client: TcpStream, wire: Arc<Wire>, mut flow: watch::Receiver<Flow>) {
    // Nobody accepts: the client sees its connection closed, as it would without a wire.
    let Some(server) = wire.connect().await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut answers = Answers::default();
    let count = |piece: &[u8]| {
        wire.bytes_back.fetch_add(piece.len(), Ordering::Relaxed);
        answers.count(piece, &wire.round_trips);
    };
    tokio::select! {
        () = pass(from_client, to_server, flow.clone(), |_| {}) => {}
        () = pass(from_server, to_client, flow.clone(), count) => {}
        _ = flow.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

/// Passes on what comes, for as long as both sides are there, and shows it to somebody.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
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
