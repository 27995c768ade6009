//! A stream that fails when a request's headers arrive too slowly, or when the client does not read its response. The
//! stream also hides for a short time that a client has closed its side.
//!
//! **Headers.** The timeout starts when the connection is accepted, because a client that sends nothing also occupies a
//! connection slot. The timeout starts again at the first byte of each further request. hyper's own timeout cannot
//! distinguish an idle connection from a slow client. hyper's timeout also does not start until the first bytes have
//! revealed the protocol's version. On HTTP/2, the timeout applies only until the headers of the first request are
//! complete. After that, pings detect a client that does not respond.
//!
//! **Responses.** hyper 1 waits without a limit for a client that does not read. So a write fails if it is pending for
//! too long.
//!
//! **Half-closed connections.** A client may close its side of the connection after its request and still wait for the
//! response. The server cannot distinguish such a client from one that has disconnected. hyper ends the requests of
//! both clients immediately, or continues the requests of both if `half_close` is set. So while an HTTP/1 request is in
//! flight, this stream withholds the end of the input from hyper, for at most [`HALF_CLOSE_TIMEOUT`].
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

/// Maximum time that a request continues after its client has closed its side of the connection.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Counters of the requests of one connection. The service function that handles the requests updates the counters, and
/// the [`TimedStream`] of the connection reads them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// `true` once a request has arrived over HTTP/2, on which requests can be concurrent.
    multiplexed: AtomicBool,
}

impl Requests {
    /// Counts a request whose headers have arrived completely. The request is in flight until the returned value is
    /// dropped.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> InFlight {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.multiplexed.store(version == Version::HTTP_2, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Returns whether the next bytes count as the headers of a request, because no request is in flight. Always
    /// `false` on HTTP/2 after the first request.
    fn headers_are_next(&self) -> bool {
        self.begun.load(Ordering::Relaxed) == self.ended.load(Ordering::Relaxed)
            && !self.multiplexed.load(Ordering::Relaxed)
    }

    /// Returns whether the connection's only request is waiting for its response. Always `false` on HTTP/2.
    fn is_in_flight(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.ended.load(Ordering::Relaxed)
            && !self.multiplexed.load(Ordering::Relaxed)
    }

    /// Waits until an HTTP/2 connection has no request in flight, and has received none for one to two times `timeout`.
    /// Without this limit, the server's pings would keep an idle connection open forever. Never returns on HTTP/1, for
    /// which hyper has its own idle timeout.
    pub(super) async fn idle(&self, timeout: Duration) {
        loop {
            let (begun, ended) = (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
            sleep(timeout).await;
            if self.multiplexed.load(Ordering::Relaxed)
                && begun == ended
                && begun == self.begun.load(Ordering::Relaxed)
            {
                return;
            }
        }
    }
}

/// A request in flight. The value is dropped when the response is ready, or when the request is cancelled.
pub(super) struct InFlight(Arc<Requests>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The stream of one connection.
pub(super) struct TimedStream {
    stream: TcpStream,
    header_timeout: Duration,
    write_timeout: Duration,
    requests: Arc<Requests>,
    /// Number of requests that had begun at the last call of `poll_read`.
    last_begun: usize,
    /// Start of the header timeout; `None` while the timeout does not run.
    headers_expected_since: Option<Instant>,
    /// Timer for the headers. It is created when a read has to wait: before the first request of a connection, or if
    /// headers arrive in several pieces, which is rare.
    header_timer: Option<Pin<Box<Sleep>>>,
    /// Timer that is set while the client reads nothing of the response.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Timer that is set when the client closed its side while a request was in flight.
    half_close_timer: Option<Pin<Box<Sleep>>>,
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
            last_begun: 0,
            headers_expected_since: Some(Instant::now()),
            header_timer: None,
            write_timer: None,
            half_close_timer: None,
        }
    }

    fn poll_header_timeout(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(since) = self.headers_expected_since else { return Poll::Pending };
        let timeout = self.header_timeout;
        self.header_timer.get_or_insert_with(|| Box::pin(sleep_until(since + timeout))).as_mut().poll(context)
    }

    /// Returns [`Poll::Ready`] once the end of the client's input may be reported to hyper: if neither an HTTP/1
    /// request nor a write is pending, or after [`HALF_CLOSE_TIMEOUT`].
    fn poll_end_of_input(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.requests.is_in_flight() && self.write_timer.is_none() {
            return Poll::Ready(Ok(()));
        }
        let timer = self.half_close_timer.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSE_TIMEOUT)));
        timer.as_mut().poll(context).map(Ok)
    }

    /// Fails a write that has been pending for too long. Each successful write restarts the timeout.
    fn limit_write<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let timeout = self.write_timeout;
        let write_timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        write_timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begun = self.requests.begun.load(Ordering::Relaxed);
        if begun != self.last_begun {
            self.last_begun = begun;
            self.headers_expected_since = None;
            self.header_timer = None;
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if result.is_pending() && self.poll_header_timeout(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let is_end = matches!(result, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if is_end && buffer.remaining() > 0 {
            return self.poll_end_of_input(context);
        }
        if buffer.filled().len() > before
            && self.headers_expected_since.is_none()
            && self.requests.headers_are_next()
        {
            self.headers_expected_since = Some(Instant::now());
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
        self.limit_write(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit_write(context, written)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_a_while_after_its_last_response() {
        let requests = Arc::new(Requests::default());
        let request = requests.begin(Version::HTTP_2);
        let timeout = Duration::from_secs(10);
        let responded = async {
            sleep(Duration::from_secs(15)).await;
            drop(request);
            Instant::now()
        };
        let idle = async {
            requests.idle(timeout).await;
            Instant::now()
        };
        let (responded, idle) = tokio::join!(responded, idle);
        assert!(idle >= responded + timeout, "{:?}", idle - responded);
    }
}
