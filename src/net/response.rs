//! Sends the response of an HTTP/2 call, not faster than the caller reads. Ends the response if the caller does not read it.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use hyper::body::Body as _;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use tonic::codegen::http::{HeaderMap, Response};

/// Bytes that a caller has to read within the unread timeout. If less is left of a chunk, the rest of it.
const PROGRESS_BYTES: usize = 16 * 1024;

/// Makes the trailers of a response that its caller does not read. A response can have this in its extensions. Without it, the
/// stream is reset.
#[derive(Clone)]
pub struct UnreadTrailers(pub Arc<dyn Fn() -> HeaderMap + Send + Sync>);

impl fmt::Debug for UnreadTrailers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnreadTrailers").finish_non_exhaustive()
    }
}

/// Runs a call and sends its response. Drops the call if the caller cancels it or disconnects.
pub(super) async fn respond(
    call: impl Future<Output = Result<Response<Body>, StdError>>,
    mut respond: SendResponse<Bytes>,
    unread_timeout: Duration,
) {
    let result = tokio::select! {
        biased;
        result = call => result,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    match result {
        Ok(response) => send(response, respond, unread_timeout).await,
        Err(error) => {
            tracing::error!(%error, "a call ended without a response");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

async fn send(response: Response<Body>, mut respond: SendResponse<Bytes>, unread_timeout: Duration) {
    let (mut head, body) = response.into_parts();
    // gRPC-Web sends trailers in the body, so they cannot be replaced here.
    let is_grpc_web =
        head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc-web"));
    let unread_trailers = head.extensions.remove::<UnreadTrailers>().filter(|_| !is_grpc_web);
    let is_complete = body.is_end_stream();
    if !is_complete && let Some(length) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    let Ok(stream) = respond.send_response(Response::from_parts(head, ()), is_complete) else {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    if !is_complete {
        let mut sender = BodySender { stream, unread_timeout, deadline: None, sent: 0 };
        match sender.send(body).await {
            Ok(()) | Err(SendError::Cancelled) => {}
            Err(SendError::Unread) => sender.end_unread(unread_trailers),
            Err(SendError::Body) => sender.stream.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

enum SendError {
    /// The caller cancelled the call, or its connection ended.
    Cancelled,
    /// The caller has read too little for too long.
    Unread,
    /// The body returned an error.
    Body,
}

impl From<h2::Error> for SendError {
    fn from(_: h2::Error) -> Self {
        Self::Cancelled
    }
}

struct BodySender {
    stream: SendStream<Bytes>,
    unread_timeout: Duration,
    /// When the caller has to have read `PROGRESS_BYTES`. `None` if no data waits.
    deadline: Option<Instant>,
    /// Bytes sent since the deadline was set.
    sent: usize,
}

impl BodySender {
    async fn send(&mut self, mut body: Body) -> Result<(), SendError> {
        loop {
            let frame = tokio::select! {
                biased;
                _ = poll_fn(|cx| self.stream.poll_reset(cx)) => return Err(SendError::Cancelled),
                frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => frame,
            };
            let Some(frame) = frame else {
                self.stream.send_data(Bytes::new(), true)?;
                return Ok(());
            };
            let frame = frame.map_err(|_| SendError::Body)?;
            match frame.into_data() {
                Ok(data) => {
                    let is_last = body.is_end_stream();
                    self.send_data(data, is_last).await?;
                    if is_last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.send_trailers(trailers)?;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Passes data to h2 only as far as the caller has window, so that h2 buffers nothing that cannot be sent.
    async fn send_data(&mut self, mut data: Bytes, is_last: bool) -> Result<(), SendError> {
        if data.is_empty() && is_last {
            self.stream.send_data(data, true)?;
            return Ok(());
        }
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len().min(PROGRESS_BYTES));
            let bytes = self.capacity().await?.min(data.len());
            self.sent += bytes;
            let chunk = data.split_to(bytes);
            self.stream.send_data(chunk, is_last && data.is_empty())?;
        }
        self.deadline = None;
        Ok(())
    }

    /// Waits until the caller has window. Returns how much it has.
    async fn capacity(&mut self) -> Result<usize, SendError> {
        loop {
            let stream = &mut self.stream;
            if let capacity @ 1.. = stream.capacity() {
                return Ok(capacity);
            }
            let deadline = match self.deadline {
                Some(deadline) if self.sent < PROGRESS_BYTES => deadline,
                _ => Instant::now() + self.unread_timeout,
            };
            if self.deadline.replace(deadline) != Some(deadline) {
                self.sent = 0;
            }
            match timeout_at(deadline, poll_fn(|cx| stream.poll_capacity(cx))).await {
                Ok(Some(Ok(_))) => {}
                Ok(_) => return Err(SendError::Cancelled),
                Err(_) => return Err(SendError::Unread),
            }
        }
    }

    fn end_unread(&mut self, trailers: Option<UnreadTrailers>) {
        // Trailers need no window.
        self.stream.reserve_capacity(0);
        let is_sent = trailers.is_some_and(|UnreadTrailers(make)| self.stream.send_trailers(make()).is_ok());
        if !is_sent {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
