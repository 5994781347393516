//! The body of a request. Limits the length of messages, the memory of requests, and the time for a message to arrive.

use crate::grpc::layers::framing::{Position, invalid};
use crate::grpc::layers::request_budget::RequestBytes;
use crate::grpc::wire::status::status;
use hyper::body::{Frame, SizeHint};
use meterd_engine::refusal::Reason;
use meterd_engine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

/// What a request may contain.
#[derive(Clone, Copy)]
pub(in crate::grpc) struct RequestLimits {
    /// Whether the request is a stream of messages instead of one message.
    pub is_stream: bool,
    /// Maximum length of a message.
    pub message_bytes_max: usize,
    /// Time for a message to arrive.
    pub timeout: Duration,
}

/// The body of a request, within its limits.
pub(in crate::grpc) struct LimitedBody {
    inner: Body,
    /// Memory of the request.
    bytes: Arc<RequestBytes>,
    /// Bytes of the request, or of the incomplete message of a stream.
    received: usize,
    /// Number of complete messages.
    completed: usize,
    position: Position,
    limits: RequestLimits,
    /// When the message must be complete. Set when the body first has to wait for it.
    deadline: Option<Pin<Box<Sleep>>>,
    has_failed: bool,
}

impl LimitedBody {
    pub fn new(inner: Body, bytes: Arc<RequestBytes>, limits: RequestLimits) -> Self {
        let position = Position::default();
        Self { inner, bytes, received: 0, completed: 0, position, limits, deadline: None, has_failed: false }
    }

    fn count(&mut self, bytes: &[u8]) -> Result<(), Status> {
        self.received += bytes.len();
        let completed = self.position.advance(bytes, self.limits.message_bytes_max)?;
        self.completed += completed;
        if self.limits.is_stream {
            if completed > 0 {
                self.deadline = None;
            }
            self.received = self.position.incomplete_bytes();
        } else if self.completed > 1 || (self.completed == 1 && self.position.incomplete_bytes() > 0) {
            return Err(status(invalid("is followed by another one, but this method takes one message")));
        }
        self.bytes.set(self.received).map_err(status)
    }

    /// Returns whether the timeout applies. A stream may pause between two messages.
    fn is_message_due(&self) -> bool {
        !self.limits.is_stream || self.received > 0
    }

    /// Checks that the request may end here.
    pub fn check_end(&self) -> Result<(), Status> {
        // tonic would accept a prefix without its message as the end of a complete stream.
        if self.position.incomplete_bytes() > 0 {
            return Err(status(invalid("is incomplete: the request ends in the middle of it")));
        }
        if !self.limits.is_stream && self.completed == 0 {
            return Err(status(invalid("is missing: the request has no message")));
        }
        Ok(())
    }

    fn timeout_error(&self) -> Refusal {
        let consequence = match self.limits.is_stream {
            true => "acknowledged events are recorded; send the others again",
            false => "nothing was done",
        };
        let message = format!("the message did not arrive within {} s; {consequence}", self.limits.timeout.as_secs());
        Refusal::new(Reason::DeadlineExceeded, message)
    }

    fn fail(&mut self, status: Status) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        self.has_failed = true;
        Poll::Ready(Some(Err(status)))
    }
}

impl hyper::body::Body for LimitedBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = self.get_mut();
        if this.has_failed {
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
            Poll::Pending if this.is_message_due() => {
                let timeout = this.limits.timeout;
                let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => this.fail(status(this.timeout_error())),
                    Poll::Pending => Poll::Pending,
                }
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
