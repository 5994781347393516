//! A connection's bytes, in the clear or in TLS, how many have gone which way, and when they go.

use super::turns::Turns;
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

/// How many bytes have gone which way.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub read: AtomicU64,
    pub written: AtomicU64,
    /// Since when the peer has taken nothing of what waits to be written.
    blocked: Mutex<Option<Instant>>,
}

impl Moved {
    /// Returns once the peer has taken nothing for so long, while something waited for it.
    pub async fn unread_for(&self, timeout: Duration) {
        loop {
            let waited = self.blocked.lock().expect("not poisoned").map_or(Duration::ZERO, |since| since.elapsed());
            match timeout.checked_sub(waited) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Bytes that a turn of an HTTP/2 connection reads, before what it has read is moved on.
pub(super) const READ_BYTES_PER_TURN: usize = 64 * 1024;
/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much a connection may read before its turn ends. Without a turn there is no bound.
#[derive(Debug)]
pub(super) struct ReadTurn {
    left: AtomicUsize,
    is_used_up: AtomicBool,
}

impl Default for ReadTurn {
    fn default() -> Self {
        Self { left: AtomicUsize::new(usize::MAX), is_used_up: AtomicBool::new(false) }
    }
}

impl ReadTurn {
    /// Begins a turn.
    pub fn begin(&self) {
        self.left.store(READ_BYTES_PER_TURN, Ordering::Relaxed);
        self.is_used_up.store(false, Ordering::Relaxed);
    }

    /// Whether somebody wanted to read more. The task has to poll again by itself.
    pub fn is_used_up(&self) -> bool {
        self.is_used_up.load(Ordering::Relaxed)
    }

    fn may_read(&self) -> bool {
        let may_read = self.left.load(Ordering::Relaxed) > 0;
        if !may_read {
            self.is_used_up.store(true, Ordering::Relaxed);
        }
        may_read
    }

    fn read(&self, bytes: usize) {
        self.left.store(self.left.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// Who writes so much does not wait for more.
const WRITE_AT_ONCE_BYTES: usize = 8 * 1024;

/// A connection that counts its bytes.
///
/// One commit answers many calls, each in a task of its own, and without a word from here each of them would be a system call:
/// the connection is woken by the first answer, and writes it. So a small write waits, where other calls are being worked on,
/// until whatever is ready to run has run once. HTTP/2 gathers meanwhile.
pub(super) struct Io {
    stream: Stream,
    pub moved: Arc<Moved>,
    /// Of the calls on this connection.
    pub turns: Arc<Turns>,
    pub reads: Arc<ReadTurn>,
    /// What is written now has waited.
    has_waited: bool,
    /// The first bytes, where they were looked at and are still to be read.
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
        let (moved, turns, reads) = (Arc::default(), Arc::default(), Arc::default());
        Self { stream, moved, turns, reads, has_waited: false, first: Vec::new() }
    }

    /// Whether the peer begins as HTTP/2 does. What was read to find out is read again.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
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

/// Does with the stream of either kind what is done with one.
macro_rules! either {
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
    /// Whether so many bytes may be written now; if not, the task is woken as soon as those that are ready have run.
    fn poll_turn(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<()> {
        let alone = || self.turns.ours.load(Ordering::Relaxed) == 0;
        if self.has_waited || bytes >= WRITE_AT_ONCE_BYTES || alone() {
            return Poll::Ready(());
        }
        self.has_waited = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.moved.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        let mut blocked = self.moved.blocked.lock().expect("not poisoned");
        *blocked = if written.is_pending() { blocked.or_else(|| Some(Instant::now())) } else { None };
        drop(blocked);
        written
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
        if !self.reads.may_read() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = either!(self, stream => stream.poll_read(cx, buffer));
        let bytes = buffer.filled().len() - before;
        self.moved.read.fetch_add(bytes as u64, Ordering::Relaxed);
        self.reads.read(bytes);
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx, bytes.len()));
        let written = either!(self, stream => stream.poll_write(cx, bytes));
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx, slices.iter().map(|slice| slice.len()).sum()));
        let written = either!(self, stream => stream.poll_write_vectored(cx, slices));
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.has_waited = false;
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};
    use tokio::net::TcpListener;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_small_write_waits_once_for_the_other_calls_of_its_connection() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_client, mut io) = (client.unwrap(), Io::plain(accepted.unwrap().0));
        io.stream_is_writable().await;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);

        assert!(Pin::new(&mut io).poll_write(cx, b"alone").is_ready());
        io.turns.ours.store(1, Ordering::Relaxed);
        assert!(Pin::new(&mut io).poll_write(cx, b"small").is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "it comes back by itself");
        assert!(Pin::new(&mut io).poll_write(cx, b"small").is_ready());
        assert!(Pin::new(&mut io).poll_write(cx, b"and what goes with it").is_ready());
        assert!(Pin::new(&mut io).poll_flush(cx).is_ready());
        assert!(Pin::new(&mut io).poll_write(cx, &[0; WRITE_AT_ONCE_BYTES]).is_ready());
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
