//! The byte stream of a connection, with or without TLS. Counts the bytes of both directions, limits how many are read at a time,
//! and delays small writes so that they can be combined.

use super::call_tracking::CallTracker;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

/// Bytes that an HTTP/2 connection reads in one poll.
pub(super) const READ_BYTES_PER_POLL: usize = 64 * 1024;
/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A write of this size is not delayed.
const UNDELAYED_WRITE_BYTES: usize = 8 * 1024;

/// Counts the bytes of a connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub read: AtomicU64,
    pub written: AtomicU64,
    /// Since when no byte could be written. `None` if the last write succeeded.
    blocked_since: Mutex<Option<Instant>>,
}

impl Traffic {
    /// Waits until writes have been blocked for this time.
    pub async fn write_blocked_for(&self, timeout: Duration) {
        loop {
            let since = *self.blocked_since.lock().expect("not poisoned");
            let blocked = since.map_or(Duration::ZERO, |since| since.elapsed());
            match timeout.checked_sub(blocked) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

/// Limits how much a connection reads in one poll. Until the first refill there is no limit.
#[derive(Debug)]
pub(super) struct ReadBudget {
    left: AtomicUsize,
    is_exhausted: AtomicBool,
}

impl Default for ReadBudget {
    fn default() -> Self {
        Self { left: AtomicUsize::new(usize::MAX), is_exhausted: AtomicBool::new(false) }
    }
}

impl ReadBudget {
    /// Starts a new poll.
    pub fn refill(&self) {
        self.left.store(READ_BYTES_PER_POLL, Ordering::Relaxed);
        self.is_exhausted.store(false, Ordering::Relaxed);
    }

    /// Returns whether a read was refused. Then nothing wakes the task, and it has to poll again by itself.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed)
    }

    fn may_read(&self) -> bool {
        let may_read = self.left.load(Ordering::Relaxed) > 0;
        if !may_read {
            self.is_exhausted.store(true, Ordering::Relaxed);
        }
        may_read
    }

    fn subtract(&self, bytes: usize) {
        self.left.store(self.left.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The byte stream of a connection.
///
/// One database commit answers many calls, and each has its own task. If the connection wrote as soon as the first task has its
/// response, each response would need a system call. Therefore a small write is delayed once while other calls of the connection
/// wait for the server: until all tasks that are ready now have run. Meanwhile, HTTP/2 collects their responses.
pub(super) struct Io {
    stream: Stream,
    pub traffic: Arc<Traffic>,
    /// The calls of the connection.
    pub calls: Arc<CallTracker>,
    pub read_budget: Arc<ReadBudget>,
    /// True from the delay of a write until the next flush.
    was_delayed: bool,
    /// Bytes that were read to detect the protocol. They are read again.
    first: Vec<u8>,
}

impl Io {
    pub fn plain(stream: TcpStream) -> Self {
        Self::new(Stream::Plain(stream))
    }

    pub fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self::new(Stream::Tls(Box::new(stream)))
    }

    fn new(stream: Stream) -> Self {
        let (traffic, calls, read_budget) = (Arc::default(), Arc::default(), Arc::default());
        Self { stream, traffic, calls, read_budget, was_delayed: false, first: Vec::new() }
    }

    /// Reads the first bytes and returns whether they are the HTTP/2 preface. Later reads return these bytes again.
    pub async fn starts_with_http2_preface(&mut self) -> io::Result<bool> {
        let mut first = [0; PREFACE.len()];
        let mut length = 0;
        while length < first.len() && first[..length] == PREFACE[..length] {
            match self.read(&mut first[length..]).await? {
                0 => break,
                read => length += read,
            }
        }
        self.first = first[..length].to_vec();
        Ok(first == *PREFACE)
    }
}

/// Runs an expression with the stream, whichever variant it is.
macro_rules! with_stream {
    ($io:expr, $stream:ident => $done:expr) => {
        match &mut $io.stream {
            Stream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $done
            }
            Stream::Tls(stream) => {
                let $stream = Pin::new(&mut **stream);
                $done
            }
        }
    };
}

impl Io {
    /// Returns `Ready` if a write of this size may start now. Otherwise, the task is woken after all ready tasks have run.
    fn poll_write_delay(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<()> {
        let no_call_waits = || self.calls.waiting_for_server.load(Ordering::Relaxed) == 0;
        if self.was_delayed || bytes >= UNDELAYED_WRITE_BYTES || no_call_waits() {
            return Poll::Ready(());
        }
        self.was_delayed = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts the result of a write.
    fn count_write(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.traffic.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        let mut blocked_since = self.traffic.blocked_since.lock().expect("not poisoned");
        *blocked_since = if result.is_pending() { blocked_since.or_else(|| Some(Instant::now())) } else { None };
        drop(blocked_since);
        result
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let now = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..now]);
            self.first.drain(..now);
            return Poll::Ready(Ok(()));
        }
        if !self.read_budget.may_read() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = with_stream!(self, stream => stream.poll_read(cx, buffer));
        let bytes = buffer.filled().len() - before;
        self.traffic.read.fetch_add(bytes as u64, Ordering::Relaxed);
        self.read_budget.subtract(bytes);
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_delay(cx, bytes.len()));
        let written = with_stream!(self, stream => stream.poll_write(cx, bytes));
        self.count_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_delay(cx, slices.iter().map(|slice| slice.len()).sum()));
        let written = with_stream!(self, stream => stream.poll_write_vectored(cx, slices));
        self.count_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.was_delayed = false;
        with_stream!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};
    use tokio::net::TcpListener;

    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_small_write_is_delayed_once_while_other_calls_of_its_connection_run() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_client, mut io) = (client.unwrap(), Io::plain(accepted.unwrap().0));
        io.stream_is_writable().await;
        let wakes = Arc::new(WakeCounter::default());
        let waker = Waker::from(wakes.clone());
        let cx = &mut Context::from_waker(&waker);

        assert!(Pin::new(&mut io).poll_write(cx, b"alone").is_ready());
        io.calls.waiting_for_server.store(1, Ordering::Relaxed);
        assert!(Pin::new(&mut io).poll_write(cx, b"small").is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "the delayed write wakes its task");
        assert!(Pin::new(&mut io).poll_write(cx, b"small").is_ready());
        assert!(Pin::new(&mut io).poll_write(cx, b"written together with it").is_ready());
        assert!(Pin::new(&mut io).poll_flush(cx).is_ready());
        assert!(Pin::new(&mut io).poll_write(cx, &[0; UNDELAYED_WRITE_BYTES]).is_ready());
        assert!(Pin::new(&mut io).poll_write(cx, b"the next").is_pending());
    }

    impl Io {
        async fn stream_is_writable(&self) {
            if let Stream::Plain(stream) = &self.stream {
                stream.writable().await.unwrap();
            }
        }
    }
}
