//! A stream that fails when a request's headers take too long, or when the client does not take its response.
//!
//! **Headers.** The time runs from accepting the connection, since a client that sends nothing holds a connection too,
//! and again from the first byte that follows a request. hyper's own timeout cannot tell an idle connection from a slow
//! client, and does not run at all until the first bytes have shown the protocol's version. On HTTP/2 pings take over
//! after the first request.
//!
//! **Responses.** hyper 1 waits without a limit for a client that does not read.
//!
//! **Half-closed connections.** A client may end its side of the connection after its request and still wait for the
//! response. To the server this looks like a client that has gone away. hyper ends the request at once, or, with
//! `half_close`, never. So the end is held back for [`HALF_CLOSE_TIMEOUT`] while a request is in flight.
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::http::Version;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until},
};

/// How long a request goes on whose client has ended its side of the connection.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a connection's service knows of its requests, for its [`TimedStream`].
#[derive(Debug, Default)]
pub(super) struct Requests {
    begun: AtomicUsize,
    answered: AtomicUsize,
    multiplexed: AtomicBool,
}

impl Requests {
    /// Counts a request whose headers have arrived whole, as in flight until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> InFlight {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.multiplexed.store(version == Version::HTTP_2, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Whether what arrives now can only be the headers of a request.
    fn headers_are_next(&self) -> bool {
        self.begun.load(Ordering::Relaxed) == self.answered.load(Ordering::Relaxed)
            && !self.multiplexed.load(Ordering::Relaxed)
    }

    /// Whether the only request of the connection waits for its response.
    fn is_in_flight(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.answered.load(Ordering::Relaxed)
            && !self.multiplexed.load(Ordering::Relaxed)
    }

    /// Waits until an HTTP/2 connection has had no request for `timeout`, and for less than twice that. Its pings
    /// keep it alive without end otherwise. HTTP/1 has hyper's own timeout.
    pub(super) async fn idle(&self, timeout: Duration) {
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            sleep(timeout).await;
            if self.multiplexed.load(Ordering::Relaxed)
                && begun == self.begun.load(Ordering::Relaxed)
                && begun == self.answered.load(Ordering::Relaxed)
            {
                return;
            }
        }
    }
}

/// A request in flight: until its response, or until HTTP/2 has cancelled it.
pub(super) struct InFlight(Arc<Requests>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The stream of one connection.
pub(super) struct TimedStream {
    stream: TcpStream,
    header_timeout: Duration,
    write_timeout: Duration,
    requests: Arc<Requests>,
    /// How many requests had begun when it last looked.
    seen: usize,
    /// Since when headers are awaited.
    since: Option<Instant>,
    /// Made only when headers do not come in one piece, which is seldom.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Set while the client takes nothing of what is written.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Set when the client has ended its side while a request was in flight.
    half_closed: Option<Pin<Box<Sleep>>>,
}

impl TimedStream {
    pub(super) fn new(
        stream: TcpStream,
        header_timeout: Duration,
        write_timeout: Duration,
        requests: Arc<Requests>,
    ) -> Self {
        Self {
            stream,
            header_timeout,
            write_timeout,
            requests,
            seen: 0,
            since: Some(Instant::now()),
            alarm: None,
            stalled: None,
            half_closed: None,
        }
    }

    fn poll_header_timeout(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(since) = self.since else { return Poll::Pending };
        let timeout = self.header_timeout;
        self.alarm.get_or_insert_with(|| Box::pin(sleep_until(since + timeout))).as_mut().poll(context)
    }

    /// Ready when the end of what the client sends may be reported: its response is written, or took too long.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.requests.is_in_flight() && self.stalled.is_none() {
            return Poll::Ready(Ok(()));
        }
        let held = self.half_closed.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSE_TIMEOUT)));
        held.as_mut().poll(context).map(Ok)
    }

    /// Fails a write that has been pending for too long. Each write that succeeds begins the time again.
    fn poll_written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for TimedStream {
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
        if result.is_pending() && self.poll_header_timeout(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let is_end = matches!(result, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if is_end && buffer.remaining() > 0 {
            return self.poll_end(context);
        }
        if buffer.filled().len() > before && self.since.is_none() && self.requests.headers_are_next() {
            self.since = Some(Instant::now());
        }
        result
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.poll_written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.poll_written(context, written)
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
