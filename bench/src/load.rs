//! HTTP load from this process: a closed loop for capacity, an open loop for latency, and bursts of requests
//! ([`send_concurrently`]).
//!
//! The load generator is part of the project, because no available generator is suitable. Each of the fixed-rate
//! generators available through `cargo` (oha, goose, rlt) has one of three problems. Some cannot send a different
//! `Idempotency-Key` with each request. Some measure the latency from the time of sending, not from the time at which
//! the request was due. Others use more CPU per request than the service. wrk has no open loop at all.
//!
//! *Closed*: each client sends its next request after the response to the previous one. A closed loop measures capacity
//! and does not measure latency: a stalled service simply receives fewer requests (coordinated omission).
//!
//! *Open*: requests are due at fixed times, regardless of responses. Latency is measured **from the time at which a
//! request was due**. The figure therefore includes waiting in the service and waiting for a free connection.
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

/// The schedule of the requests.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Closed { clients: usize },
    Open { per_second: f64, connections: usize },
}

/// The duration of the measurement, and of the warm-up before it.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warm_up: Duration,
    pub length: Duration,
}

/// Function that builds the request with a given number. A number is never used twice in a run.
pub type Requests = Arc<dyn Fn(u64) -> Request<Full<Bytes>> + Send + Sync>;

/// The result of the requests whose response arrived within the window. Latencies are in microseconds.
#[derive(Debug)]
pub struct LoadResult {
    pub length: Duration,
    pub latencies: Histogram<u64>,
    /// Responses with a status other than 2xx. The figures of a run with failures are invalid.
    pub failures: u64,
}

impl LoadResult {
    /// Returns the number of responses in the window.
    pub fn responses(&self) -> u64 {
        self.latencies.len()
    }
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// State shared by the clients.
struct Run {
    phase: AtomicU8,
    next: AtomicU64,
    address: SocketAddr,
    requests: Requests,
}

/// The measurements of one client.
struct ClientResult {
    latencies: Histogram<u64>,
    failures: u64,
    first_failure: Option<String>,
}

/// Sends requests until the window ends. Calls `read_times`, which reads the CPU times of the measured processes, at the
/// beginning and at the end of the window.
pub async fn run<T>(
    address: SocketAddr,
    shape: Shape,
    window: Window,
    requests: Requests,
    mut read_times: impl FnMut() -> T,
) -> anyhow::Result<(LoadResult, [T; 2])> {
    let run = Arc::new(Run { phase: AtomicU8::new(WARMING_UP), next: AtomicU64::new(0), address, requests });
    // All clients share a single thread, so that they take at most one core from the measured service.
    let clients = thread::spawn({
        let run = Arc::clone(&run);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run.drive(shape))
        }
    });
    tokio::time::sleep(window.warm_up).await;
    let (before, began) = (read_times(), Instant::now());
    run.phase.store(MEASURING, Ordering::Relaxed);
    tokio::time::sleep(window.length).await;
    run.phase.store(OVER, Ordering::Relaxed);
    let (length, after) = (began.elapsed(), read_times());
    let ended = tokio::task::spawn_blocking(move || clients.join()).await?;
    let Ok(result) = ended else { bail!("the load generator has panicked") };
    let mut measured = LoadResult { length, latencies: histogram()?, failures: 0 };
    let mut first_failure = None;
    for result in result? {
        measured.latencies.add(&result.latencies)?;
        measured.failures += result.failures;
        first_failure = first_failure.or(result.first_failure);
    }
    if let Some(first_failure) = first_failure {
        eprintln!("  {} of {} requests failed: {first_failure}", measured.failures, measured.responses());
    }
    Ok((measured, [before, after]))
}

/// Creates a histogram in microseconds, up to a minute, with three significant digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

impl Run {
    async fn drive(self: Arc<Self>, shape: Shape) -> anyhow::Result<Vec<ClientResult>> {
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
                // A dedicated thread sleeps with microsecond precision. A timer of the runtime has millisecond
                // precision.
                thread::spawn(move || run.send_due_times(per_second, &due));
                let queue = Arc::new(Mutex::new(queue));
                for _ in 0..connections {
                    clients.spawn(Arc::clone(&self).client(Some(Arc::clone(&queue))));
                }
            }
        }
        clients.join_all().await.into_iter().collect()
    }

    /// Sends the due time of each request to the clients as soon as the request is due, until the run ends.
    fn send_due_times(&self, per_second: f64, due: &mpsc::UnboundedSender<Instant>) {
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
    ) -> anyhow::Result<ClientResult> {
        let stream =
            TcpStream::connect(self.address).await.context("failed to connect to the measured program")?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut result = ClientResult { latencies: histogram()?, failures: 0, first_failure: None };
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
            let response = sender.send_request((self.requests)(number)).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            if self.phase.load(Ordering::Relaxed) == MEASURING {
                let took = u64::try_from(due.elapsed().as_micros())?;
                result.latencies.saturating_record(took.max(1));
                if !status.is_success() {
                    result.failures += 1;
                    result.first_failure.get_or_insert_with(|| {
                        let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                        format!("{status} {text}")
                    });
                }
            }
        }
        Ok(result)
    }
}

/// Sends a number of requests concurrently, each on its own connection. Returns the status and the latency of each
/// response.
pub async fn send_concurrently(
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
            let response = sender.send_request(request).await?;
            let status = response.status();
            response.into_body().collect().await?;
            anyhow::Ok((status, began.elapsed()))
        });
    }
    clients.join_all().await.into_iter().collect()
}
