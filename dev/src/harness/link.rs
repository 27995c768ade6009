//! The wire between a service and its database, in the hands of a test.
//!
//! A database can be away in three ways, and a service must survive each: connections are closed at once (a restart),
//! nothing is said any more (a lock-up, a lost route), or the host is gone for good and another one has its address.
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use url::Url;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Flowing,
    Frozen,
    Cut,
}

/// A wire to a server. It is gone when this is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    wire: Arc<Wire>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Wire {
    server: SocketAddr,
    /// What new connections follow.
    flow: Mutex<watch::Sender<Flow>>,
    /// What connections to hosts that are gone follow: nothing ever comes.
    lost: Mutex<Vec<watch::Sender<Flow>>>,
    refused: AtomicUsize,
}

impl Link {
    /// A wire to the server that this URL names.
    pub async fn to(server: &Url) -> Self {
        let server = server.socket_addrs(|| Some(5432)).expect("the server has an address")[0];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("there is a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let wire = Arc::new(Wire {
            server,
            flow: Mutex::new(watch::Sender::new(Flow::Flowing)),
            lost: Mutex::default(),
            refused: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&wire)));
        Self { address, wire, accepting }
    }

    /// The same URL, by way of this wire.
    pub fn leads_to(&self, url: &Url) -> Url {
        let mut url = url.clone();
        url.set_ip_host(self.address.ip()).expect("the URL has a host");
        url.set_port(Some(self.address.port())).expect("the URL has a host");
        url
    }

    /// Nothing passes any more, in either direction; connections stay open and say nothing.
    pub fn freeze(&self) {
        self.set(Flow::Frozen);
    }

    /// Closes every connection, and each new one at once.
    pub fn cut(&self) {
        self.set(Flow::Cut);
    }

    /// Everything passes again, also what was held up meanwhile.
    pub fn mend(&self) {
        self.set(Flow::Flowing);
    }

    /// Another host takes the place of the server: new connections are well, and the old ones never hear again.
    pub fn fails_over(&self) {
        let old = std::mem::replace(&mut *lock(&self.wire.flow), watch::Sender::new(Flow::Flowing));
        old.send_replace(Flow::Frozen);
        lock(&self.wire.lost).push(old);
    }

    /// How many connections were closed as soon as they came.
    pub fn refused(&self) -> usize {
        self.wire.refused.load(Ordering::Relaxed)
    }

    fn set(&self, flow: Flow) {
        lock(&self.wire.flow).send_replace(flow);
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

async fn accept(listener: TcpListener, wire: Arc<Wire>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let flow = lock(&wire.flow).subscribe();
        if *flow.borrow() == Flow::Cut {
            wire.refused.fetch_add(1, Ordering::Relaxed);
        } else {
            connections.spawn(connect(client, wire.server, flow));
        }
    }
}

async fn connect(client: TcpStream, server: SocketAddr, mut flow: watch::Receiver<Flow>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pass(from_client, to_server, flow.clone()) => {}
        () = pass(from_server, to_client, flow.clone()) => {}
        _ = flow.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

/// Passes on what comes, for as long as both sides are there.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let flows = flow.wait_for(|flow| *flow == Flow::Flowing).await.is_ok();
        if !flows || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
