//! A stream that fails when a request's headers take too long.
//!
//! The time runs from accepting the connection, since a client that says nothing holds a connection too, and again
//! from the first byte that follows a request. hyper's own timeout cannot tell an idle connection from a slow client,
//! and does not run at all until the first bytes have shown the protocol's version. On HTTP/2 pings take over after
//! the first request.
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
    time::{Instant, Sleep, sleep_until},
};

/// What a connection's service knows of its requests, for its [`HeaderTimeout`].
#[derive(Debug, Default)]
pub(super) struct Requests {
    begun: AtomicUsize,
    answered: AtomicUsize,
    multiplexed: AtomicBool,
}

impl Requests {
    /// A request's headers have arrived whole.
    pub(super) fn begin(&self, version: Version) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.multiplexed.store(version == Version::HTTP_2, Ordering::Relaxed);
    }

    pub(super) fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether what arrives now can only be the headers of a request.
    fn headers_are_next(&self) -> bool {
        self.begun.load(Ordering::Relaxed) == self.answered.load(Ordering::Relaxed)
            && !self.multiplexed.load(Ordering::Relaxed)
    }
}

/// The stream of one connection.
pub(super) struct HeaderTimeout {
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
    pub(super) fn new(stream: TcpStream, timeout: Duration, requests: Arc<Requests>) -> Self {
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
