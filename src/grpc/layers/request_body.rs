//! Requests as they arrive: none is longer than its method's may be, what they take counts against a budget of all connections,
//! and each has a time to be whole.

use crate::grpc::MESSAGE_BYTES_MAX;
use crate::grpc::layers::slots::{busy, share};
use crate::grpc::wire::status::status;
use hyper::body::{Frame, SizeHint};
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

/// What each request may take beside the budget, so that small ones go on while large ones have used it up.
const FREE_BYTES: usize = 16 * 1024;
/// What a message takes for each of its bytes, once it is decoded: texts and numbers have their own allocations and fields.
const DECODED_BYTES_PER_BYTE: usize = 4;
/// One caller may take at most this share (one part in so many) of the budget while no other has any of it, and always the
/// largest request then.
const SHARE: usize = 2;
const LARGEST_BYTES: usize = DECODED_BYTES_PER_BYTE * MESSAGE_BYTES_MAX;
/// What stands before each message: whether it is compressed, and its length.
pub(in crate::grpc) const PREFIX_BYTES: usize = 5;

/// Bytes of requests: of all connections, or of one caller, which has its share of those.
#[derive(Debug)]
pub(in crate::grpc) struct Budget {
    bytes_max: usize,
    used: AtomicUsize,
    all: Option<Arc<Self>>,
}

impl Budget {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, used: AtomicUsize::new(0), all: None }
    }

    /// Of one caller.
    pub fn share_of(all: &Arc<Self>) -> Self {
        Self { bytes_max: all.bytes_max, used: AtomicUsize::new(0), all: Some(all.clone()) }
    }

    /// The most that may be used of it now.
    fn most(&self) -> usize {
        let used = |budget: &Self| budget.used.load(Ordering::Relaxed);
        let Some(all) = &self.all else { return self.bytes_max };
        match used(all).saturating_sub(used(self)) {
            0 => share(self.bytes_max, 0, SHARE).max(LARGEST_BYTES),
            others => share(self.bytes_max, others, SHARE),
        }
    }

    /// Uses so many instead of those before. Names the bound that has no room for them.
    fn change(&self, before: usize, now: usize) -> Result<(), &'static str> {
        let most = self.most();
        let fits = |used: usize| {
            let used = used - before + now;
            (now <= before || used <= most).then_some(used)
        };
        let name = if self.all.is_some() { "request bytes of the key" } else { "request bytes" };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| name)?;
        let Some(all) = &self.all else { return Ok(()) };
        all.change(before, now).inspect_err(|_| {
            // It was for more: nobody is refused to have less.
            self.used.fetch_sub(now - before, Ordering::Relaxed);
        })
    }
}

/// What one request has of the budget, until it is dropped.
pub(in crate::grpc) struct Held {
    budget: Arc<Budget>,
    /// Of the request, with what is free.
    bytes: AtomicUsize,
}

fn charged(bytes: usize) -> usize {
    DECODED_BYTES_PER_BYTE * bytes.saturating_sub(FREE_BYTES)
}

impl Held {
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), bytes: AtomicUsize::new(0) }
    }

    /// Takes so many instead of what it has, if the budget has them.
    pub fn hold(&self, bytes: usize) -> Result<(), Refusal> {
        let before = charged(self.bytes.load(Ordering::Relaxed));
        let now = charged(bytes);
        if now != before {
            self.budget.change(before, now).map_err(busy)?;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.hold(0));
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
    /// Goes on by these bytes. Returns how many messages have become whole by them; an error, if the prefix of one is wrong, or
    /// says that it is longer than this.
    fn advance(&mut self, mut bytes: &[u8], message_bytes_max: usize) -> Result<usize, Status> {
        let mut whole = 0;
        while let [first, rest @ ..] = bytes {
            if self.prefix < PREFIX_BYTES {
                self.prefix += 1;
                // The first byte says whether the message is compressed.
                self.length = match (self.prefix, *first) {
                    (1, 0 | 1) => 0,
                    (1, flag) => {
                        return Err(status(invalid(format!("starts with the flag {flag}, which must be 0 or 1"))));
                    }
                    (_, byte) => self.length << 8 | usize::from(byte),
                };
                self.missing = self.length;
                bytes = rest;
                if self.prefix == PREFIX_BYTES && self.length > message_bytes_max {
                    return Err(too_long(self.length, message_bytes_max));
                }
            } else {
                let taken = self.missing.min(bytes.len());
                self.missing -= taken;
                bytes = &bytes[taken..];
            }
            if self.prefix == PREFIX_BYTES && self.missing == 0 {
                *self = Self::default();
                whole += 1;
            }
        }
        Ok(whole)
    }

    /// Bytes of the message that is not whole yet.
    fn open(&self) -> usize {
        self.prefix + if self.prefix == PREFIX_BYTES { self.length - self.missing } else { 0 }
    }
}

/// With the code that tonic has for it.
fn too_long(bytes: usize, bytes_max: usize) -> Status {
    Status::out_of_range(format!("the message is too long: it has {bytes} bytes, and may have {bytes_max}"))
}

/// The request is not one message of its method.
pub(in crate::grpc) fn invalid(what: impl std::fmt::Display) -> Refusal {
    let message = format!("the request message {what}; nothing of it was recorded");
    Refusal::new(Reason::MessageInvalid, message)
}

/// What may come as the body of a request.
#[derive(Clone, Copy)]
pub(in crate::grpc) struct Expected {
    /// Messages, which are let go one by one, instead of one.
    pub is_stream: bool,
    /// Longest message.
    pub message_bytes_max: usize,
    /// Time for a message to be whole.
    pub timeout: Duration,
}

