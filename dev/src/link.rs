//! A TCP link between two parts of the system, which can be cut, slowed and stalled.
//!
//! With several upstreams it is a balancer as well: each connection goes to the next one that accepts it.
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Longer than a part of this machine takes to accept, however busy it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How the link is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    /// Connections of an older generation are cut.
    generation: u64,
    /// Added to every piece that passes, in each direction.
    delay: Duration,
    /// Whatever is sent waits.
    stalled: bool,
}

/// A link that is open until it is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// Listens on a port of its own, and passes on to these.
    pub async fn open(upstreams: Vec<SocketAddr>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = watch::Sender::new(State::default());
        let upstreams = Arc::new(Upstreams { addresses: upstreams, next: AtomicUsize::new(0) });
        let accepting = tokio::spawn(accept(listener, upstreams, state.subscribe()));
        Ok(Self { address, state, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection that is open now.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Delays every piece that passes.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Passes nothing any more, and keeps what is sent.
    pub fn stall(&self) {
        self.state.send_modify(|state| state.stalled = true);
    }

    /// Passes everything at once again.
    pub fn clear(&self) {
        self.state.send_modify(|state| (state.delay, state.stalled) = (Duration::ZERO, false));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

struct Upstreams {
    addresses: Vec<SocketAddr>,
    next: AtomicUsize,
}

impl Upstreams {
    /// The next one that accepts; `None` if none does.
    async fn connect(&self) -> Option<TcpStream> {
        for _ in &self.addresses {
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.addresses.len();
            let address = self.addresses.get(turn)?;
            if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                return Some(stream);
            }
        }
        None
    }
}

async fn accept(listener: TcpListener, upstreams: Arc<Upstreams>, state: watch::Receiver<State>) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        let (upstreams, state) = (Arc::clone(&upstreams), state.clone());
        tokio::spawn(async move {
            let generation = state.borrow().generation;
            // Nobody accepts: the near side sees its connection closed, as it would without a link.
            let Some(far) = upstreams.connect().await else { return };
            let (near, far) = (near.into_split(), far.into_split());
            let mut cut = state.clone();
            let passed = async {
                tokio::join!(pass(near.0, far.1, state.clone()), pass(far.0, near.1, state.clone()))
            };
            tokio::select! {
                _ = passed => {}
                _ = cut.wait_for(|state| state.generation != generation) => {}
            }
        });
    }
}

/// Passes on what one side sends, until it ends. Then the other side is told, and may still answer.
async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let length = match from.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        let delay = match state.wait_for(|state| !state.stalled).await {
            Ok(state) => state.delay,
            Err(_) => break,
        };
        sleep(delay).await;
        let Some(piece) = piece.get(..length) else { break };
        if to.write_all(piece).await.is_err() {
            break;
        }
    }
    // It may be closed already, which is what is wanted.
    let _ = to.shutdown().await;
}
