//! Requests as they arrive: what they take counts against a budget of all connections, and each has a time to be whole.

use super::admission::busy;
use crate::error::Error;
use crate::proto::ErrorReason;
use hyper::body::{Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

/// What each request may take beside the budget, so that small ones go on while large ones have used it up.
const FREE_BYTES: usize = 16 * 1024;
/// What stands before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Bytes of requests, of all connections.
pub(super) struct Budget {
    bytes_max: usize,
    used: AtomicUsize,
}

impl Budget {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, used: AtomicUsize::new(0) }
    }
}

/// What one request has of the budget, until it is dropped.
pub(super) struct Held {
    budget: Arc<Budget>,
    /// Of the request, with what is free.
    bytes: AtomicUsize,
}

fn charged(bytes: usize) -> usize {
    bytes.saturating_sub(FREE_BYTES)
}

impl Held {
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), bytes: AtomicUsize::new(0) }
    }

    /// Takes so many in place of what it has. False, if the budget does not have them.
    fn hold(&self, bytes: usize) -> bool {
        let before = charged(self.bytes.load(Ordering::Relaxed));
        let now = charged(bytes);
        let fits = |used: usize| {
            let used = used - before + now;
            (now <= before || used <= self.budget.bytes_max).then_some(used)
        };
        let held = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if held {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.hold(0);
    }
}

/// Where in a sequence of messages a stream is.
#[derive(Default)]
struct Position {
    prefix: usize,
    length: usize,
    missing: usize,
}

impl Position {
    /// Goes on by these bytes. True, if a message has become whole by them.
    fn advance(&mut self, mut bytes: &[u8]) -> bool {
        let mut whole = false;
        while let [first, rest @ ..] = bytes {
            if self.prefix < PREFIX_BYTES {
                self.prefix += 1;
                // The first byte says whether the message is compressed.
                self.length = if self.prefix == 1 { 0 } else { self.length << 8 | usize::from(*first) };
                self.missing = self.length;
                bytes = rest;
            } else {
                let taken = self.missing.min(bytes.len());
                self.missing -= taken;
                bytes = &bytes[taken..];
            }
            if self.prefix == PREFIX_BYTES && self.missing == 0 {
                *self = Self::default();
                whole = true;
            }
        }
        whole
    }

    /// Bytes of the message that is not whole yet.
    fn open(&self) -> usize {
        self.prefix + if self.prefix == PREFIX_BYTES { self.length - self.missing } else { 0 }
    }
}

/// The body of a request.
pub(super) struct ReceivedBody {
    inner: Body,
    held: Arc<Held>,
    received: usize,
    /// Of a stream of messages, which are let go one by one.
    position: Option<Position>,
    timeout: Duration,
    /// Until when the message has to be whole, once it was waited for.
    deadline: Option<Pin<Box<Sleep>>>,
    failed: bool,
}

impl ReceivedBody {
    pub fn new(inner: Body, held: Arc<Held>, is_stream: bool, timeout: Duration) -> Self {
        let position = is_stream.then(Position::default);
        Self { inner, held, received: 0, position, timeout, deadline: None, failed: false }
    }

    fn count(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.received += bytes.len();
        if let Some(position) = &mut self.position {
            if position.advance(bytes) {
                self.deadline = None;
            }
            self.received = position.open();
        }
        if self.held.hold(self.received) { Ok(()) } else { Err(busy("request bytes")) }
    }

    /// Whether a message has begun or has to: a stream may be silent between two.
    fn is_expected(&self) -> bool {
        self.position.is_none() || self.received > 0
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        self.failed = true;
        Poll::Ready(Some(Err(error.into())))
    }
}

impl hyper::body::Body for ReceivedBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref().map_or(Ok(()), |bytes| this.count(bytes)) {
                Ok(()) => Poll::Ready(Some(Ok(frame))),
                Err(error) => this.fail(error),
            },
            Poll::Pending if this.is_expected() => {
                let timeout = this.timeout;
                let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => this.fail(Error::new(
                        Code::DeadlineExceeded,
                        ErrorReason::DeadlineExceeded,
                        format!("the request did not arrive within {} s; nothing was done", timeout.as_secs()),
                    )),
                    Poll::Pending => Poll::Pending,
                }
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Vec<u8> {
        [&[0][..], &(bytes as u32).to_be_bytes(), &vec![7; bytes]].concat()
    }

    #[test]
    fn a_stream_holds_the_message_that_is_not_whole_yet_wherever_it_is_cut() {
        let bytes = [message(300), message(0), message(1)].concat();
        for size in [1, 2, 3, 5, 7, 305, bytes.len()] {
            let (mut position, mut at, mut whole) = (Position::default(), 0, 0);
            for piece in bytes.chunks(size) {
                at += piece.len();
                whole += usize::from(position.advance(piece));
                let begun = [0, 305, 310, 316].into_iter().rfind(|begun| *begun <= at).unwrap();
                assert_eq!(position.open(), at - begun, "after {at} bytes in pieces of {size}");
            }
            assert!((1..=3).contains(&whole));
        }
    }

    #[test]
    fn small_requests_go_on_when_the_budget_is_used_up_and_what_is_dropped_comes_back() {
        let budget = Arc::new(Budget::new(100_000));
        let (large, small) = (Held::new(&budget), Held::new(&budget));
        assert!(large.hold(FREE_BYTES + 100_000));
        assert!(small.hold(FREE_BYTES) && !small.hold(FREE_BYTES + 1));
        drop(large);
        assert!(small.hold(FREE_BYTES + 1));
        drop(small);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
