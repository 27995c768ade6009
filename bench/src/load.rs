//! The load: HTTP requests from this process, in a closed loop for capacity and in an open one for latency.
//!
//! It is our own, and tiny, because the load generators that schedule requests at a fixed rate and could be had with
//! `cargo` (oha, goose, rlt) either cannot give each request an `Idempotency-Key` of its own, or count a late request
//! from when it was sent, or use more CPU for a request than the service does; wrk has no open loop at all.
//!
//! *Closed*: each client sends its next request when it has the answer to the last. This says how much can be done,
//! and nothing about latency: a service that stalls is simply asked less (coordinated omission).
//!
//! *Open*: requests are due at fixed times, whether or not anything was answered, and each is measured **from when it
//! was due**. So whatever waits, in the service or for a free connection, is in the figure.
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::{Mutex, mpsc},
    task::JoinSet,
};

/// How requests follow each other.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Closed { clients: usize },
    Open { per_second: f64, connections: usize },
}

/// How long is measured, and how long nothing is before.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warm_up: Duration,
    pub length: Duration,
}

/// Makes the request of a number. Numbers are never used twice in a run.
pub type Requests = Arc<dyn Fn(u64) -> Request<Full<Bytes>> + Send + Sync>;

/// What came of the requests whose answer came within the window.
#[derive(Debug)]
pub struct Measured {
    pub length: Duration,
    pub latencies: Histogram<u64>,
    /// Answers with another status than 2xx, and requests without one. A run with any of them measures an error.
    pub failures: u64,
}

impl Measured {
    /// Answers of the window.
    pub fn answers(&self) -> u64 {
        self.latencies.len()
    }
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What the clients share.
struct Run {
    phase: AtomicU8,
    next: AtomicU64,
    address: SocketAddr,
    requests: Requests,
}

/// What one client has seen.
struct Seen {
    latencies: Histogram<u64>,
    failures: u64,
    example: Option<String>,
}

/// Sends requests until the window is over. `look` is called at its beginning and at its end.
pub async fn run<T>(
    address: SocketAddr,
    shape: Shape,
    window: Window,
    requests: Requests,
    mut look: impl FnMut() -> T,
) -> anyhow::Result<(Measured, [T; 2])> {
    let run = Arc::new(Run { phase: AtomicU8::new(WARMING_UP), next: AtomicU64::new(0), address, requests });
    // One thread: what it uses is not there for what it measures.
    let clients = thread::spawn({
        let run = Arc::clone(&run);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run.drive(shape))
        }
    });
    tokio::time::sleep(window.warm_up).await;
    let (before, began) = (look(), Instant::now());
    run.phase.store(MEASURING, Ordering::Relaxed);
    tokio::time::sleep(window.length).await;
    run.phase.store(OVER, Ordering::Relaxed);
    let (length, after) = (began.elapsed(), look());
    let ended = tokio::task::spawn_blocking(move || clients.join()).await?;
    let Ok(seen) = ended else { bail!("the load generator has panicked") };
    let mut measured = Measured { length, latencies: histogram()?, failures: 0 };
    let mut example = None;
    for seen in seen? {
        measured.latencies.add(&seen.latencies)?;
        measured.failures += seen.failures;
        example = example.or(seen.example);
    }
    if let Some(example) = example {
        eprintln!("  {} of {} requests failed: {example}", measured.failures, measured.answers());
    }
    Ok((measured, [before, after]))
}

/// In microseconds, up to a minute, to three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

impl Run {
    async fn drive(self: Arc<Self>, shape: Shape) -> anyhow::Result<Vec<Seen>> {
        let mut clients = JoinSet::new();
        match shape {
            Shape::Closed { clients: count } => {
                for _ in 0..count {
                    clients.spawn(Arc::clone(&self).client(None));
                }
            }
            Shape::Open { per_second, connections } => {
                let (due, queue) = mpsc::unbounded_channel();
                let run = Arc::clone(&self);
                // A thread of its own sleeps to the microsecond; a timer of the runtime would, to the millisecond.
                thread::spawn(move || run.keep_time(per_second, &due));
                let queue = Arc::new(Mutex::new(queue));
                for _ in 0..connections {
                    clients.spawn(Arc::clone(&self).client(Some(Arc::clone(&queue))));
                }
            }
        }
        clients.join_all().await.into_iter().collect()
    }

    /// Says when a request is due, until the run is over.
    fn keep_time(&self, per_second: f64, due: &mpsc::UnboundedSender<Instant>) {
        let began = Instant::now();
        for number in 0_u32.. {
            let at = began + Duration::from_secs_f64(f64::from(number) / per_second);
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if self.phase.load(Ordering::Relaxed) == OVER || due.send(at).is_err() {
                return;
            }
        }
    }

    async fn client(
        self: Arc<Self>,
        queue: Option<Arc<Mutex<mpsc::UnboundedReceiver<Instant>>>>,
    ) -> anyhow::Result<Seen> {
        let stream = TcpStream::connect(self.address).await.context("connect to the contender")?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut seen = Seen { latencies: histogram()?, failures: 0, example: None };
        while self.phase.load(Ordering::Relaxed) != OVER {
            let due = match &queue {
                None => Instant::now(),
                Some(queue) => {
                    let due = queue.lock().await.recv().await;
                    let Some(due) = due else { break };
                    due
                }
            };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let answer = sender.send_request((self.requests)(number)).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            if self.phase.load(Ordering::Relaxed) == MEASURING {
                let took = u64::try_from(due.elapsed().as_micros())?;
                seen.latencies.saturating_record(took.max(1));
                if !status.is_success() {
                    seen.failures += 1;
                    seen.example.get_or_insert_with(|| {
                        let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                        format!("{status} {text}")
                    });
                }
            }
        }
        Ok(seen)
    }
}

/// All requests of a number at once, each on a connection of its own; says what each was answered and after how long.
pub async fn at_once(
    address: SocketAddr,
    requests: VecDeque<Request<Full<Bytes>>>,
) -> anyhow::Result<Vec<(hyper::StatusCode, Duration)>> {
    let mut clients = JoinSet::new();
    for request in requests {
        clients.spawn(async move {
            let stream = TcpStream::connect(address).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let began = Instant::now();
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            answer.into_body().collect().await?;
            anyhow::Ok((status, began.elapsed()))
        });
    }
    clients.join_all().await.into_iter().collect()
}