/// The body of a request.
pub(in crate::grpc) struct ReceivedBody {
    inner: Body,
    held: Arc<Held>,
    received: usize,
    /// Messages that have become whole.
    whole: usize,
    position: Position,
    expected: Expected,
    /// Until when the message has to be whole, once it was waited for.
    deadline: Option<Pin<Box<Sleep>>>,
    failed: bool,
}

impl ReceivedBody {
    pub fn new(inner: Body, held: Arc<Held>, expected: Expected) -> Self {
        let position = Position::default();
        Self { inner, held, received: 0, whole: 0, position, expected, deadline: None, failed: false }
    }

    fn count(&mut self, bytes: &[u8]) -> Result<(), Status> {
        self.received += bytes.len();
        let whole = self.position.advance(bytes, self.expected.message_bytes_max)?;
        self.whole += whole;
        if self.expected.is_stream {
            if whole > 0 {
                self.deadline = None;
            }
            self.received = self.position.open();
        } else if self.whole > 1 || (self.whole == 1 && self.position.open() > 0) {
            return Err(status(invalid("is followed by another one, and this method takes one")));
        }
        Ok(self.held.hold(self.received).map_err(status)?)
    }

    /// Whether a message has begun or has to: a stream may be silent between two.
    fn is_awaited(&self) -> bool {
        !self.expected.is_stream || self.received > 0
    }

    /// The error of a request that ends here too early.
    pub fn check_end(&self) -> Result<(), Status> {
        // tonic takes a prefix without its message for the end of a stream that is whole.
        if self.position.open() > 0 {
            return Err(status(invalid("is cut: the request ends in the middle of it")));
        }
        if !self.expected.is_stream && self.whole == 0 {
            return Err(status(invalid("is missing: the request has no message")));
        }
        Ok(())
    }

    fn late(&self) -> Refusal {
        let done = match self.expected.is_stream {
            true => "what was acknowledged is recorded: send the rest again",
            false => "nothing was done",
        };
        let message = format!("the message did not arrive within {} s; {done}", self.expected.timeout.as_secs());
        Refusal::new(Reason::DeadlineExceeded, message)
    }

    fn fail(&mut self, status: Status) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        self.failed = true;
        Poll::Ready(Some(Err(status)))
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
            Poll::Ready(Some(Ok(frame))) => {
                let checked = match frame.data_ref() {
                    Some(bytes) => this.count(bytes),
                    // Trailers end the request, too.
                    None => this.check_end(),
                };
                match checked {
                    Ok(()) => Poll::Ready(Some(Ok(frame))),
                    Err(status) => this.fail(status),
                }
            }
            Poll::Ready(None) => match this.check_end() {
                Ok(()) => Poll::Ready(None),
                Err(status) => this.fail(status),
            },
            Poll::Pending if this.is_awaited() => {
                let timeout = this.expected.timeout;
                let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => this.fail(status(this.late())),
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
                whole += position.advance(piece, 300).unwrap();
                let begun = [0, 305, 310, 316].into_iter().rfind(|begun| *begun <= at).unwrap();
                assert_eq!(position.open(), at - begun, "after {at} bytes in pieces of {size}");
            }
            assert_eq!(whole, 3);
        }
    }

    #[test]
    fn a_message_that_is_to_be_too_long_is_refused_by_its_prefix() {
        let bytes = [message(300), message(301)].concat();
        let (mut position, longest) = (Position::default(), 300);
        position.advance(&bytes[..309], longest).unwrap();
        assert_eq!(position.advance(&bytes[309..310], longest).unwrap_err().code(), tonic::Code::OutOfRange);
    }

    #[test]
    fn small_requests_go_on_when_the_budget_is_used_up_and_what_is_dropped_comes_back() {
        let budget = Arc::new(Budget::new(DECODED_BYTES_PER_BYTE * 100_000));
        let (large, small) = (Held::new(&budget), Held::new(&budget));
        large.hold(FREE_BYTES + 100_000).unwrap();
        small.hold(FREE_BYTES).unwrap();
        assert_eq!(small.hold(FREE_BYTES + 1).unwrap_err().metadata[0].1, "request bytes");
        drop(large);
        small.hold(FREE_BYTES + 1).unwrap();
        drop(small);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn keys_whose_requests_take_all_they_can_leave_room_for_those_of_others() {
        let all = Arc::new(Budget::new(256 << 20));
        let step = 64 * 1024;
        let requests = || {
            let budget = Arc::new(Budget::share_of(&all));
            let request = || Some(Held::new(&budget)).filter(|held| held.hold(FREE_BYTES + step).is_ok());
            std::iter::from_fn(request).collect::<Vec<_>>()
        };
        let greedy: Vec<_> = (0..20).map(|_| requests()).collect();
        assert_eq!(greedy[0].len() * DECODED_BYTES_PER_BYTE * step, 128 << 20, "the first has half of it");
        assert!(greedy[4].len() >= 30 && greedy[8].len() >= 10, "{} and {}", greedy[4].len(), greedy[8].len());
        let newcomer = Held::new(&Arc::new(Budget::share_of(&all)));
        newcomer.hold(FREE_BYTES + 128 * 1024).unwrap();
        assert_eq!(newcomer.hold(FREE_BYTES + 64 * 1024 * 1024).unwrap_err().metadata[0].1, "request bytes of the key");
        drop((greedy, newcomer));
        assert_eq!(all.used.load(Ordering::Relaxed), 0);
    }
}
